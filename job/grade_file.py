"""Scores completions from elsewhere: JSON lines in, JSON lines out."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tasks
from job.config import Config
from job.grading import Grader, Scored
from job.grading_pool import GradingPool
from sandbox import Sandbox, Status
from tasks import Grade

BATCH = 64  # rows graded together; what is held in memory of a file of any length


@dataclass(frozen=True)
class Row:
    """One line of the file, read."""

    id: Any = None
    task: str = ""
    completion: Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    mistake: str = ""  # what is wrong with it, in words; then only the id counts


def grade_file(
    lines: Iterable[str],
    config: Config,
    sandbox: Sandbox | GradingPool,
    default_task: str | None,
    step: int = 0,
) -> Iterator[str]:
    """One JSON line for each line of JSONL, in order, as at a training step.

    Args:
        default_task: of a row that names none; None takes the first one of the config.
    """
    graders: dict[str, Grader] = {}
    for batch in batched(lines, BATCH):
        rows = [parse_row(line, default_task or config.tasks[0].type) for line in batch]
        results = [bad_row(row) for row in rows]
        for name in {row.task for row in rows if not row.mistake}:
            if name not in graders:
                configured = [options for options in config.tasks if options.type == name]
                graders[name] = Grader(configured or [tasks.load(name).Options(type=name)], sandbox)
            grader = graders[name]
            own = [i for i, row in enumerate(rows) if row.task == name and not row.mistake]
            scored = grader.score(
                [rows[i].completion for i in own], [rows[i].columns for i in own], step
            )
            for i, item in zip(own, scored, strict=True):
                results[i] = {"id": rows[i].id} | verdict(item, grader.weights.at(step))
        yield from map(json.dumps, results)


def batched(
    lines: Iterable[str], size: int
) -> Iterator[list[str]]:  # itertools.batched is Python 3.12
    iterator = iter(lines)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def parse_row(line: str, default_task: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(mistake=f"not JSON: {error}")
    if not isinstance(row, dict):
        return Row(mistake="not a JSON object")
    row_id = row.pop("id", None)
    task = row.pop("task", default_task)
    if task not in tasks.names():
        return Row(row_id, mistake=f"no task {task!r}; there are {tasks.names()}")
    if "completion" not in row:
        return Row(row_id, mistake="no completion")
    completion = row.pop("completion")
    return Row(row_id, task, completion, row)


def bad_row(row: Row) -> dict[str, Any]:
    grade = Grade(Status.BAD_ROW, detail=row.mistake)
    return {"id": row.id} | verdict(Scored(grade, {}), {})


def verdict(item: Scored, weights: Mapping[str, float]) -> dict[str, Any]:
    """What is written about one completion."""
    return {
        "status": str(item.grade.status),
        "rewards": {name.rpartition(":")[2]: reward for name, reward in item.rewards.items()},
        "total": float(item.total(weights)),
        "cheating": bool(item.grade.cheating),
        "correct": item.grade.correct,
        "detail": item.why,
    }
