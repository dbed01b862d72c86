"""Picks the completions that a report shows, group by group, out of a run's Parquet files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet

from job.report.run_record import RunRecord, is_finite_number

MAX_COMPLETIONS = 2000  # in one report, of all its runs together
MAX_JSON_BYTES = 7_000_000  # of them; the rest of a report stays below 3 MB
MAX_CHARACTERS = 6000  # of one text; longer ones lose their middle
FLAT = 1e-6  # totals that differ by less are equal, as in training

# Columns that have a place of their own. Every other number is shown as a reward.
OWN_COLUMNS = (
    "step",
    "group",
    "total",
    "advantage",
    "correct",
    "cheating",
)

Item = TypeVar("Item")


def read_groups(run: RunRecord, place: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Groups of completions, spread evenly over the run, the first and the last step included.

    A file that cannot be read is named in `run.problems`.

    Args:
        place: the number of the run in the report.
        limit: at most so many completions.

    Returns:
        The groups, by rising step, and how many completions the run has logged, about: those of the
        files that were read, times the share of files that were. A group is what the page gets as
        JSON:

            run, step, prompt
            flat: whether its totals are all equal
            completions: each with text, thinking, turns, status, detail, cheating, correct, total,
                advantage and rewards; what was not logged is null
    """
    files = sorted((run.path / "completions").glob("completions_*.parquet"), key=step_of_file)
    if not files:
        run.problems.append("no completions were logged")
        return [], 0

    # As many files as the limit allows, judged by the size of the last that can be read
    unreadable: list[str] = []
    typical = 0
    for file in reversed(files):
        typical = len(read_rows(file, unreadable))
        if typical:
            break
    chosen = spread(files, max(limit // max(typical, 1), 1))

    size = run.config.get("grpo.num_generations")
    groups = []
    for file in chosen:
        rows = read_rows(file, unreadable)
        for members in grouped(rows, size):
            groups.append(group_of(members, place))
    if unreadable:
        names = ", ".join(dict.fromkeys(unreadable))
        run.problems.append(f"completions that cannot be read (or are still written): {names}")
    logged = sum(len(group["completions"]) for group in groups)
    return within(groups, limit), logged * len(files) // len(chosen)


def step_of_file(file: Path) -> int:
    """The step in the name of a Parquet file; -1 if it has none."""
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else -1


def read_rows(file: Path, unreadable: list[str]) -> list[dict[str, Any]]:
    """The rows of a Parquet file. If it cannot be read, its name is added to `unreadable`."""
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except Exception:  # pyarrow raises errors of many types for a damaged file
        unreadable.append(file.name)
        return []


def grouped(rows: Sequence[dict[str, Any]], size: Any) -> list[list[dict[str, Any]]]:
    """The rows of each group, in order.

    Args:
        size: completions of a group, for files of older versions, which have no column "group".
            Without it, a group is a run of equal prompts.
    """
    groups: list[list[dict[str, Any]]] = []
    before = None
    for i, row in enumerate(rows):
        key = row.get("prompt")
        if "group" in row:
            key = row["group"]
        elif isinstance(size, int) and size > 0:
            key = i // size
        if not groups or key != before:
            groups.append([])
        groups[-1].append(row)
        before = key
    return groups


def group_of(rows: Sequence[dict[str, Any]], place: int) -> dict[str, Any]:
    """A group as `read_groups` describes it."""
    step = rows[0].get("step")
    return {
        "run": place,
        "step": step if isinstance(step, int) else -1,
        "prompt": shortened(rows[0].get("prompt")),
        "flat": is_flat(rows),
        "completions": [completion_of(row) for row in rows],
    }


def is_flat(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether all totals of a group are equal, so that nothing is learned from it.

    Older versions logged no totals. There the advantages are all 0.
    """
    if len(rows) < 2:
        return False
    totals = [number(row.get("total")) for row in rows]
    known = [total for total in totals if total is not None]
    if "total" in rows[0]:
        return not known or max(known) - min(known) < FLAT
    advantages = [number(row.get("advantage")) for row in rows]
    return all(advantage is not None and abs(advantage) < FLAT for advantage in advantages)


def completion_of(row: dict[str, Any]) -> dict[str, Any]:
    """A completion as `read_groups` describes it."""
    # The answer apart from the thinking, where the model thinks
    text = row.get("answer")
    if text is None:
        text = row.get("completion")
    rewards = {}
    for name, value in row.items():
        if name not in OWN_COLUMNS and number(value) is not None:
            rewards[name] = number(value)
    correct = row.get("correct")
    return {
        "text": shortened(text),
        "thinking": shortened(row.get("thinking")),
        "turns": turns_of(row.get("transcript")),
        "status": shortened(row.get("status")),
        "detail": shortened(row.get("detail")),
        "cheating": shortened(row.get("cheating")),
        "correct": correct if isinstance(correct, bool) else None,
        "total": number(row.get("total")),
        "advantage": number(row.get("advantage")),
        "rewards": rewards,
    }


def turns_of(transcript: Any) -> list[dict[str, str]]:
    """What was said in a completion of several turns, each with who, text and status.

    Args:
        transcript: JSON of its messages. None, or what cannot be read, has no turns.
    """
    try:
        messages = json.loads(transcript)
    except (TypeError, ValueError):
        return []
    if not isinstance(messages, list) or len(messages) < 2:
        return []
    found = []
    for message in messages:
        if isinstance(message, dict):
            found += parts_of(message)
    return found


def parts_of(message: dict[str, Any]) -> list[dict[str, str]]:
    """A message: its text, and each of its calls by itself."""
    role, name = message.get("role"), message.get("name")
    who = {"assistant": "model", "tool": f"result of {name}"}.get(role, str(role))
    parts = []
    if message.get("thinking"):
        parts.append({"who": "thinking", "text": shortened(message["thinking"]), "status": ""})
    if message.get("content") or not message.get("tool_calls"):
        text = shortened(message.get("content"))
        parts.append({"who": who, "text": text, "status": str(message.get("status", ""))})
    for call in message.get("tool_calls") or []:
        function = call.get("function", {})
        arguments = function.get("arguments")
        text = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, dict) and list(arguments) == ["code"]:
            text = str(arguments["code"])  # a program is read in lines
        called = f"call of {function.get('name')}"
        parts.append({"who": called, "text": shortened(text), "status": ""})
    return parts


def number(value: Any) -> float | None:
    """A finite number, to five digits. None for anything else."""
    if not is_finite_number(value):
        return None
    return float(f"{value:.5g}")


def shortened(value: Any) -> str:
    """A text without its middle if it is long. Empty for None."""
    if value is None:
        return ""
    text = str(value)
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[… {left_out} characters are left out here …]\n{text[-half:]}"


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at even distances, the last included.

    From two on, the first is included as well.
    """
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    step = (len(items) - 1) / (count - 1)
    return [items[round(i * step)] for i in range(count)]


def within(groups: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """As many whole groups, spread evenly, as have at most `limit` completions together."""
    total = sum(len(group["completions"]) for group in groups)
    while total > limit and len(groups) > 1:
        fewer = max(min(len(groups) * limit // total, len(groups) - 1), 1)
        groups = spread(groups, fewer)
        total = sum(len(group["completions"]) for group in groups)
    if total > limit:
        groups = [groups[0] | {"completions": groups[0]["completions"][:limit]}]
    return groups


def within_bytes(groups: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """As many whole groups, spread evenly, as take at most `limit` bytes in the page together."""
    while groups:
        size = len(safe_json(with_prompts_once(groups)))
        if size <= limit:
            break
        fewer = min(len(groups) * limit // size, len(groups) - 1)
        if fewer < 1:
            return []
        groups = spread(groups, fewer)
    return groups


def with_prompts_once(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What the script of the page reads: prompts, and groups that name theirs by its number."""
    places: dict[str, int] = {}
    numbered = []
    for group in groups:
        place = places.setdefault(group["prompt"], len(places))
        numbered.append(group | {"prompt": place})
    return {"prompts": list(places), "groups": numbered}


def safe_json(content: Any) -> str:
    """JSON in plain ASCII that can end neither the script element around it nor begin a comment."""
    text = json.dumps(content, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
