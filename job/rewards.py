"""Finds reward functions by their names, calls them, and refuses what training cannot use.

A reward function is the user's own code, so every way in which it can fail is told in words: which function, what it
did, and on which completion.
"""

import importlib
import inspect
import math
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

import reward_functions
from job.errors import RewardError

RewardFunction = Callable[..., list[float | None]]


def resolve(name: str) -> Callable[..., list[float | None]]:
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
    functions = inspect.getmembers(reward_functions, inspect.isfunction)
    return [
        name
        for name, function in functions
        if "completions" in inspect.signature(function).parameters
    ]


def select(arguments: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The arguments of a reward function for some completions of a batch: every list as long as the batch is cut."""
    count = len(arguments["completions"])
    return {
        name: [value[i] for i in indices]
        if isinstance(value, list) and len(value) == count
        else value
        for name, value in arguments.items()
    }


def text_of(completion: Any) -> Any:
    """The text that rewards read: the content of the one message, or the completion itself if it is plain text."""
    return completion[0].get("content") if isinstance(completion, list) else completion


def checked(function: Callable, arguments: dict[str, Any]) -> list[float | None]:
    """Call a reward function; anything but one number or None for each completion is a RewardError."""
    name, completions = function.__name__, arguments["completions"]
    parameters = inspect.signature(function).parameters
    named = [p for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    lacking = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if lacking:
        raise RewardError(
            f"reward function {name} takes {', '.join(lacking)}, which is no column of these rows; there are "
            f"{', '.join(sorted(arguments))}"
        )
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {
            name: value
            for name, value in arguments.items()
            if name in parameters or name == "completions"
        }
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
            f"reward function {name} returned {returned!r}, not a list with a number for each completion"
        )
    if len(rewards) != len(completions):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards for {len(completions)} completions"
        )
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is None:
            continue
        if (
            isinstance(reward, bool)
            or not isinstance(reward, (int, float, np.number))
            or not math.isfinite(reward)
        ):
            raise RewardError(
                f"reward function {name} returned {reward!r} ({type(reward).__name__}), not a finite float, for "
                f"{quoted(completion)}"
            )
    return rewards


def find_culprit(function: Callable, arguments: dict[str, Any]) -> str:
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
    return text if len(text) <= 1000 else f"{text[:1000]}… ({len(text)} characters)"
