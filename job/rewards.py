"""Finds reward functions by their names, calls them, and refuses what training cannot use.

A reward function is the user's own code, so every way in which it can fail is told in words: which
function, what it did, and on which completion.
"""

import contextlib
import importlib
import inspect
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import reward_functions
from job.alarms import clear_alarm, set_alarm
from job.errors import RewardError

RewardFunction = Callable[..., list[float | None]]
SHOWN_CHARACTERS = 1000  # of a completion in a message


def resolve(name: str) -> RewardFunction:
    """The reward function called `name`: one of reward_functions.py, or "package.module:function".

    Raises:
        ValueError: if there is no such function, or it does not take `completions`.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        module = importlib.import_module(module_name or reward_functions.__name__)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(
            f"{name}: module {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        raise ValueError(f"there is no function {function_name!r} in {module.__name__}")
    parameters = inspect.signature(function).parameters
    if "completions" not in parameters:
        raise ValueError(f"{name}{inspect.signature(function)} must take `completions`")
    return function


def names() -> list[str]:
    """What `task.rewards` may name without a module."""
    found = []
    for name, function in inspect.getmembers(reward_functions, inspect.isfunction):
        if "completions" in inspect.signature(function).parameters:
            found.append(name)
    return found


def select(arguments: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The arguments of a reward function for some completions of a batch: every list that is as
    long as the batch is cut."""
    count = len(arguments["completions"])
    selected = {}
    for name, value in arguments.items():
        if isinstance(value, list) and len(value) == count:
            value = [value[i] for i in indices]
        selected[name] = value
    return selected


def text_of(completion: Any) -> Any:
    """The text that rewards read: the content of the one message, or the completion itself if it is
    plain text."""
    return completion[0].get("content") if isinstance(completion, list) else completion


def checked(function: RewardFunction, arguments: dict[str, Any]) -> list[float | None]:
    """Call a reward function.

    Raises:
        RewardError: if it raises, lacks an argument, or returns anything but one finite number or
            None for each completion.
    """
    name = function.__name__
    arguments = accepted(function, arguments)
    try:
        returned = function(**arguments)
        rewards = list(returned) if isinstance(returned, Iterable) else None
    except Exception as error:
        culprit = find_culprit(function, arguments)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        raise RewardError(
            f"reward function {name} raised {type(error).__name__}: {error} ({place}){culprit}"
        ) from error
    if rewards is None:
        raise RewardError(
            f"reward function {name} returned {returned!r}, "
            "not a list with a number for each completion"
        )
    completions = arguments["completions"]
    if len(rewards) != len(completions):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards "
            f"for {len(completions)} completions"
        )
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is not None and not is_finite_number(reward):
            raise RewardError(
                f"reward function {name} returned {reward!r} ({type(reward).__name__}), "
                f"not a finite float, for {quoted(completion)}"
            )
    return rewards


def accepted(function: RewardFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that the function takes.

    Raises:
        RewardError: if it needs one that is not there.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [
        parameter
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    lacking = []
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            lacking.append(parameter.name)
    if lacking:
        raise RewardError(
            f"reward function {function.__name__} takes {', '.join(lacking)}, which is no column "
            f"of these rows; there are {', '.join(sorted(arguments))}"
        )
    if takes_any:
        return arguments
    wanted = {"completions", *(parameter.name for parameter in named)}
    return {name: value for name, value in arguments.items() if name in wanted}


def is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return math.isfinite(value)


def find_culprit(function: RewardFunction, arguments: dict[str, Any]) -> str:
    """The first completion that makes the function raise on its own, in words."""
    count = len(arguments["completions"])
    for i in range(count):
        one = select(arguments, [i])
        try:
            function(**one)
        except Exception:
            return f"\non completion {i} of {count}: {quoted(arguments['completions'][i])}"
    return f"\non a batch of {count} completions, though on none of them alone"


def quoted(completion: Any) -> str:
    text = repr(text_of(completion))
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters)"


class TooSlow(BaseException):
    """A reward function has had its time. It is no Exception, so that none catches it."""


@contextlib.contextmanager
def time_limit(name: str, seconds: float | None) -> Iterator[None]:
    """Stop a reward function that waits or computes for too long; None: never.

    Raises:
        RewardError: if it does.
    """
    if seconds is None:
        yield
        return

    def stop() -> None:
        raise TooSlow

    set_alarm("reward", time.monotonic() + seconds, stop)
    try:
        yield
    except TooSlow as error:
        frame = traceback.extract_tb(error.__traceback__)[-3]  # behind it: alarms.py
        raise RewardError(
            f"reward function {name} took more than {seconds:g} s, which train.reward_timeout_s "
            f"allows ({os.path.basename(frame.filename)}:{frame.lineno})"
        ) from None
    finally:
        clear_alarm("reward")
