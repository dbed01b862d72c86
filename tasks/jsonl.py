"""Rows of your own: JSON lines from a file, several files, or a dataset of the Hub.

    {"prompt": [{"role": "user", "content": "Calculate 15 * 23"}], "answer": 345,
    "reasoning_effort": "low"}

`prompt` is a list of messages (role and content) or a text, which becomes one user message.
`reasoning_effort` is low, medium or high; a row without one gets that of the config. `answer`, and
any other column, reaches the reward functions by its name. The default reward compares the
conclusion with `answer`, by value (see tasks/reasoning.py); where no row has an answer, name
rewards of your own in task.rewards. An `answer` that is the number 0 in every row is the
placeholder that some data sets carry, and counts as none. It may be a worked solution that ends in
the answer ("... #### 72"): its conclusion is what is compared.

A prompt here need not ask for a marker such as "Answer:". Where a completion has none, its last
line is the conclusion if it is a value or ends in one.

All rows are read and checked when the config is: a mistake costs no GPU time.
"""

import functools
import glob
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

import tasks
from sandbox import Sandbox, verifier
from tasks import Grade, note_once, reasoning
from tasks import Options as SharedOptions

ROOT = Path(__file__).resolve().parent.parent
MAX_MISTAKES = 20
ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
RESERVED = {"completions", "completion_ids", "completion", "prompts", "grades", "step", "images",
            "image", "trainer_state", "log_extra", "log_metric", "environments",
            "tools", "evaluation_seed"}  # fmt: skip

REWARDS = ["correct_conclusion"]
CURRICULUM_KEYS = ["free_characters"]

# Rewards that compare
COMPARING = {"correct_conclusion", "consistency", "correctness_check", "correctness_partial"}

# Of the first row of the default data. A last line that ends in the value is right here.
REFERENCE = reasoning.REFERENCE
SLOWER: list[str] = []  # the one default reward knows only right and wrong
WRONG = [text for text in reasoning.WRONG if text not in ("345", reasoning.STEPS.format(345))]
CHEAT = [*reasoning.CHEAT, "15 * 23"]


@dataclass(frozen=True)
class Options(SharedOptions):
    num_rows: int | None = None  # rows in turn, as many as this; null: each row once
    data: str = "configs/arithmetic.jsonl"  # a file, a glob (from the repository), or a Hub dataset
    split: str = "train"  # of a Hub dataset
    eval_split: str | None = None  # of a Hub dataset: its rows are for evaluation
    eval_share: float = 0.0  # else this share of the prompts is held out, chosen by their text
    # What is done with rows whose answer is unclear
    unreadable_answers: Literal["refuse", "drop"] = "refuse"
    # The prompts ask for a marker such as "Answer:": a last line without one does not count
    require_marker: bool = False
    # Longer completions pay the length_penalty, if that is among the rewards
    free_characters: int = 2000

    def __post_init__(self):
        if not 0.0 <= self.eval_share < 1.0:
            raise ValueError(f"eval_share: must be at least 0 and below 1, not {self.eval_share}")
        if self.free_characters < 1:
            raise ValueError(f"free_characters: must be above 0, not {self.free_characters}")
        training, _ = split_rows(self)
        if not training:
            raise ValueError(f"data: {self.data} holds no row to train on")
        if not self.rewards and all(answer_of(row) is None for row in training):
            raise ValueError(
                f"rewards: no row of {self.data} has an answer to compare with (a 0 in every row "
                "is a placeholder); name reward functions in task.rewards"
            )
        compared = compares(self) and any(answer_of(row) is not None for row in training)
        if compared and not verifier.installed():
            raise ValueError(verifier.NOT_INSTALLED)


def rows(options: Options) -> list[dict[str, Any]]:
    """The training rows, in order and in turn up to num_rows."""
    training, _ = split_rows(options)
    wanted = options.num_rows or len(training)
    if wanted < len(training) and wanted > 1:  # one row is what check.py asks for
        note_once(f"task.num_rows: the first {wanted} of {len(training)} rows are used")
    return list(itertools.islice(itertools.cycle(training), wanted))


def eval_rows(options: Options) -> list[dict[str, Any]]:
    """The rows that are held out, each once."""
    return split_rows(options)[1]


def split_rows(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows). Raises ValueError with up to 20 mistakes, each with its
    place."""
    found = find_files(options.data)
    if found:
        return split_files(found, options)
    training = read_split(options.split, options)
    if options.eval_split:
        return training, read_split(options.eval_split, options)
    return hold_out(training, options.eval_share)


def split_files(
    found: list[Path], options: Options
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows) of files."""
    if options.eval_split:
        raise ValueError("eval_split: is for a dataset of the Hub; use eval_share with files")
    if options.split != "train":
        raise ValueError(
            f"split: is for a dataset of the Hub, and {options.data} is a file; leave it out"
        )
    states = []
    for path in found:
        stat = path.stat()
        states.append((path, stat.st_mtime_ns, stat.st_size))
    all_rows = read_files(tuple(states))
    places = (place for path in found for place, _ in read_lines(path))
    return hold_out(readable(all_rows, options, places), options.eval_share)


def read_split(split: str, options: Options) -> list[dict[str, Any]]:
    """The readable rows of one split of a dataset of the Hub."""
    all_rows = read_hub(options.data, split)
    return readable(all_rows, options, hub_places(options.data, split))


def hub_places(name: str, split: str) -> Iterator[str]:
    return (f"{name}[{split}]:{i}" for i in itertools.count())


def compares(options: Options) -> bool:
    """Whether a reward of these options compares conclusions with answers."""
    return not COMPARING.isdisjoint(tasks.reward_weights(options.type, options.rewards))


def readable(
    all_rows: list[dict[str, Any]], options: Options, places: Iterable[str]
) -> list[dict[str, Any]]:
    """The rows whose answers can be read, where a reward compares them. `places` names the rows, in
    order.

    Raises:
        ValueError: with the places of the others, unless options.unreadable_answers is "drop".
    """
    if not compares(options):
        return all_rows
    kept, problems = [], {}
    for i, row in enumerate(all_rows):
        why = reasoning.unreadable(answer_of(row))
        if why:
            problems[i] = why
        else:
            kept.append(row)
    if not problems:
        return all_rows

    # Name the places of the rows that cannot be read.
    named = []
    for i, place in zip(range(len(all_rows)), places, strict=False):  # places may be endless
        if i in problems:
            named.append(f"{place}: the answer cannot be read: {problems[i]}")
    shown = named[:MAX_MISTAKES]
    share = f"{len(problems)} of {len(all_rows)} rows of {options.data}"
    count = f"{share} have an answer that cannot be read"
    if options.unreadable_answers == "refuse":
        advice = f"{count}; task.unreadable_answers: drop leaves them out"
        raise ValueError("\n".join(["data:", *shown, advice]))
    note_once("\n".join([f"{count} and are left out:", *shown]))
    return kept


def hold_out(
    all_rows: list[dict[str, Any]], share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, evaluation rows): a share of the prompts, one at least, chosen by hash. Equal
    prompts stay on one side, and rows that are added move few of the others."""
    if not share:
        return all_rows, []
    keys = [hashlib.sha256(json.dumps(row["prompt"]).encode()).digest() for row in all_rows]
    distinct = sorted(set(keys))
    held_out_keys = set(distinct[: max(1, round(share * len(distinct)))])
    training, held_out = [], []
    for key, row in zip(keys, all_rows, strict=True):
        if key in held_out_keys:
            held_out.append(row)
        else:
            training.append(row)
    return training, held_out


def find_files(data: str) -> list[Path]:
    """The files that `data` means; none for the id of a Hub dataset. Raises ValueError for a file
    that is not there."""
    path = ROOT / Path(data).expanduser()
    if path.is_file():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [match for match in matches if match.is_file()]
    if not found and not is_hub_id(data):
        raise ValueError(f"data: there is no file {data}")
    return found


def is_hub_id(data: str) -> bool:
    """Whether `data` can be the id of a Hub dataset: NAME or OWNER/NAME, and no name of a file."""
    if data.endswith((".jsonl", ".json")):
        return False
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", data) is not None


@functools.lru_cache(maxsize=4)
def read_files(files: tuple[tuple[Path, int, int], ...]) -> list[dict[str, Any]]:
    """The rows of files, each given with its modification time and size, so that a changed file is
    read again."""
    return check_rows(line for path, *_ in files for line in read_lines(path))


def read_lines(path: Path) -> Iterable[tuple[str, Any]]:
    """(place, row) of each line that is not empty; a line that is not JSON gives a ValueError in
    the row's place."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{shown}:{number}", read_line(line)
    except OSError as error:
        raise ValueError(f"data: {path} cannot be read: {error}") from error


def read_line(line: bytes) -> Any:
    """The value of a line of JSON, or a ValueError in its place."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return ValueError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}; "
            "save the file as UTF-8"
        )
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")


@functools.lru_cache(maxsize=4)
def read_hub(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a dataset of the Hub, or of the local cache."""
    from datasets import load_dataset  # here, because it is slow to import

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:  # of many kinds: no such id, split or network, no access
        raise ValueError(
            f"data: no file {name}, and the Hub does not give it (split {split!r}): {error}"
        ) from error
    return check_rows((f"{name}[{split}]:{i}", row) for i, row in enumerate(dataset))


def check_rows(placed: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The rows with messages for prompts, all with the same columns. Raises ValueError with up to
    20 mistakes."""
    places, found, mistakes = [], [], []
    for place, row in placed:
        problem = mistake(row)
        if problem:
            mistakes.append(f"{place}: {problem}")
            if len(mistakes) == MAX_MISTAKES:
                break
        else:
            places.append(place)
            found.append(with_messages(row))

    # Compare the columns, which only makes sense where each row is right in itself.
    if not mistakes:
        if all(map(has_placeholder, found)):
            for row in found:
                del row["answer"]
        mistakes = uneven_columns(places, found)
    if mistakes:
        raise ValueError("\n".join(["data:", *mistakes[:MAX_MISTAKES]]))
    names = columns_of(found)
    return [{name: row.get(name) for name in names} for row in found]


def with_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A copy of a row, in which a prompt that is a text is one message of the user."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return {**row, "prompt": prompt}


def has_placeholder(row: Mapping[str, Any]) -> bool:
    """Whether the answer of a row is the number 0."""
    answer = row.get("answer")
    return type(answer) is int and answer == 0


def columns_of(found: list[dict[str, Any]]) -> list[str]:
    """The names of all columns, in the order in which they first occur."""
    names: dict[str, None] = {}
    for row in found:
        names |= dict.fromkeys(row)
    return list(names)


def mistake(row: Any) -> str:
    """What is wrong with one row, in words; empty if nothing is."""
    if isinstance(row, ValueError):
        return str(row)
    if not isinstance(row, dict):
        return f"must be an object, not {type(row).__name__}"
    prompt = row.get("prompt")
    if prompt is None:
        return f"no prompt; the columns are {list(row)}"
    if not isinstance(prompt, list | str) or not prompt:
        return "prompt must be a list of messages, or a text"
    if isinstance(prompt, list):
        problem = mistake_of_messages(prompt)
        if problem:
            return problem
    effort = row.get("reasoning_effort")
    if effort not in (None, *EFFORTS):
        return f"reasoning_effort must be one of {', '.join(EFFORTS)}, not {effort!r}"
    reserved = RESERVED.intersection(row)
    if reserved:
        return f"the columns {sorted(reserved)} have names that the trainer itself uses"
    return ""


def mistake_of_messages(prompt: list[Any]) -> str:
    """What is wrong with the messages of a prompt, in words; empty if nothing is."""
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            return f"prompt[{i}] must have role and content, and nothing else"
        role, content = message["role"], message["content"]
        if role not in ROLES:
            return f"prompt[{i}].role must be one of {', '.join(ROLES)}, not {role!r}"
        if not isinstance(content, str) or not content.strip():
            return f"prompt[{i}].content must be text"
    if prompt[-1]["role"] == "assistant":
        return "prompt ends with an assistant message: the model is to write that one"
    return ""


def uneven_columns(places: list[str], found: list[dict[str, Any]]) -> list[str]:
    """Columns that no table can hold unchanged, because their values are of different kinds, in
    words. Answers that are numbers here and texts there become texts, which mean the same."""
    mistakes = []
    for name in columns_of(found):
        values = [row.get(name) for row in found]
        try:
            column = pa.array(values).to_pylist()
        except (pa.ArrowException, OverflowError) as error:
            if name == "answer" and all(map(is_simple, values)):
                for row, value in zip(found, values, strict=True):
                    row[name] = reasoning.read_answer(value) if value != "" else None
            else:
                mistakes.append(f"column {name}: its values are of different kinds: {error}")
            continue
        # A table may hold a column and still change its values.
        for place, before, after in zip(places, values, column, strict=True):
            if before != after:
                mistakes.append(f"{place}: column {name} has another form than in other rows")
                break
    return mistakes


def is_simple(value: Any) -> bool:
    """Whether a value is a number or a text, or there is none."""
    return value is None or isinstance(value, bool | int | float | str)


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
