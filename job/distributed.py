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
    """Whether a launcher has started this process as one of several. A dry run may plan for processes without it."""
    return "RANK" in os.environ


def is_first_process() -> bool:
    """Whether this process writes the files and talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def quiet_other_processes() -> None:
    """Leave standard output to the first process. Errors stay with the process that has them."""
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends


def check_started() -> None:
    """
    Raises:
        ConfigError: if WORLD_SIZE announces several processes that no launcher has started.
    """
    if world_size() > 1 and not is_started():
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but there is no RANK: start it by torchrun"
        )


@contextlib.contextmanager
def planned_processes() -> Iterator[int]:
    """Within it, TrainingArguments sees one process. Yields by how many its batches must be multiplied instead.

    A dry run can plan for 8 processes although one is running. TrainingArguments would wait for the other seven.
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

    The logs are gathered, so the names should be equal. If they differed by a rounding, the processes would wait for
    each other forever.
    """
    if world_size == 1:
        return names
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([names])[0]
