"""Reads what a run has left in its output folder, for the report.

The files may be missing, cut off, damaged, or still be written. What cannot be read is left out and
named in `problems`. Nothing here raises because of what a file contains.
"""

import fcntl
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from job.config import flat
from job.environment import read_sessions
from job.errors import ConfigError
from job.metrics_file import entry_of
from job.step_time import PARTS

# What a folder must have one of to be taken for a run's
MARKS = ("config.yaml", "metrics.jsonl", "completions", "evaluation.json", "environment.json")
SECRETS = ("hub_token",)  # keys of the config whose values are not shown


@dataclass
class RunRecord:
    """What one run has left.

    Attributes:
        name: the folder's name.
        config: "section.key" -> value.
        steps: the metrics of each logged step, by rising step. All but "watchdog" and "diagnoses"
            are finite numbers.
        evals: the same of each evaluation during training, under names without "eval_".
        evaluation: the content of evaluation.json; empty if there is none.
        sessions: the entries of environment.json.
        is_running: whether a process is writing to the folder.
        problems: what could not be read, in words.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    is_running: bool = False
    problems: list[str] = field(default_factory=list)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """The steps at which a metric was logged, and its values."""
        return curve_of(self.steps, name)

    def names(self, beginning: str, end: str = "") -> list[str]:
        """What stands between these two in the names of metrics, each once, as they appear."""
        found = {}
        for entry in self.steps:
            for name in entry:
                if name.startswith(beginning) and name.endswith(end):
                    found[name[len(beginning) : len(name) - len(end)]] = True
        return list(found)

    @property
    def last_step(self) -> int:
        if not self.steps:
            return 0
        return self.steps[-1]["step"]

    @property
    def diagnoses(self) -> list[tuple[int, str, str]]:
        """(step, name, paragraph) of what the watchdog said, in order.

        Runs of older versions noted the names alone. Their paragraph is empty, and the step is the
        first at which a diagnosis held.
        """
        said, held = [], set()
        for entry in self.steps:
            started = entry.get("diagnoses", {})
            for name in entry.get("watchdog", []):
                if name not in started and name not in held:
                    started = started | {name: ""}
            held |= started.keys()
            said += [(entry["step"], name, paragraph) for name, paragraph in started.items()]
        return said

    @property
    def state(self) -> str:
        """Whether the run goes on, or how it ended."""
        if self.sessions and self.sessions[-1].get("outcome"):
            return str(self.sessions[-1]["outcome"])
        if self.is_running:
            return "running"
        if (self.path / "final_model").is_dir():
            return "finished"
        return "ended without a word: killed, or its machine went down"

    @property
    def training_s(self) -> float:
        """Seconds of all training steps. A line of the metrics holds the mean since the last."""
        total, before = 0.0, 0
        for entry in self.steps:
            total += entry.get("step_time", 0.0) * (entry["step"] - before)
            before = entry["step"]
        return total

    @property
    def gpus(self) -> int:
        """GPUs that trained: one for each process of the last session that had any."""
        for session in reversed(self.sessions):
            hardware = session.get("hardware")
            if isinstance(hardware, dict) and hardware.get("gpus"):
                processes = session.get("processes")
                return processes if isinstance(processes, int) else 1
        return 0


def read_run(path: Path) -> RunRecord:
    """Read what is in a run's output folder, but for its completions.

    Raises:
        ConfigError: if it is no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder")
    if not any((path / mark).exists() for mark in MARKS):
        raise ConfigError(
            f"{path}: not the output folder of a run; it has none of {', '.join(MARKS)}"
        )
    run = RunRecord(path, path.resolve().name)
    read_config(run)
    read_metrics(run)
    read_evaluation(run)
    run.sessions = read_sessions(path / "environment.json")
    run.is_running = is_locked(path / ".lock")
    return run


def read_config(run: RunRecord) -> None:
    file = run.path / "config.yaml"
    if not file.exists():
        run.problems.append("config.yaml is missing")
        return
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        pairs = flat(content)
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        run.problems.append("config.yaml cannot be read")
        return
    for key, value in pairs.items():
        if key.rpartition(".")[2] in SECRETS and value:
            value = "(not shown)"
        run.config[key] = value


def read_metrics(run: RunRecord) -> None:
    file = run.path / "metrics.jsonl"
    if not file.exists():
        run.problems.append("metrics.jsonl is missing: no step has been logged")
        return
    try:
        lines = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError:
        run.problems.append("metrics.jsonl cannot be read")
        return

    # A line that comes later replaces an earlier one of the same step
    steps, evals, unreadable = {}, {}, 0
    for line in lines:
        if not line.strip():
            continue
        entry = read_line(line)
        if entry is None:
            unreadable += 1
        elif "eval_loss" in entry or "eval_reward" in entry:
            evals[entry["step"]] = without_prefix(entry, "eval_")
        else:
            steps[entry["step"]] = entry
    if unreadable:
        run.problems.append(f"metrics.jsonl: {unreadable} of its lines cannot be read")
    run.steps = [steps[step] for step in sorted(steps)]
    run.evals = [evals[step] for step in sorted(evals)]


def read_line(line: str) -> dict[str, Any] | None:
    """The metrics in a line of metrics.jsonl that are of use; None if it is no such line."""
    content = entry_of(line)
    if content is None:
        return None
    step = content["step"]
    if isinstance(step, bool) or not 0 <= step < 2**53:
        return None
    entry: dict[str, Any] = {"step": step}
    for name, value in content.items():
        if name == "step":
            continue
        if name == "watchdog" and isinstance(value, list):
            entry[name] = [str(word) for word in value]
        elif name == "diagnoses" and isinstance(value, dict):
            entry[name] = {str(key): str(words) for key, words in value.items()}
        elif name not in ("watchdog", "diagnoses") and is_finite_number(value):
            entry[name] = float(value)
    return entry


def without_prefix(entry: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in entry.items()}


def read_evaluation(run: RunRecord) -> None:
    file = run.path / "evaluation.json"
    if not file.exists():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        run.evaluation = content
    else:
        run.problems.append("evaluation.json cannot be read")


def is_locked(lock: Path) -> bool:
    """Whether a run holds the lock of its folder."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def is_finite_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and not math.isnan(value)


def curve_of(entries: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    steps, values = [], []
    for entry in entries:
        if name in entry:
            steps.append(entry["step"])
            values.append(entry[name])
    return steps, values


def mean_parts(run: RunRecord) -> dict[str, float]:
    """Mean seconds of each part of a step, of the parts that were logged."""
    means = {}
    for part in PARTS:
        _, values = run.curve(f"time/{part}")
        if values:
            means[part] = sum(values) / len(values)
    return means
