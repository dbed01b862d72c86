"""Which rows a run trains on, and which it keeps for evaluation: of one task, or of several that
are mixed.

Held out means unseen: a prompt that is evaluated on is never trained on. Prompts are compared by
their text, after white space is folded. The exception is a task that has one prompt for all rows
and draws the inputs of each completion (matmul, game_2048): its evaluation sees the same prompt and
other inputs.
"""

import itertools
from collections.abc import Container, Sequence
from typing import Any

import tasks
from tasks import prompt_key
from tasks.data import columns

Row = dict[str, Any]


def mixed_rows(
    mixture: Sequence[tasks.Options], trains: bool = True
) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows to evaluate on) of all tasks, each with the columns that
    `tasks.labelled` gives it.

    Of several tasks each gives its weight's share of all their rows, and repeats its own if it has
    too few. A column that a task does not have is None in its rows.

    Args:
        trains: whether rows are trained on. If not, all of them may be held out.

    Raises:
        ValueError: if a row is not well-formed, or no row is left to train on.
    """
    training, evaluation = [], []
    for options in mixture:
        trained_on, held_out = rows_of(options, trains)
        training.append(trained_on)
        evaluation += held_out
    if len(mixture) > 1:
        training = share_out(training, [options.weight for options in mixture])
        evaluation = unseen_by_others(evaluation, training)
    trained_on = list(itertools.chain.from_iterable(training))
    names = dict.fromkeys(name for row in [*trained_on, *evaluation] for name in row)
    trained_on, evaluation = fill_columns(trained_on, names), fill_columns(evaluation, names)
    if len(mixture) > 1:
        share_columns([*trained_on, *evaluation])
    return trained_on, evaluation


def rows_of(options: tasks.Options, trains: bool = True) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows to evaluate on) of one task: the task's own `eval_rows`, and of its
    `rows` those with the last `num_eval_rows` prompts."""
    task = tasks.load(options.type)
    rows = [tasks.labelled(row, options) for row in tasks.made_by(task, "rows", options)]
    own = []
    if hasattr(task, "eval_rows"):
        made = tasks.made_by(task, "eval_rows", options)
        own = [tasks.labelled(row, options) for row in made]
    trained_on, held_out = hold_out_last(rows, options, trains)
    return trained_on, unseen(own, trained_on, options) + held_out


def hold_out_last(
    rows: list[Row], options: tasks.Options, trains: bool = True
) -> tuple[list[Row], list[Row]]:
    """(the rest, one row of each of the last `num_eval_rows` prompts). All rows with those prompts
    are taken out."""
    count = options.num_eval_rows
    if not count:
        return rows, []
    first_of = {}
    for row in rows:
        first_of.setdefault(prompt_key(row), row)
    if has_fresh_inputs(rows, options):
        return rows, rows[:1] * count
    if trains and count >= len(first_of):
        raise ValueError(
            f"{options.type}: num_eval_rows {count} leaves none of its {len(first_of)} different "
            "prompts to train on"
        )
    held_out = dict(list(first_of.items())[-count:])
    return without_prompts(rows, held_out), list(held_out.values())


def has_fresh_inputs(rows: Sequence[Row], options: tasks.Options) -> bool:
    """Whether rows of a task can be evaluated on the prompt that is trained on: there is one, and
    its inputs are drawn for each completion."""
    if getattr(tasks.load(options.type), "FIXED_INPUTS", False):
        return False
    return len({prompt_key(row) for row in rows}) == 1


def unseen_by_others(evaluation: list[Row], training: Sequence[list[Row]]) -> list[Row]:
    """The rows to evaluate on whose prompts no other task trains on."""
    trained_on: dict[str, set[str]] = {}  # by prompt: the tasks
    for row in itertools.chain.from_iterable(training):
        trained_on.setdefault(prompt_key(row), set()).add(tasks.type_of(row))
    kept = []
    for row in evaluation:
        if not trained_on.get(prompt_key(row), set()) - {tasks.type_of(row)}:
            kept.append(row)
    if len(kept) < len(evaluation):
        tasks.note_once(
            f"{len(evaluation) - len(kept)} of {len(evaluation)} rows for evaluation have prompts "
            "that another task trains on; they are left out"
        )
    return kept


def without_prompts(rows: list[Row], keys: Container[str]) -> list[Row]:
    """The rows whose prompts have none of these keys (see `prompt_key`)."""
    return [row for row in rows if prompt_key(row) not in keys]


def unseen(evaluation: list[Row], trained_on: list[Row], options: tasks.Options) -> list[Row]:
    """The rows of a task's own evaluation whose prompts are not trained on; how many are left out
    is told."""
    seen = {prompt_key(row) for row in trained_on}
    kept = without_prompts(evaluation, seen)
    if len(kept) < len(evaluation):
        tasks.note_once(
            f"{options.type}: {len(evaluation) - len(kept)} of its {len(evaluation)} rows for "
            "evaluation have prompts that are trained on; they are left out"
        )
    return kept


def share_out(parts: Sequence[list[Row]], weights: Sequence[float]) -> list[list[Row]]:
    """As many rows as there are in all, each part with its weight's share of them, in turn from the
    start."""
    total = sum(map(len, parts))
    shared = []
    for rows, weight in zip(parts, weights, strict=True):
        count = max(round(total * weight / sum(weights)), 1)
        shared.append(list(itertools.islice(itertools.cycle(rows), count)))
    return shared


def share_columns(rows: Sequence[Row]) -> None:
    """Make answers that are numbers in one task and texts in another texts, which mean the same.

    Raises:
        ValueError: for another column that holds values of different kinds.
    """
    for name in rows[0]:
        values = [row[name] for row in rows]
        if columns.fits(values):
            continue
        if name != "answer" or not all(map(columns.is_simple, values)):
            raise ValueError(
                f"column {name} holds values of different kinds in these tasks, which no table "
                "holds; give it another name in one of them (jsonl: columns)"
            )
        for row in rows:
            row[name] = columns.plain_answer(row[name])


def fill_columns(rows: Sequence[Row], names: dict[str, None]) -> list[Row]:
    return [{name: row.get(name) for name in names} for row in rows]
