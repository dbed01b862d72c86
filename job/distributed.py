"""How many processes train together, which one this is, and how they agree.

torchrun and accelerate tell each process in its environment: RANK, LOCAL_RANK and WORLD_SIZE.
"""

import contextlib
import functools
import inspect
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from job.errors import SANDBOX_FAILED, UNFORESEEN, ConfigError, JobError, RewardError
from sandbox import SandboxError

POLL_S = 0.01
PATIENCE_S = 1800.0  # what TRL waits for in a collective, beyond what grading may take
TELL_S = 30.0  # how often a waiting process says whom it waits for
FAILED = "failed"  # key under which a process that failed says so

meetings = itertools.count()  # every process counts alike


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_started() -> bool:
    """Whether a launcher, such as torchrun, has started this process."""
    return "RANK" in os.environ


def is_first_process() -> bool:
    """Whether this process writes the files and talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """The number of this process among all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of processes on this machine that train together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_share(cores: int) -> int:
    """How many of this machine's cores are this process's: at least one, and all are shared out."""
    share, rest = divmod(cores, local_world_size())
    if local_rank() < rest:
        share += 1
    return max(share, 1)


def node_file(name: str) -> Path:
    """A file that is the same for all processes of a launcher on this machine, and for no others.

    Their parent is the launcher.
    """
    return Path(tempfile.gettempdir(), f"{name}-{os.getuid()}-{os.getppid()}")


def quiet_other_processes() -> None:
    """Leave standard output to the first process. Every process still prints its own errors."""
    if not is_first_process():
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def check_started() -> None:
    """Refuse to train alone where several processes were announced.

    Raises:
        ConfigError: if WORLD_SIZE is above 1 and no launcher has started this process.
    """
    if world_size() > 1 and not is_started():
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but RANK is not set: start the job with torchrun"
        )


@contextlib.contextmanager
def planned_processes() -> Iterator[int]:
    """Hide planned processes from TrainingArguments, which would wait for them.

    A dry run can plan for 8 processes although one is running. Within this context
    TrainingArguments sees one process. The context yields the factor by which the batches of that
    one process must be multiplied, so that the total stays the same.
    """
    if is_started() or "WORLD_SIZE" not in os.environ:
        yield 1
        return
    planned = os.environ.pop("WORLD_SIZE")
    try:
        yield int(planned)
    finally:
        os.environ["WORLD_SIZE"] = planned


def agreed(names: list[str], world_size: int) -> list[str]:
    """The first process's names, on every process.

    Every process has the same gathered logs, so the names should be equal. If rounding made them
    differ, one process would stop while the others waited for it forever.
    """
    if world_size == 1:
        return names
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([names])[0]


def gathered(items: list, limit_s: float) -> list:
    """The items of all processes, in the order of the processes, on every process.

    Args:
        limit_s: to wait for the slowest process.

    Raises:
        RewardError: if a process takes longer.
    """
    if world_size() == 1:
        return items
    from accelerate.utils import gather_object

    wait_for_rewards(limit_s)
    return gather_object(items)


# ---- Waiting for each other outside of collectives, whose timeout would end the run


def whole_weights(model: Any) -> dict[str, Any] | None:
    """The trained weights of a model whose weights FSDP spreads over the processes, each whole.

    Every process must call this. Where a process has whole weights, it returns None.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not any(hasattr(weight, "full_tensor") for weight in trained.values()):
        return None
    whole = {}
    for name, weight in trained.items():
        if hasattr(weight, "full_tensor"):
            weight = weight.full_tensor()
        whole[name] = weight.detach().cpu()
    return whole


def wait_for_all(what: str, limit_s: float) -> list[int]:
    """Wait until every process has come here as often as this one.

    NCCL ends a run when one process comes to a collective half an hour after the others. Here they
    may be waited for, and a message says for whom.

    Args:
        what: is waited for, in words.

    Returns:
        The ranks that have not come within `limit_s`.

    Raises:
        JobError: if a process has failed meanwhile, with its exit code.
    """
    if world_size() == 1:
        return []
    store = group_store()
    place = f"meeting/{next(meetings)}"
    store.set(f"{place}/{rank()}", "here")
    began = told = time.monotonic()
    missing = list(range(world_size()))
    while missing:
        missing = [other for other in missing if not store.check([f"{place}/{other}"])]
        now = time.monotonic()
        if not missing or now - began > limit_s:
            break
        follow_failure(store)
        if now - told > TELL_S and rank() == lowest_without(missing):
            told = now
            print(waiting(what, missing, now - began, limit_s), file=sys.stderr, flush=True)
        time.sleep(POLL_S)
    return missing


def follow_failure(store: Any) -> None:
    """Fail if another process has failed, which has printed why.

    Raises:
        JobError: with its exit code.
    """
    if not store.check([FAILED]):
        return
    failed, exit_code = store.get(FAILED).decode().split()
    error = JobError(f"rank {failed} has failed; its message says why")
    error.exit_code = int(exit_code)
    raise error


def lowest_without(missing: Sequence[int]) -> int:
    """The lowest rank that is not missing; it speaks for those that wait."""
    return next(i for i in range(world_size()) if i not in missing)


def waiting(what: str, missing: Sequence[int], waited_s: float, limit_s: float) -> str:
    ranks = ", ".join(map(str, missing))
    return f"waiting for {what} of rank {ranks}: {waited_s:.0f} s so far, at most {limit_s:.0f} s"


def wait_for_rewards(limit_s: float) -> None:
    """Wait until every process has rewarded its completions.

    Raises:
        RewardError: if one takes longer than `limit_s`.
    """
    missing = wait_for_all("the rewards", limit_s)
    if missing:
        ranks = ", ".join(map(str, missing))
        raise RewardError(
            f"the reward functions of rank {ranks} had not ended {limit_s:.0f} s after the others"
        )


def then_wait(functions: Sequence[Callable], limit_s: float) -> list[Callable]:
    """Reward functions, plain or async, of which the one that ends last in a batch waits until all
    processes have come to its end."""
    if world_size() == 1:
        return list(functions)
    ended = itertools.count(1)

    def note_end() -> None:
        if next(ended) % len(functions) == 0:
            wait_for_rewards(limit_s)

    def waiting_at_end(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            rewards = function(*args, **kwargs)
            note_end()
            return rewards

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            rewards = await function(*args, **kwargs)
            note_end()
            return rewards

        return call_async if inspect.iscoroutinefunction(function) else call

    return [waiting_at_end(function) for function in functions]


@contextlib.contextmanager
def telling_others() -> Iterator[None]:
    """Let the other processes, which may wait for this one, know that it has failed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if world_size() > 1:
            with contextlib.suppress(Exception):  # the store may be gone with its process
                say_failed(group_store(), error)
        raise


def say_failed(store: Any, error: BaseException) -> None:
    """Say so, unless another process was faster."""
    exit_code = UNFORESEEN
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        exit_code = error.code
    elif isinstance(error, JobError):
        exit_code = error.exit_code
    elif isinstance(error, SandboxError):
        exit_code = SANDBOX_FAILED
    if not store.check([FAILED]):
        store.set(FAILED, f"{rank()} {exit_code}")


def group_store() -> Any:
    """The key-value store of the process group."""
    from torch import distributed

    return distributed.group.WORLD.get_group_store()
