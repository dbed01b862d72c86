"""Rows of your own: from files (JSON lines, JSON, CSV, Parquet) or a dataset of the Hub.

    {"prompt": [{"role": "user", "content": "Calculate 15 * 23"}], "answer": 345,
    "reasoning_effort": "low"}

`prompt` is a list of messages (role and content) or a text, which becomes one user message.
`reasoning_effort` is low, medium or high; a row without one gets that of the config. `answer`, and
any other column, reaches the reward functions by its name. The default reward compares the
conclusion with `answer`, by value (see tasks/reasoning.py); where no row has an answer, name
rewards of your own in task.rewards. An `answer` that is the number 0 in every row is the
placeholder that some data sets carry, and counts as none. It may be a worked solution that ends in
the answer ("... #### 72", "\\boxed{72}"): its conclusion is what is compared.

tasks/data/ finds the rows and reads them; tasks/data/columns.py says under which other names the
two are recognised.

A prompt here need not ask for a marker such as "Answer:". Where a completion has none, its last
line is the conclusion if it is a value or ends in one.

All rows are read and checked when the config is: a mistake costs no GPU time. More than
STREAMED_ROWS of them are streamed: the first SAMPLED_ROWS are read then, and the others in
training.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

import tasks
from sandbox import Sandbox, verifier
from tasks import Grade, note_once, prompt_key, reasoning
from tasks import Options as SharedOptions
from tasks.data import columns, sources
from tasks.data.columns import Table, Wishes
from tasks.data.mistakes import Mistakes, RowMistake, shown_places

STREAMED_ROWS = 200_000  # more are not held in memory
SAMPLED_ROWS = 10_000  # of a stream: read and checked before training

REWARDS = ["correct_conclusion"]
CURRICULUM_KEYS = ["free_characters"]
FIXED_INPUTS = True
KEY_HINTS = {
    "prompt": "the rows hold the prompts; task.prompt_template puts a text around them",
    "problems": "the rows are those of task.data",
    "file": "write task.data",
    "path": "write task.data",
    "dataset": "write task.data",
    "config": "write task.configuration",
    "subset": "write task.configuration",
    "stream": "write task.streaming",
}

# Rewards that compare
COMPARING = {"correct_conclusion", "consistency", "correctness_check", "correctness_partial"}

# Rewards that tell completions apart by the answer alone
NEEDS_ANSWER = {"correct_conclusion", "correctness_check", "correctness_partial"}

# Of the first row of the default data. A last line that ends in the value is right here.
REFERENCE = reasoning.REFERENCE
SLOWER: list[str] = []  # the one default reward knows only right and wrong
WRONG = [text for text in reasoning.WRONG if text not in ("345", reasoning.STEPS.format(345))]
CHEAT = [*reasoning.CHEAT, "15 * 23"]


@dataclass(frozen=True)
class Options(SharedOptions):
    num_rows: int | None = None  # rows in turn, as many as this; null: each row once
    data: str = "configs/arithmetic.jsonl"  # a file, a glob, or the id of a Hub dataset
    # {name for the task: name in the data}; null: the names that are known
    columns: Any = None
    system_prompt: str | None = None  # in front of prompts that have none of their own
    prompt_template: str | None = None  # {prompt} and {COLUMN} become what the row has there
    configuration: str | None = None  # of a Hub dataset
    split: str = "train"  # of a Hub dataset
    revision: str | None = None  # of a Hub dataset: a branch, a tag or a commit
    # Rows are read while they are trained on; auto: where they are very many
    streaming: Literal["auto", True, False] = "auto"
    eval_split: str | None = None  # of a Hub dataset: its rows are for evaluation
    eval_share: float = 0.0  # else this share of the prompts is held out, chosen by their text
    # What is done with rows whose answer is unclear
    unreadable_answers: Literal["refuse", "drop"] = "refuse"
    # The prompts ask for a marker such as "Answer:": a last line without one does not count
    require_marker: bool = False
    # Longer completions pay the length_penalty, if that is among the rewards
    free_characters: int = 2000

    def __post_init__(self):
        mistakes = list(own_mistakes(self))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        training, _ = split_rows(self)
        if not training:
            raise ValueError(f"data: {self.data} holds no row to train on")
        paid = tasks.reward_weights(self.type, self.rewards)
        if NEEDS_ANSWER.issuperset(paid) and all(answer_of(row) is None for row in training):
            raise ValueError(
                f"rewards: no row of {self.data} has an answer to compare with (an empty field "
                "is none, and so is a 0 in every row); name the column of the answers in "
                "task.columns, as in {answer: COLUMN}, or name reward functions in task.rewards"
            )
        compared = compares(self) and any(answer_of(row) is not None for row in training)
        if compared and not verifier.installed():
            raise ValueError(verifier.NOT_INSTALLED)


def own_mistakes(options: Options) -> Iterator[str]:
    """What is wrong with the keys themselves."""
    if not 0.0 <= options.eval_share < 1.0:
        yield f"eval_share: must be at least 0 and below 1, not {options.eval_share}"
    if options.free_characters < 1:
        yield f"free_characters: must be above 0, not {options.free_characters}"
    for key in ("system_prompt", "prompt_template"):
        text = getattr(options, key)
        if text is not None and not text.strip():
            yield f"{key}: is empty; null stands for none"
    yield from column_mistakes(options.columns)


def column_mistakes(named: Any) -> Iterator[str]:
    """What is wrong with the key `columns`."""
    if named is None:
        return
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named.values()):
        yield (
            "columns: must be a mapping, as in {prompt: question, answer: solution} "
            f"with a space behind each colon, not {named!r}"
        )
        return
    for ours in named:
        if ours in tasks.RESERVED_COLUMNS:
            yield f"columns: {ours} is a name that the trainer itself uses"


def rows(options: Options) -> list[dict[str, Any]]:
    """The training rows, in order and in turn up to num_rows."""
    training, _ = split_rows(options)
    wanted = options.num_rows or len(training)
    if wanted < len(training) and wanted > 1:  # one row is what check.py asks for
        note_once(
            f"task.num_rows: the first {wanted} of {len(training)} rows are used; null uses all"
        )
    if is_streamed(options):
        wanted = min(wanted, len(training))
    if wanted > len(training):
        note_once(f"{len(training)} rows are repeated to {wanted} (task.num_rows); null: each once")
    return list(itertools.islice(itertools.cycle(training), wanted))


def eval_rows(options: Options) -> list[dict[str, Any]]:
    """The rows that are held out, each once."""
    return split_rows(options)[1]


# ---- reading them


@dataclass(frozen=True)
class Query:
    """Everything that the rows of a split depend on."""

    source: sources.Files | sources.HubDataset
    split: str
    wishes: Wishes
    shown: str  # the data set in messages
    compares: bool  # whether a reward compares answers
    rewards: tuple[str, ...]  # their names
    drops: bool  # whether rows with unreadable answers are left out
    limit: int | None = None  # rows that are read


def query_of(options: Options, split: str) -> Query:
    """The query for one split.

    Raises:
        ValueError: if `data` is not there, or a key does not go with it.
    """
    source = source_of(options)
    if isinstance(source, sources.Files):
        for key in ("eval_split", "configuration", "revision"):
            if getattr(options, key):
                raise ValueError(
                    f"{key}: is for a dataset of the Hub, and {options.data} is a file; "
                    "leave it out (task.eval_share holds rows of files out)"
                )
        if options.split != "train":
            raise ValueError(
                f"split: is for a dataset of the Hub, and {options.data} is a file; leave it out"
            )
    return Query(
        source=source,
        split=split,
        wishes=Wishes(
            tuple((options.columns or {}).items()), options.system_prompt, options.prompt_template
        ),
        shown=options.data,
        compares=compares(options),
        rewards=tuple(tasks.reward_weights(options.type, options.rewards)),
        drops=options.unreadable_answers == "drop",
        limit=SAMPLED_ROWS if is_streamed(options) else None,
    )


def is_streamed(options: Options) -> bool:
    """Whether rows are read while they are trained on."""
    if options.streaming != "auto":
        return options.streaming
    return row_count(source_of(options), options.split) > STREAMED_ROWS


def source_of(options: Options) -> sources.Files | sources.HubDataset:
    """Where the rows are.

    Raises:
        ValueError: for a file that is not there.
    """
    source = sources.find(
        options.data, options.configuration, options.revision, options.streaming is True
    )
    if options.streaming == "auto" and isinstance(source, sources.HubDataset):
        return source.streamed_above(options.split, STREAMED_ROWS)
    return source


@functools.lru_cache(maxsize=4)
def row_count(source: sources.Files | sources.HubDataset, split: str) -> int:
    return source.count(split, STREAMED_ROWS)


def split_rows(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows); of a stream, those among the first SAMPLED_ROWS.

    Raises:
        ValueError: with all mistakes, one line for each kind.
    """
    training = read_split(query_of(options, options.split)).rows
    if options.eval_split:
        return training, read_split(query_of(options, options.eval_split)).rows
    if is_streamed(options):
        held_out = [row for row in training if is_held_out(row, options.eval_share)]
        kept = [row for row in training if not is_held_out(row, options.eval_share)]
        return kept, held_out
    return hold_out(training, options.eval_share)


@functools.lru_cache(maxsize=4)
def read_split(query: Query) -> Table:
    """The rows of one split.

    Raises:
        ValueError: with all mistakes, one line for each kind.
    """
    mistakes = Mistakes()
    placed = itertools.islice(query.source.rows(query.split), query.limit)
    table = columns.read_table(placed, query.wishes, query.shown, mistakes)
    lines = mistakes.lines()
    if query.compares:
        table, unclear = readable(table)
        if unclear:
            total = len(table.rows) + unclear.count
            count = f"{unclear.count} of {total} rows have an answer that cannot be read"
            if query.drops:
                head = f"{query.shown}: {count} and are left out:"
                note_once("\n".join([head, *unclear.lines()]))
            else:
                advice = f"{count}; task.unreadable_answers: drop leaves them out"
                lines += [f"{line}; {advice}" for line in unclear.lines()]
    if lines:
        raise ValueError("\n".join(f"data: {line}" for line in lines))
    if "correct_conclusion" in query.rewards:
        note_rows_without_answer(table, query)
    if table.note:
        note_once(table.note)
    if table.as_json:
        note_once(
            f"{query.shown}: {', '.join(table.as_json)}: of different kinds, which no table holds; "
            "the values are passed on as JSON texts"
        )
    return table


def note_rows_without_answer(table: Table, query: Query) -> None:
    """Tell which rows correct_conclusion gives no reward. Where no row has an answer, the options
    say so."""
    places = []
    for place, row in zip(table.places, table.rows, strict=True):
        if answer_of(row) is None:
            places.append(place)
    if not places or len(places) == len(table.rows):
        return
    consequence = "so only the other rewards count"
    if set(query.rewards) == {"correct_conclusion"}:
        consequence = "so nothing is learned from it"
        if len(places) > 1:
            consequence = "so nothing is learned from them"
    note_once(
        f"{counted(places, len(table.rows), query)} no answer ({shown_places(places)}): "
        f"correct_conclusion gives no reward there, {consequence}"
    )


def counted(places: list[str], total: int, query: Query) -> str:
    """As in "data.csv: 2 of 40 rows have"."""
    verb = "has" if len(places) == 1 else "have"
    return f"{query.shown}: {len(places)} of {total} rows {verb}"


def readable(table: Table) -> tuple[Table, Mistakes]:
    """The rows whose answers can be read, and what is wrong with the others."""
    kept, places, unclear = [], [], Mistakes()
    for place, row in zip(table.places, table.rows, strict=True):
        why = reasoning.unreadable(answer_of(row))
        if why:
            unclear.add(place, unclear_answer(why))
        else:
            kept.append(row)
            places.append(place)
    return replace(table, rows=kept, places=places), unclear


def unclear_answer(why: str) -> RowMistake:
    return RowMistake(f"the answer cannot be read: {why}", "unreadable answer")


def json_columns(options: Options) -> tuple[str, ...]:
    """The columns whose values are passed on as JSON texts."""
    return read_split(query_of(options, options.split)).as_json


def stream(options: Options, mistakes: Mistakes) -> Iterator[dict[str, Any]]:
    """All training rows, one by one, with the columns that the first ones have."""
    query = query_of(options, options.split)
    table = read_split(query)
    sample = [row for _, row in itertools.islice(query.source.rows(query.split), SAMPLED_ROWS)]
    layout = columns.settle(sample, query.wishes, query.shown)
    names = columns.columns_of(table.rows)
    has_text_answers = isinstance(table.rows[0].get("answer"), str)
    given = 0
    for place, raw in query.source.rows(query.split):
        try:
            row = columns.read_row(raw, layout)
            why = reasoning.unreadable(answer_of(row)) if query.compares else ""
            if why:
                raise unclear_answer(why)
        except RowMistake as mistake:
            mistakes.add(place, mistake)
            continue
        if is_held_out(row, options.eval_share):
            continue
        yield shaped(row, names, table.as_json, has_text_answers, place)
        given += 1
        if given == options.num_rows:
            return


def shaped(
    row: dict[str, Any],
    names: Iterable[str],
    as_json: Iterable[str],
    has_text_answers: bool,
    place: str,
) -> dict[str, Any]:
    """A row of a stream with the columns of the first rows."""
    for name in row.keys() - set(names):
        note_once(f"{place}: the first rows have no column {name}; it is not passed on")
    found = {name: row.get(name) for name in names}
    for name in as_json:
        if found[name] is not None:
            found[name] = columns.as_json(found[name])
    if has_text_answers and columns.is_simple(found["answer"]):
        found["answer"] = columns.plain_answer(found["answer"])
    return found


def compares(options: Options) -> bool:
    """Whether a reward of these options compares conclusions with answers."""
    return not COMPARING.isdisjoint(tasks.reward_weights(options.type, options.rewards))


# ---- holding rows out


def hold_out(
    all_rows: list[dict[str, Any]], share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows): a share of the prompts, one at least, chosen by hash. Equal
    prompts stay on one side, and rows that are added move few of the others."""
    if not share:
        return all_rows, []
    hashes: dict[str, bytes] = {}  # by the prompt's key, of the text that came first
    keys = []
    for row in all_rows:
        key = prompt_key(row)
        keys.append(key)
        if key not in hashes:
            hashes[key] = prompt_hash(row)
    by_hash = sorted(hashes, key=hashes.__getitem__)
    held_out_keys = set(by_hash[: max(1, round(share * len(by_hash)))])
    training, held_out = [], []
    for key, row in zip(keys, all_rows, strict=True):
        if key in held_out_keys:
            held_out.append(row)
        else:
            training.append(row)
    return training, held_out


def prompt_hash(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(row["prompt"]).encode()).digest()


def is_held_out(row: Mapping[str, Any], share: float) -> bool:
    """Whether a row of a stream is held out: its prompt alone decides, because nobody knows the
    others."""
    if not share:
        return False
    digest = hashlib.sha256(prompt_key(row).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


# ---- grading


def answer_of(row: Mapping[str, Any]) -> str | None:
    """What the conclusion can be compared with, or None."""
    try:
        return reasoning.read_answer(row.get("answer"))
    except ValueError:
        return None  # a list or mapping, for a reward function of the user's own


def grade(
    completion: Any,
    row: Mapping[str, Any],
    options: Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    """As tasks/reasoning.py: `correct` compares the conclusion with the answer, if there is one."""
    return reasoning.judge(
        completion,
        answer_of(row),
        options.free_characters,
        question_of(row),
        options.require_marker,
    )


def question_of(row: Mapping[str, Any]) -> str:
    """What the row asks, as far as its columns say: the last message of the user, or a column
    "question"."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        return str(prompt[-1].get("content", ""))
    question = row.get("question")
    return question if isinstance(question, str) else ""


def known_answers(row: Mapping[str, Any], options: Options) -> list[tuple[str, Any]]:
    """As tasks/reasoning.py. What the user's own reward functions pay is not known here."""
    answer = answer_of(row)
    paid = tasks.reward_weights(options.type, options.rewards)
    if answer is None or "correct_conclusion" not in paid:
        return []
    asked = {"answer": answer, "question": question_of(row)}
    return reasoning.known_answers(asked, options, options.require_marker)
