"""metrics.jsonl: one JSON object for each logged step and for each evaluation."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def append(file: Path, step: int, logs: Mapping[str, Any]) -> None:
    """Add a line."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line_of(step, logs))


def line_of(step: int, logs: Mapping[str, Any]) -> str:
    values = {name: finite(value) for name, value in logs.items()}
    return json.dumps({"step": step} | values | {"step": step}) + "\n"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines that can be read: a killed run leaves half a line, a bad disk anything."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return [entry for entry in map(entry_of, lines) if entry is not None]


def entry_of(line: str | bytes) -> dict[str, Any] | None:
    """What a line holds; None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return None
    return entry


def cut_off(file: Path, step: int, history: Sequence[Mapping[str, Any]]) -> str:
    """Leave the lines up to a step, each once and without gaps, in a file that exists.

    Args:
        history: what the checkpoint knows of the logged steps. It fills the gaps.

    Returns:
        What was mended, in words; empty if nothing was.
    """
    if not file.is_file():
        return ""
    kept = [entry for entry in read_metrics(file) if entry["step"] <= step]
    steps = {entry["step"] for entry in kept if is_step(entry)}
    missing = []
    for logs in history:
        if is_step(logs) and logs["step"] <= step and logs["step"] not in steps:
            missing.append(dict(logs))
    # The line of a step comes before that of its evaluation
    entries = sorted(kept + missing, key=lambda entry: (entry["step"], is_evaluation(entry)))
    text = "".join(line_of(entry["step"], entry) for entry in without_doubles(entries))
    beside = file.with_name(f".{file.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    if missing:
        return (
            f"{file.name}: {len(missing)} lines were damaged or missing; {file.parent.name}'s "
            "checkpoint had their metrics"
        )
    return ""


def without_doubles(entries: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The last line of each step, and of each evaluation."""
    last = {(entry["step"], is_evaluation(entry)): entry for entry in entries}
    return last.values()


def is_step(logs: Mapping[str, Any] | None) -> bool:
    """Whether the logs are a training step's. The last log of a run has train_loss and times."""
    return bool(logs) and "loss" in logs


def is_evaluation(logs: Mapping[str, Any] | None) -> bool:
    """Whether the logs are an evaluation's: TRL's, or one of job/evaluation/run_evaluation.py."""
    return bool(logs) and "eval_reward" in logs


def two_ends(entries: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """[the first ones, the last ones], as many of each, at most `most`, and none in both; a single
    entry makes one end."""
    if len(entries) == 1:
        return [entries]
    count = min(most, len(entries) // 2)
    return [entries[:count], entries[len(entries) - count :]]


def nothing_learned(entries: Iterable[Mapping[str, Any]]) -> str:
    """A sentence, if all advantages of all logged steps were 0; empty otherwise."""
    shares = [entry.get("frac_reward_zero_std") for entry in entries if is_step(entry)]
    if not shares or any(share != 1 for share in shares):
        return ""
    return (
        "in every group all rewards were equal, so nothing was learned: if they are the best, make "
        "the task harder; if not, raise grpo.num_generations or grpo.temperature, take an easier "
        "task, or give task.rewards a function with partial credit"
    )


def finite(value: Any) -> Any:
    """`value`, but None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
