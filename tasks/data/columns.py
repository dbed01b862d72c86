"""What the columns of a data set mean: which is asked, which is the answer, and what of the rest a
reward function can be given.

The names in PROMPTS and ANSWERS are recognised; `task.columns` says otherwise. A name with dots
goes into nested values: reward_model.ground_truth.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks import RESERVED_COLUMNS
from tasks.data.formats import check_text
from tasks.data.mistakes import Mistakes, RowMistake

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
# In the order in which they are looked for
PROMPTS = ("prompt", "messages", "problem", "question", "instruction", "query")
ANSWERS = (
    "answer",
    "reward_model.ground_truth",
    "ground_truth",
    "final_answer",
    "expected_answer",
    "solution",
)
PLACEHOLDER = re.compile(r"\{(\w[\w.]*)\}")
NAME_THEM = "name the column in task.columns, as in {prompt: COLUMN}"
RENAME_THEM = "give them other names with task.columns, as in {my_%s: %s}"


@dataclass(frozen=True)
class Wishes:
    """What the config says of the columns."""

    columns: tuple[tuple[str, str], ...] = ()  # (name for the task, name in the data)
    system_prompt: str | None = None
    prompt_template: str | None = None


@dataclass(frozen=True)
class Layout:
    """Which column of a data set becomes which column of the task."""

    columns: tuple[tuple[str, str], ...]  # (name for the task, name in the data)
    system_prompt: str | None
    prompt_template: str | None
    note: str  # what was recognised, in words; empty if nothing had to be

    @property
    def splits_messages(self) -> bool:
        """Whether a prompt may end with the assistant's message, which then is the answer."""
        return ("prompt", "messages") in self.columns


# ---- which column is which


def settle(rows: Sequence[Any], wishes: Wishes, shown: str) -> Layout:
    """The layout of a data set.

    Args:
        rows: all of them, or the first ones.
        shown: the data set's name in messages.

    Raises:
        ValueError: if the config names a column that is not there.
    """
    names = columns_of(row for row in rows if isinstance(row, Mapping))
    columns = dict(wishes.columns)
    for name in columns.values():
        if names and not has_column(rows, name):
            raise ValueError(f"columns: {no_column(name, names)} in {shown}")
    # A template may be all that asks
    read_by_template = template_columns(wishes.prompt_template, names) - {"prompt"}
    recognised = {}
    if "prompt" not in columns:
        recognised |= recognise("prompt", PROMPTS, rows)
    if "answer" not in columns:
        recognised |= recognise("answer", ANSWERS, rows)
    if read_by_template and "{prompt}" not in (wishes.prompt_template or ""):
        recognised.pop("prompt", None)
    found = [f"{ours} from column {theirs}" for ours, theirs in recognised.items()]
    note = ""
    if found:
        note = f"{shown}: {', '.join(found)} (task.columns changes that)"
    if wishes.prompt_template and names:
        check_template(wishes.prompt_template, names, shown)
    return Layout(
        columns=(*columns.items(), *recognised.items()),
        system_prompt=wishes.system_prompt,
        prompt_template=wishes.prompt_template,
        note=note,
    )


def recognise(ours: str, known: Sequence[str], rows: Sequence[Any]) -> dict[str, str]:
    """{ours: the known name that the rows have, in capitals or not}; empty if they have none, or
    call it as we do."""
    names = columns_of(row for row in rows if isinstance(row, Mapping))
    by_lower = {name.lower(): name for name in reversed(names) if isinstance(name, str)}
    for name in known:
        for written in (name, by_lower.get(name, name)):
            if has_column(rows, written):
                return {} if written == ours else {ours: written}
    return {}


def has_column(rows: Iterable[Any], name: str) -> bool:
    """Whether any of the rows has a value under this name."""
    return any(isinstance(row, Mapping) and value_at(row, name) is not None for row in rows)


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a name with dots; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def no_column(name: str, names: Sequence[str]) -> str:
    others = [other for other in names if other != name]
    close = difflib.get_close_matches(name, others, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no value in a column {name}{hint} The columns are {list(names)}"


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all columns, in the order in which they first occur."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return list(names)


def template_columns(template: str | None, names: Sequence[str]) -> set[str]:
    """The columns that a template names. Other braces, as of LaTeX, are text."""
    known = {"prompt", *names}
    return {name for name in PLACEHOLDER.findall(template or "") if name.partition(".")[0] in known}


def check_template(template: str, names: Sequence[str], shown: str) -> None:
    """Raises:
    ValueError: if no column is in the template, so that all prompts would be the same.
    """
    if not template_columns(template, names):
        raise ValueError(
            f"prompt_template: names no column; write {{prompt}}, or one of {list(names)} of "
            f"{shown} in braces"
        )


# ---- one row


def read_row(row: Any, layout: Layout) -> dict[str, Any]:
    """The task's row: the columns of the data set, and `prompt` as a list of messages.

    Raises:
        RowMistake: if the row cannot be used.
    """
    if isinstance(row, RowMistake):
        raise row
    if not isinstance(row, Mapping):
        raise RowMistake(f"must be an object, not {type(row).__name__}")
    read = dict(row)
    for _, theirs in layout.columns:
        if theirs in RESERVED_COLUMNS:
            read.pop(theirs, None)
    for ours, theirs in layout.columns:
        read[ours] = value_at(row, theirs)
    prompt = read.get("prompt")
    if layout.prompt_template:
        prompt = filled(layout.prompt_template, prompt, read)
    elif prompt is None:
        raise no_prompt(row, layout)
    messages = as_messages(prompt)
    if layout.splits_messages and len(messages) > 1 and is_by(messages[-1], "assistant"):
        *messages, last = messages
        if read.get("answer") is None:
            read["answer"] = last.get("content")
    check_messages(messages)
    if layout.system_prompt and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": layout.system_prompt}, *messages]
    read["prompt"] = messages
    check_other_columns(read)
    return read


def no_prompt(row: Mapping[str, Any], layout: Layout) -> RowMistake:
    column = dict(layout.columns).get("prompt", "prompt")
    if column in row:
        return RowMistake(f"the prompt, column {column!r}, is empty", "empty prompt")
    return RowMistake(f"no prompt; the columns are {list(row)}", "no prompt", NAME_THEM)


def filled(template: str, prompt: Any, row: Mapping[str, Any]) -> Any:
    """The prompt with a template around it; of messages, around the last one."""
    text = prompt
    if isinstance(prompt, list):
        text = ""
        if prompt and isinstance(prompt[-1], Mapping):
            text = prompt[-1].get("content")
    if text is None and "{prompt}" in template:
        raise RowMistake(f"no prompt; the columns are {list(row)}", "no prompt", NAME_THEM)

    def value_of(match: re.Match) -> str:
        name = match[1]
        if name == "prompt":
            return str(text)
        if name.partition(".")[0] not in row:
            return match[0]
        value = value_at(row, name)
        if value is None:
            return ""
        return value if isinstance(value, str) else as_json(value)

    content = PLACEHOLDER.sub(value_of, template)
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        return [*prompt[:-1], {**prompt[-1], "content": content}]
    return content


def as_messages(prompt: Any) -> list[Any]:
    """A prompt as messages: a text is one message of the user.

    Raises:
        RowMistake: if it is neither.
    """
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise RowMistake("prompt must be a list of messages, or a text")
    # A table gives every message the keys of all of them.
    messages = []
    for message in prompt:
        if isinstance(message, Mapping):
            message = {key: value for key, value in message.items() if value is not None}
        messages.append(message)
    return messages


def is_by(message: Any, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role


def check_messages(prompt: Sequence[Any]) -> None:
    """Raises:
    RowMistake: if a message is none, or the last one is the assistant's.
    """
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RowMistake(f"prompt[{i}] must have role and content, and nothing else")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise RowMistake(f"prompt[{i}].role must be one of {', '.join(ROLES)}, not {role!r}")
        if not isinstance(content, str) or not content.strip():
            raise RowMistake(f"prompt[{i}].content must be text")
        check_text(content)
    if prompt[-1]["role"] == "assistant":
        raise RowMistake("prompt ends with an assistant message: the model is to write that one")


def check_other_columns(row: Mapping[str, Any]) -> None:
    """Raises:
    RowMistake: for a value that the task cannot use, or a name that it uses itself.
    """
    effort = row.get("reasoning_effort")
    if effort not in (None, *EFFORTS):
        raise RowMistake(
            f"reasoning_effort must be one of {', '.join(EFFORTS)}, not {effort!r}",
            "reasoning_effort",
        )
    answer = row.get("answer")
    if isinstance(answer, float) and (answer != answer or answer in (float("inf"), -float("inf"))):
        raise RowMistake(f"answer must be a number or text, not {answer}", "answer")
    reserved = sorted(RESERVED_COLUMNS.intersection(row))
    if reserved:
        raise RowMistake(
            f"the columns {reserved} have names that the trainer itself uses",
            remedy=RENAME_THEM % (reserved[0], reserved[0]),
        )


# ---- all rows


@dataclass(frozen=True)
class Table:
    """Rows with the same columns each."""

    rows: list[dict[str, Any]]
    places: list[str]
    as_json: tuple[str, ...] = ()  # columns whose values became JSON texts
    note: str = ""  # what was recognised


def read_table(
    placed: Iterable[tuple[str, Any]], wishes: Wishes, shown: str, mistakes: Mistakes
) -> Table:
    """The rows of a data set, without those that cannot be used, which are added to `mistakes`.

    Raises:
        ValueError: if the config names a column that is not there.
    """
    placed = list(placed)
    layout = settle([row for _, row in placed], wishes, shown)
    rows, places = [], []
    for place, row in placed:
        try:
            rows.append(read_row(row, layout))
            places.append(place)
        except RowMistake as mistake:
            mistakes.add(place, mistake)
    if all(map(has_placeholder, rows)):
        for row in rows:
            del row["answer"]
    names = columns_of(rows)
    rows = [{name: row.get(name) for name in names} for row in rows]
    return Table(rows, places, tuple(even_out(rows, names)), layout.note)


def has_placeholder(row: Mapping[str, Any]) -> bool:
    """Whether the answer of a row is the number 0."""
    answer = row.get("answer")
    return type(answer) is int and answer == 0


def even_out(rows: list[dict[str, Any]], names: Iterable[str]) -> list[str]:
    """Make each column one that a table holds unchanged, in place.

    Answers that are numbers here and texts there become texts, which mean the same. Another column
    whose values are of different kinds becomes JSON texts.

    Returns:
        The names of those.

    Raises:
        ValueError: for answers that are lists or mappings here, and something else there.
    """
    as_texts = []
    for name in names:
        values = [row[name] for row in rows]
        if name == "prompt" or fits(values):
            continue
        if name == "answer":
            if not all(map(is_simple, values)):
                raise ValueError(
                    "data: column answer: its values are of different kinds, lists or mappings "
                    "among them; name another one in task.columns, as in {answer: COLUMN}"
                )
            for row in rows:
                row[name] = plain_answer(row[name])
            continue
        for row in rows:
            if row[name] is not None:
                row[name] = as_json(row[name])
        as_texts.append(name)
    return as_texts


def fits(values: list[Any]) -> bool:
    """Whether a table gives back these values as they are."""
    try:
        column = pa.array(values).to_pylist()
    except (pa.ArrowException, OverflowError, ValueError):
        return False
    return all(map(is_same, values, column))


def is_same(before: Any, after: Any) -> bool:
    if before == after:
        return True
    return before != before and after != after  # NaN, which a table may hold


def is_simple(value: Any) -> bool:
    """Whether a value is a number or a text, or there is none."""
    return value is None or isinstance(value, bool | int | float | str)


def plain_answer(value: Any) -> str | None:
    """A simple answer as text, as tasks/reasoning.py reads it."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
