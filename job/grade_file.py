"""Scores completions from elsewhere: JSON lines in, JSON lines out."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tasks
from job.config import Config
from job.episodes.episode import is_nested_deeper
from job.grading import Grader, Scored
from job.grading_pool import GradingPool
from sandbox import Sandbox, Status
from tasks import Grade

MAX_DEPTH = 64  # of a row; deeper ones cannot be handed to another process
BATCH = 64  # rows that are graded together, and the most that are held in memory


@dataclass(frozen=True)
class Row:
    """One line of the file, as it was read."""

    id: Any = None
    task: str = ""
    completion: Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    mistake: str = ""  # what is wrong with the line, in words; such a row is not graded


def grade_file(
    lines: Iterable[str],
    config: Config,
    sandbox: Sandbox | GradingPool,
    default_task: str | None,
    step: int = 0,
) -> Iterator[str]:
    """Yield one JSON line for each line of JSONL, in order.

    Args:
        default_task: the task of rows that name none. None takes the first one of the config.
        step: the training step whose weights and curriculum count.
    """
    if not default_task:
        default_task = config.tasks[0].type
    graders: dict[str, Grader] = {}
    for batch in batched(lines, BATCH):
        rows = [read_row(line, default_task) for line in batch]
        for result in grade_rows(rows, graders, config, sandbox, step):
            yield json.dumps(result)


def batched(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` lines; the last may be shorter. (itertools.batched needs Python 3.12.)"""
    iterator = iter(lines)
    batch = list(itertools.islice(iterator, size))
    while batch:
        yield batch
        batch = list(itertools.islice(iterator, size))


def read_row(line: str, default_task: str) -> Row:
    """Read one line. A line that cannot be read becomes a Row with a mistake."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(mistake=f"not JSON: {error}")
    if not isinstance(row, dict):
        return Row(mistake="not a JSON object")
    if is_nested_deeper(row, MAX_DEPTH):
        return Row(row.get("id"), mistake=f"nested deeper than {MAX_DEPTH}")
    row_id = row.pop("id", None)
    task = row.pop("task", default_task)
    if task not in tasks.names():
        return Row(row_id, mistake=f"no task {task!r}; there are {tasks.names()}")
    if "completion" not in row:
        return Row(row_id, mistake="no completion")
    completion = row.pop("completion")
    return Row(row_id, task, completion, row)


def grade_rows(
    rows: Sequence[Row],
    graders: dict[str, Grader],
    config: Config,
    sandbox: Sandbox | GradingPool,
    step: int,
) -> list[dict[str, Any]]:
    """What is written about each row, in order.

    Args:
        graders: by task; the grader of a task that appears for the first time is added.
    """
    results = [bad_row(row) for row in rows]  # those of readable rows are replaced below

    # Rows of one task are graded together
    places_by_task: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if not row.mistake:
            places_by_task.setdefault(row.task, []).append(place)

    for task, places in places_by_task.items():
        if task not in graders:
            graders[task] = make_grader(task, config, sandbox)
        grader = graders[task]
        completions = [rows[place].completion for place in places]
        columns = [rows[place].columns for place in places]
        scored = grader.score(completions, columns, step)
        weights = grader.weights.at(step)
        for place, item in zip(places, scored, strict=True):
            results[place] = {"id": rows[place].id} | verdict_on(item, weights)
    return results


def make_grader(task: str, config: Config, sandbox: Sandbox | GradingPool) -> Grader:
    """A grader for one task, by its options in the config, or by its defaults if it has none."""
    for options in config.tasks:
        if options.type == task:
            return Grader([options], sandbox)
    return Grader([tasks.load(task).Options(type=task)], sandbox)


def bad_row(row: Row) -> dict[str, Any]:
    """What is written about a row that cannot be graded."""
    grade = Grade(Status.BAD_ROW, detail=row.mistake)
    return {"id": row.id} | verdict_on(Scored(grade, {}), {})


def verdict_on(item: Scored, weights: Mapping[str, float]) -> dict[str, Any]:
    """What is written about one completion, besides its id."""
    return {
        "status": str(item.grade.status),
        "rewards": {name.rpartition(":")[2]: reward for name, reward in item.rewards.items()},
        "total": float(item.total(weights)),
        "cheating": bool(item.grade.cheating),
        "correct": item.grade.correct,
        "detail": item.why,
    }
