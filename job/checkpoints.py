"""Checkpoints of a run: which there are, whether one is whole, how one is written, which are kept.

A checkpoint is written aside, in the folder `.saving`, with the checksum of each of its files. Only
when all of it is on the disk is it renamed to `checkpoint-N`. So a run that is killed while it
saves leaves no half checkpoint. Checkpoints of older versions have no checksums; their files are
opened instead.
"""

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

STAGING = ".saving"
CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"
# What resuming reads of trainer_state.json, and its type
STATE_KEYS = {"global_step": int, "max_steps": int, "log_history": list}
# Either of each: one process, several, FSDP or DeepSpeed
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
RANDOM_STATES = ("rng_state.pth", "rng_state_*.pth")


# ---- Which there are


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(N, path) of each folder checkpoint-N, the last one first. checkpoint-5.bak is none."""
    found = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and path.is_dir():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def places_of_model(folder: Path) -> list[Path]:
    """Where a trained model may lie in a folder: there, in its final_model, or in one of its
    checkpoints, the last one first."""
    return [folder, folder / "final_model", *(path for _, path in numbered(folder))]


def steps_done(checkpoint: Path) -> int:
    """The step of a checkpoint; -1 if its trainer_state.json cannot be read."""
    try:
        return int(read_object(checkpoint / STATE)["global_step"])
    except (ValueError, KeyError, TypeError):
        return -1


def processes_of(checkpoint: Path) -> int:
    """How many processes have written a checkpoint: each wrote its random numbers."""
    return max(len(list(checkpoint.glob("rng_state_*.pth"))), 1)


# ---- Whether one is whole


def fault(checkpoint: Path) -> str | None:
    """Why a run cannot be resumed from this checkpoint, in words; None if it can.

    A checkpoint that lacks its optimizer, schedule or random numbers is not whole: the run would go
    on, but with other numbers than without the interruption.
    """
    return first_fault(
        checkpoint, (check_state, check_adapter_files, check_training_files, check_sums)
    )


def adapter_fault(checkpoint: Path) -> str | None:
    """Why the adapter of this checkpoint cannot be used, in words; None if it can."""
    return first_fault(checkpoint, (check_state, check_adapter_files))


def first_fault(checkpoint: Path, checks: Iterable[Callable[[Path], None]]) -> str | None:
    try:
        for check in checks:
            check(checkpoint)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name} cannot be read: {error.strerror}"
    return None


def check_state(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: if its trainer_state.json is not whole.
    """
    file = checkpoint / STATE
    state = read_object(file)
    for key, kind in STATE_KEYS.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{file.name} is damaged: it has no {key}")
    if not all(isinstance(entry, dict) for entry in state["log_history"]):
        raise ValueError(f"{file.name} is damaged: its log_history holds no metrics")


def check_adapter_files(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: if the adapter is missing, truncated or empty.
    """
    from safetensors import SafetensorError, safe_open  # late, because it takes a while

    read_object(checkpoint / "adapter_config.json")
    file = checkpoint / "adapter_model.safetensors"
    if not file.is_file():
        if (checkpoint / "adapter_model.bin").is_file():  # what older versions of PEFT wrote
            return check_archive(checkpoint / "adapter_model.bin")
        raise ValueError(f"{file.name} is missing")
    try:
        with safe_open(file, "np") as weights:
            names = list(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error
    if not names:
        raise ValueError(f"{file.name} holds no weights")
    return None


def check_training_files(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: if optimizer, schedule or random numbers are missing or damaged.
    """
    for patterns in (OPTIMIZERS, ("scheduler.pt",), RANDOM_STATES):
        if not any(path for pattern in patterns for path in checkpoint.glob(pattern)):
            why = ""
            if patterns == OPTIMIZERS:
                why = "; grpo.save_only_model saves none"
            raise ValueError(f"{patterns[0]} is missing{why}")
    for pattern in ("*.pt", "*.pth"):  # a generated batch as well
        for file in sorted(checkpoint.glob(pattern)):
            check_archive(file)


def check_archive(file: Path) -> None:
    """
    Raises:
        ValueError: if a file of torch.save is not whole. It is a ZIP archive with checksums.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error
    if damaged:
        raise ValueError(f"{file.name} is damaged")


def check_sums(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: if a file is missing or not what was written, as far as that is known.
    """
    if not (checkpoint / CHECKSUMS).is_file():
        return
    for name, expected in read_object(checkpoint / CHECKSUMS).items():
        file = checkpoint / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if checksum(file) != expected:
            raise ValueError(f"{name} is not what was written")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is missing or holds anything else.
    """
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file.name} is missing") from None
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is damaged")
    return content


def checksum(file: Path) -> str:
    """SHA-256 of the file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- How one is written


def begin_saving(folder: Path) -> Path:
    """An empty folder into which a checkpoint is to be written."""
    staging = folder / STAGING
    remove(staging)
    staging.mkdir(parents=True)
    return staging


def finish_saving(folder: Path, step: int) -> Path:
    """Give the checkpoint that was written aside its name. Returns its path."""
    written = folder / STAGING / f"checkpoint-{step}"
    final = folder / written.name
    sums = {}
    for file in files_in(written):
        sums[file.relative_to(written).as_posix()] = checksum(file)
    (written / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    settle(written)
    if final.exists():
        final.rename(folder / STAGING / "replaced")
    written.rename(final)
    flush(folder)
    remove(folder / STAGING)
    return final


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `folder` only when all of it is written."""
    beside = folder.with_name(f".{folder.name}")
    remove(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        settle(beside)
        remove(folder)
        beside.rename(folder)
    finally:
        remove(beside)


def settle(folder: Path) -> None:
    """Bring every file to the disk, with the permissions that the umask grants.

    safetensors makes files that only their owner may read. A machine that fails right after a
    rename may otherwise leave empty files.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in files_in(folder):
        file.chmod(0o666 & ~umask)
        flush(file)
    flush(folder)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# ---- Which are kept


def superfluous(
    steps: Iterable[int], last: int, best: int, scores: Mapping[int, float]
) -> set[int]:
    """The checkpoints to delete: all but the `last` ones and the `best` ones.

    Args:
        steps: of all checkpoints.
        last: how many of the newest stay; at least one always does.
        best: how many of those with the highest score stay. Of equal ones the newer counts as
            better. A checkpoint without a score is not among them.
    """
    newest = sorted(steps, reverse=True)
    scored = [step for step in newest if step in scores]
    scored.sort(key=lambda step: scores[step], reverse=True)  # stable: newer ones first
    return set(newest) - set(newest[: max(last, 1)]) - set(scored[:best])


def scores_of(
    steps: Iterable[int], entries: Sequence[Mapping[str, Any]], metric: str, every: int
) -> dict[int, float]:
    """The score of each checkpoint: the mean of a metric over the `every` steps that end with it.

    Args:
        entries: the lines of metrics.jsonl.
    """
    scores = {}
    for step in steps:
        values = []
        for entry in entries:
            value = entry.get(metric)
            if isinstance(value, int | float) and step - every < entry.get("step", -1) <= step:
                values.append(value)
        if values:
            scores[step] = statistics.fmean(values)
    return scores


def delete(folder: Path, steps: Iterable[int]) -> None:
    """Delete checkpoints. One that is deleted in part has another name already."""
    leaving = folder / f"{STAGING}-deleted"
    for step in steps:
        leaving.mkdir(exist_ok=True)
        (folder / f"checkpoint-{step}").rename(leaving / f"checkpoint-{step}")
    remove(leaving)
