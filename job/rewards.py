"""Finds reward functions by their names, calls them, and refuses what training cannot use.

A reward function is the user's own code, so every way in which it can fail is told in words: which
function, what it did, and on which completion. It may be any callable: a function, a
functools.partial, an object with `__call__`; plain or async.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import math
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from types import ModuleType
from typing import Any

import numpy as np

import reward_functions
from job import own_code
from job.alarms import clear_alarm, set_alarm
from job.errors import ROOT, RewardError, nearest

RewardFunction = Callable[..., Any]  # returns one float or None for each completion
SHOWN_CHARACTERS = 1000  # of a completion in a message


# ---- finding them


def resolve(name: str) -> RewardFunction:
    """The reward function called `name`: one of reward_functions.py, "package.module:function" or
    "path/to/file.py:function".

    Raises:
        ValueError: if there is no such function, or it cannot be called with completions.
    """
    module_name, _, function_name = name.rpartition(":")
    module = import_rewards(name, module_name)
    shown = module_name or reward_functions.__name__
    if not hasattr(module, function_name):
        hint = nearest(function_name, names(module))
        if not module_name:
            hint += "; write it there, or name one elsewhere: module:function or file.py:function"
        raise ValueError(f"there is no function {function_name!r} in {shown}{hint}")
    function = getattr(module, function_name)
    if inspect.isclass(function):
        raise ValueError(f"{name} is a class; make an object of it in {shown} and name the object")
    if not callable(function):
        raise ValueError(f"{name} is {function!r:.200}, which cannot be called")
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise ValueError(f"{name}: Python does not know its arguments: {error}") from error
    if not takes(signature, "completions"):
        raise ValueError(f"{name}{signature} must take `completions`")
    return named(function, function_name)


def import_rewards(name: str, module_name: str) -> ModuleType:
    """The module that `name` is in.

    Args:
        module_name: a module, the path of a file, or empty for reward_functions.py.

    Raises:
        ValueError: if it cannot be imported.
    """
    if not module_name:
        return reward_functions
    if own_code.is_path(module_name):
        own_code.find_file(module_name)  # its own words, where there is none
        load = own_code.rewards_module
    else:
        load = importlib.import_module
    top = module_name.partition(".")[0]
    try:
        return load(module_name)
    except Exception as error:  # the user's module may raise anything
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name, top):
            hint = f" (sought in {ROOT} and PYTHONPATH; path/to/file.py:function works, too)"
        raise ValueError(
            f"{name}: module {module_name} cannot be imported: "
            f"{type(error).__name__}: {error}{hint}"
        ) from error


def names(module: ModuleType = reward_functions) -> list[str]:
    """The reward functions of a module."""
    found = []
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if "completions" in inspect.signature(function).parameters:
            found.append(name)
    return found


def takes(signature: inspect.Signature, name: str) -> bool:
    """Whether a function of this signature can be given an argument of this name."""
    if name in signature.parameters:
        return True
    return any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())


def named(function: RewardFunction, name: str) -> RewardFunction:
    """`function` as a function of that name, under which it is logged. A partial and an object have
    none, and the name of a lambda says nothing."""
    if inspect.isfunction(function) and function.__name__ == name:
        return function

    def call(**arguments: Any) -> Any:
        return function(**arguments)

    async def call_async(**arguments: Any) -> Any:
        return await function(**arguments)

    wrapper = call_async if is_async(function) else call
    wrapper.__name__ = name
    wrapper.__signature__ = inspect.signature(function)
    wrapper.needs_network = getattr(unwrapped(function), "needs_network", False)
    return wrapper


def is_async(function: RewardFunction) -> bool:
    """Whether a callable is known to be async before it is called."""
    function = unwrapped(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)


def unwrapped(function: RewardFunction) -> RewardFunction:
    """What a partial calls."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


# ---- calling them


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
    """What is graded: the content of the one message, or the completion itself if it is plain text
    or has several turns."""
    if isinstance(completion, list) and len(completion) == 1 and "tool_calls" not in completion[0]:
        return completion[0].get("content")
    return completion


def checked(
    function: RewardFunction, arguments: dict[str, Any], timeout_s: float | None = None
) -> list[float | None]:
    """Call a reward function, and wait for it if it is async.

    Args:
        timeout_s: wall clock for the call; None: no limit.

    Raises:
        RewardError: if it raises, takes too long, lacks an argument, or returns anything but one
            finite number or None for each completion. A bool counts as 0 or 1.
    """
    name = function.__name__
    arguments = accepted(function, arguments)
    try:
        returned = called(function, arguments, timeout_s)
        rewards = list(returned) if is_list(returned) else None
    except RewardError:  # it took too long
        raise
    except Exception as error:
        culprit = find_culprit(function, arguments, timeout_s)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        raise RewardError(
            f"reward function {name} raised {type(error).__name__}: {error} ({place}){culprit}"
        ) from error
    if rewards is None:
        raise RewardError(
            f"reward function {name} returned {returned!r:.200}, "
            "not a list with a number for each completion"
        )
    completions = arguments["completions"]
    if len(rewards) != len(completions):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards "
            f"for {len(completions)} completions"
        )
    numbers = [as_number(reward) for reward in rewards]
    for reward, number, completion in zip(rewards, numbers, completions, strict=True):
        if number is not None and not math.isfinite(number):
            raise RewardError(
                f"reward function {name} returned {reward!r:.200} ({type(reward).__name__}), "
                f"not a finite float, for {quoted(completion)}"
            )
    return numbers


def called(
    function: RewardFunction, arguments: dict[str, Any], timeout_s: float | None = None
) -> Any:
    """What a function returns for these arguments, awaited if that is called for.

    Raises:
        RewardError: if it takes more than `timeout_s`.
        Exception: of any type, from the function.
    """
    if is_async(function):  # it may have been called in any thread, and alarms ring in the main one
        return wait_for(function.__name__, function(**arguments), timeout_s)
    with time_limit(function.__name__, timeout_s):
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            return wait_for(function.__name__, returned, None)
    return returned


def wait_for(name: str, returned: Awaitable[Any], timeout_s: float | None) -> Any:
    """What an awaitable comes to in the loop of all async functions.

    Raises:
        RewardError: if it takes more than `timeout_s`.
        Exception: of any type, from the function called `name`.
    """
    future = asyncio.run_coroutine_threadsafe(awaited(returned), event_loop())
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        future.cancel()
        raise RewardError(too_slow(name, timeout_s)) from None


async def awaited(returned: Any) -> Any:
    return await returned


def event_loop() -> asyncio.AbstractEventLoop:
    """The one loop in which all async functions run, in a thread of its own.

    A connection that a function keeps open belongs to the loop in which it was opened, so all
    batches must use the same. Two threads may ask for it at once.
    """
    with _event_loop_lock:
        return _start_event_loop()


_event_loop_lock = threading.Lock()


@functools.cache
def _start_event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def call_together(
    functions: Sequence[RewardFunction], arguments: dict[str, Any]
) -> list[list[float | None]]:
    """What each function returns for a batch, as GRPOTrainer calls them: the plain ones one after
    the other, then all async ones at the same time."""
    returned: list[Any] = [None] * len(functions)
    waiting = [i for i, function in enumerate(functions) if is_async(function)]
    for i, function in enumerate(functions):
        if i not in waiting:
            returned[i] = function(**arguments)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(functions[i](**arguments) for i in waiting))

    if waiting:
        for i, rewards in zip(waiting, asyncio.run(gather()), strict=True):
            returned[i] = rewards
    return returned


def is_list(returned: Any) -> bool:
    """Whether something holds one value after the other. A text, a mapping and a set do not."""
    return isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping | Set)


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


def as_number(value: Any) -> float | None:
    """A reward as a number; NaN if it is none. A bool counts as 0 or 1."""
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0:  # an element of an array or a tensor
        value = value.item()
    if not isinstance(value, bool | int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return math.nan


def find_culprit(
    function: RewardFunction, arguments: dict[str, Any], timeout_s: float | None
) -> str:
    """The first completion that makes the function raise on its own, in words."""
    count = len(arguments["completions"])
    for i in range(count):
        one = select(arguments, [i])
        try:
            called(function, one, timeout_s)
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


def too_slow(name: str, timeout_s: float) -> str:
    return f"reward function {name} took more than {timeout_s:g} s (train.reward_timeout_s)"


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
            f"{too_slow(name, seconds)} ({os.path.basename(frame.filename)}:{frame.lineno})"
        ) from None
    finally:
        clear_alarm("reward")
