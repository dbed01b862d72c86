"""How many processes train together, which one this is, and how they agree.

torchrun and accelerate tell each process in its environment: RANK, LOCAL_RANK and WORLD_SIZE.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from job.errors import ConfigError


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


def gathered(items: list) -> list:
    """The items of all processes, in the order of the processes, on every process."""
    if world_size() == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
