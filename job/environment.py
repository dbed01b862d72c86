"""environment.json: each start of a run, with its versions and hardware, and how it ended.

The file holds a list. A resumed run adds an entry, since it may run on another machine.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import signal
from pathlib import Path
from typing import Any

import psutil

from job.distributed import world_size
from job.errors import DONE, REQUEUE, STOPPED_BY_SIGNAL, STOPPED_BY_WATCHDOG, one_line

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "unsloth",
    "vllm",
)


def begin_session(path: Path) -> None:
    """Add an entry to environment.json for a run that starts now."""
    entry = {
        "began": now(),
        "processes": world_size(),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_sessions(path, [*read_sessions(path), entry])


def end_session(path: Path, how: str) -> None:
    """Note in the last entry of environment.json that the run has ended, and how."""
    sessions = read_sessions(path)
    if sessions:
        sessions[-1] |= {"ended": now(), "outcome": how}
        write_sessions(path, sessions)


def write_sessions(path: Path, sessions: list[dict[str, Any]]) -> None:
    """Write the file in one go, so that it is never half written."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(sessions, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The entries of environment.json; empty if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, list):
        return []
    return [entry for entry in content if isinstance(entry, dict)]


def outcome(exit_code: int | None, error: BaseException | None) -> str:
    """How a run ended, in words."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return outcome(error.code, None)
    if error is not None:
        return f"failed: {type(error).__name__}: {one_line(error)}"
    if exit_code == DONE:
        return "finished"
    if exit_code == STOPPED_BY_WATCHDOG:
        return "stopped by the watchdog, or its weights are not finite"
    if exit_code == REQUEUE:
        return "stopped, to be started again"
    if exit_code is not None and exit_code > STOPPED_BY_SIGNAL:
        number = exit_code - STOPPED_BY_SIGNAL
        return f"stopped by {signal.Signals(number).name}"
    return f"ended with exit code {exit_code}"


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The processor, memory and GPUs that this process sees. Names of machines are left out."""
    import torch  # late, because it takes a second that a mistake in the config should not

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus,
    }


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
