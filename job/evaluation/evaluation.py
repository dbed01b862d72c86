"""Evaluates a model on rows that it was not trained on: what it solves, and how
sure that is.

Each row is a problem and gets several completions. Each completion is read, exercised and rewarded
once, as in training. Reward weights are those of the end of their schedules, and the curriculum
does not count, so that evaluations at different steps can be compared.

An evaluation has a folder:

    unfinished.jsonl      the settings, then one line for each completion, while it goes on. A
                          stopped evaluation continues from there
    completions.parquet   every completion with its prompt, its Grade and its rewards
    evaluation.json       the settings and every figure, with its 95 % interval; written last
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from job.chat import Chat, Reading
from job.episodes.loop import Played
from job.errors import ConfigError, OutputError, one_line
from job.evaluation import estimates
from job.evaluation.estimates import Estimate
from job.grading import Grader, Scored, is_correct, is_judged
from job.grading_pool import GradingPool
from job.rows import Row, prompt_key
from sandbox import Sandbox

# Draws the inputs that programs are tried on, and the samples of the model
SEED = 3407
UNFINISHED = "unfinished.jsonl"
COMPLETIONS = "completions.parquet"
RESULT = "evaluation.json"

# What every evaluation.json has
FIGURES = {"settings", "pass_at", "rewards", "status", "tokens", "tasks", "time"}

Record = dict[str, Any]  # one completion with all that is known about it


@dataclass(frozen=True)
class Problem:
    """One row with the prompt that the model is given."""

    id: str  # of its task and its prompt, the same in every evaluation
    number: int  # which of the rows with this prompt it is
    row: Row
    prompt: str
    prompt_ids: list[int]
    # All rows of its task have this prompt, and each completion is tried on inputs of its own
    has_fresh_inputs: bool = False


@dataclass(frozen=True)
class Sampler:
    """How completions are decoded."""

    # Completions of prompts, in order; token ids in, token ids out
    complete: Callable[[list[list[int]]], list[list[int]]]
    batch: int  # completions that are decoded at once
    max_tokens: int  # of one completion
    # Completions of several turns of rows, with their Grades
    play: Callable[[Sequence[Row], Grader], list[Played]] | None = None


# ---- What is asked, and how it is judged


def make_problems(rows: Sequence[Row], chat: Chat, has_fresh_inputs: bool = False) -> list[Problem]:
    """A Problem for each row, in order.

    Args:
        has_fresh_inputs: as `rows.has_fresh_inputs` says of all rows of the task, of which these
            may be a part.
    """
    seen: Counter[str] = Counter()
    problems = []
    for row in rows:
        name = hashlib.sha256(f"{tasks.type_of(row)} {prompt_key(row)}".encode()).hexdigest()[:12]
        prompt = chat.render_row(row)
        number = seen[name]
        seen[name] += 1
        ids = chat.ids(prompt)
        problems.append(Problem(f"{name}-{number}", number, row, prompt, ids, has_fresh_inputs))
    return problems


def digest(problems: Sequence[Problem]) -> str:
    """Which problems an evaluation has, in short: how many, and a hash of their ids."""
    ids = " ".join(problem.id for problem in problems)
    return f"{len(problems)} ({hashlib.sha256(ids.encode()).hexdigest()[:12]})"


def number_in(words: Any) -> str:
    """How many problems a digest is of."""
    return str(words).partition(" ")[0]


def spread(rows: Sequence[Row], count: int | None) -> list[Row]:
    """At most `count` rows, evenly over all of them, so that each task has its share."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def make_grader(mixture: Sequence[tasks.Options], sandbox: Sandbox | GradingPool) -> Grader:
    """A grader that judges every evaluation of these tasks alike: without curriculum, and with the
    same inputs."""
    return Grader([replace(options, curriculum=[]) for options in mixture], sandbox, SEED)


# ---- The evaluation itself


def evaluate(
    problems: Sequence[Problem],
    completions: int,
    sampler: Sampler,
    chat: Chat,
    grader: Grader,
    folder: "EvaluationFolder",
    progress: Callable[[int], None] = lambda completions: None,
    is_stopped: Callable[[], bool] = lambda: False,
    gather: Callable[[list[Record]], list[Record]] = list,
) -> dict[str, Any] | None:
    """Evaluate, or continue where an evaluation was stopped.

    Args:
        completions: of each problem.
        folder: begun, with the settings of this evaluation.
        progress: is told how many completions are new each time that some are finished.
        is_stopped: is asked between batches.
        gather: the records of all processes, where several evaluate together.

    Returns:
        What evaluation.json holds; None if it was stopped.

    Raises:
        RewardError: if a reward function or the grading of a task fails.
        OutputError: if the folder cannot be written.
    """
    records = list(folder.records)
    finished = {record["problem"] for record in records}
    progress(len(records))
    for group in groups(problems, completions, sampler.batch):
        if all(problem.id in finished for problem in group):
            continue
        if is_stopped():
            return None
        fresh = evaluate_group(group, completions, sampler, chat, grader)
        folder.append(fresh)
        records += fresh
        progress(len(fresh))
    return folder.finish(gather(records))


def groups(
    problems: Sequence[Problem], completions: int, batch: int
) -> Iterator[Sequence[Problem]]:
    """The problems that are decoded together: as many as fill a batch, and one at least."""
    size = max(batch // completions, 1)
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def evaluate_group(
    group: Sequence[Problem],
    completions: int,
    sampler: Sampler,
    chat: Chat,
    grader: Grader,
) -> list[Record]:
    """The records of all completions of some problems."""
    # The seed is the group's own, so that a continued evaluation repeats it, and so that two
    # processes do not draw the same. The state of the random numbers is put back, so that training
    # goes on as if there had been no evaluation.
    asked = [problem for problem in group for _ in range(completions)]
    rows = []
    for place, problem in enumerate(asked):
        number = problem.number * completions + place % completions
        rows.append(problem.row | {"evaluation_seed": number})
    began = time.perf_counter()
    with own_random_numbers(seed_of(group)):
        if grader.takes_turns:
            answers = play_answers(rows, sampler, grader)
        else:
            answers = decode_answers(asked, sampler, chat)
    decoding_s = time.perf_counter() - began

    # Grade
    began = time.perf_counter()
    messages = [answer.messages for answer in answers]
    scored = grader.score_completions(messages, [answer.ids for answer in answers], rows)
    grading_s = time.perf_counter() - began

    # Write down
    weights = grader.weights.at(grader.weights.steps()[-1])
    records = []
    for place, (problem, answer, item) in enumerate(zip(asked, answers, scored, strict=True)):
        reading = answer.reading
        records.append(
            {
                "problem": problem.id,
                "number": place % completions,
                "fresh_inputs": problem.has_fresh_inputs,
                "task": tasks.type_of(problem.row),
                "prompt": problem.prompt,
                "question": problem.row["prompt"][-1]["content"],
                "thinking": reading.thinking,
                "answer": reading.content,
                "reached_final": reading.reached_final,
                "tokens": len(answer.ids),
                "cut_off": len(answer.ids) >= sampler.max_tokens,
                **answer.used,
                **judgement(item, problem.row, weights),
                "decoding_s": decoding_s / len(asked),
                "grading_s": grading_s / len(asked),
            }
        )
    return records


@dataclass(frozen=True)
class Decoded:
    """One completion as it was decoded and read."""

    ids: list[int]
    reading: Reading
    messages: list[dict[str, Any]]  # what reward functions get
    used: dict[str, Any]  # columns of a completion of several turns


def decode_answers(asked: Sequence[Problem], sampler: Sampler, chat: Chat) -> list[Decoded]:
    """A completion of each problem, of one turn."""
    completion_ids: list[list[int]] = []
    for start in range(0, len(asked), sampler.batch):
        some = asked[start : start + sampler.batch]
        completion_ids += sampler.complete([problem.prompt_ids for problem in some])
    answers = []
    for problem, ids in zip(asked, completion_ids, strict=True):
        reading = chat.read(ids, problem.prompt)
        answers.append(Decoded(ids, reading, [reading.message()], {}))
    return answers


def play_answers(rows: Sequence[Row], sampler: Sampler, grader: Grader) -> list[Decoded]:
    """A completion of each row, of several turns."""
    answers = []
    for start in range(0, len(rows), sampler.batch):
        for episode in sampler.play(rows[start : start + sampler.batch], grader):
            used = {name: episode.count(name) for name in ("turns", "calls", "failures")}
            used["tool_tokens"] = episode.tool_tokens
            used["transcript"] = json.dumps(episode.messages)
            answers.append(
                Decoded(episode.completion_ids, episode.reading(), episode.completion(), used)
            )
    return answers


def seed_of(group: Sequence[Problem]) -> int:
    """A seed that depends on the problems alone."""
    names = " ".join([str(SEED), *(problem.id for problem in group)])
    return int(hashlib.sha256(names.encode()).hexdigest()[:8], 16)


@contextlib.contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed torch for a while, and put its random numbers back."""
    import torch

    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.current_device()]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def judgement(item: Scored, row: Row, weights: Mapping[str, float]) -> Record:
    """What the Grade and the rewards say about one completion."""
    grade = item.grade
    measures = {}
    for measure in measures_of(tasks.type_of(row)):
        measures[measure.name] = number_or_none(measure.value(grade, row))
    # None where nobody can tell: they count neither as right nor as wrong
    correct = is_correct(grade) if is_judged(grade) else None
    reward = None
    if any(paid is not None for paid in item.rewards.values()):
        reward = float(item.total(weights))
    return {
        "status": str(grade.status),
        "correct": correct,
        "cheating": bool(grade.cheating),
        "passed": float(grade.passed),
        "speedup": number_or_none(grade.speedup),
        "detail": item.why,
        "reward": reward,
        "rewards": {short(name): number_or_none(paid) for name, paid in item.rewards.items()},
        "measures": measures,
    }


def measures_of(task: str) -> Sequence[tasks.Measure]:
    """The figures of a task beside the share that is correct."""
    return getattr(tasks.load(task), "MEASURES", ())


def number_or_none(value: Any) -> float | None:
    """A number that JSON can hold, or None."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def short(reward: str) -> str:
    """The name of a reward function as metrics have it: without its module."""
    return reward.rpartition(":")[2]


# ---- The folder


class EvaluationFolder:
    """The folder of one evaluation. Only one process may write to it.

    Args:
        writes: False in all but the first of several processes. Such a folder holds nothing.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.records: list[Record] = []  # of an evaluation that was stopped
        self.settings: dict[str, Any] = {}

    def finished(self) -> dict[str, Any] | None:
        """What evaluation.json holds; None if there is none, or if it is damaged."""
        result = read_json_file(self.path / RESULT)
        if result is None or not result.keys() >= FIGURES:
            return None
        return result

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse to mix two evaluations.

        Args:
            settings: what must be the same for an evaluation to be continued.

        Raises:
            ConfigError: if the folder holds an evaluation with other settings.
        """
        self.settings = json.loads(json.dumps(settings))
        finished = self.finished()
        if finished:
            self._refuse_other_settings(finished.get("settings", {}))
        for earlier in itertools.islice(read_lines(self.path / UNFINISHED), 1):
            self._refuse_other_settings(earlier)

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder, and read what an evaluation with the same settings left unfinished.

        Raises:
            ConfigError: as `check`.
            OutputError: if it cannot be written.
        """
        self.check(settings)
        if not self.writes:
            return
        unfinished = list(read_lines(self.path / UNFINISHED))
        self.records = whole_problems(unfinished[1:], settings["completions"])
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(line) + "\n" for line in (self.settings, *self.records)]
            with whole_file(self.path / UNFINISHED) as beside:
                beside.write_text("".join(lines), encoding="utf-8")

    def _refuse_other_settings(self, earlier: dict[str, Any]) -> None:
        for key in dict.fromkeys([*self.settings, *earlier]):
            was, is_now = earlier.get(key), self.settings.get(key)
            if was == is_now:
                continue
            differs = f"with another value of {key} ({was!r:.80}, now {is_now!r:.80})"
            if key == "problems":  # see `digest`
                differs = f"of other rows ({number_in(was)}, now {number_in(is_now)})"
            raise ConfigError(
                f"{self.path} holds an evaluation {differs}; "
                "name another folder with --output, or remove that one"
            )

    def append(self, records: Iterable[Record]) -> None:
        """Write down completions as soon as they are judged."""
        if not self.writes:
            return
        with self._writing(), (self.path / UNFINISHED).open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record) + "\n")

    def finish(self, records: list[Record]) -> dict[str, Any]:
        """Write completions.parquet and evaluation.json. Returns what the latter holds."""
        result = {"settings": self.settings} | summarize(records)
        if self.writes:
            with self._writing():
                write_parquet(records, self.path / COMPLETIONS)
                write_json(result, self.path / RESULT)
                (self.path / UNFINISHED).unlink(missing_ok=True)
        return plain(result)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {one_line(error)}") from error


def read_json_file(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file, or it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return content


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, up to a line that was cut off when its writer was killed."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def whole_problems(records: Sequence[Record], completions: int) -> list[Record]:
    """The records of problems that have all their completions."""
    counts = Counter(record["problem"] for record in records)
    return [record for record in records if counts[record["problem"]] == completions]


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A path to write to, so that the file is there as a whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_json(content: Mapping[str, Any], file: Path) -> None:
    text = json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n"
    with whole_file(file) as beside:
        beside.write_text(text, encoding="utf-8")


def write_parquet(records: Sequence[Record], file: Path) -> None:
    """Write one row for each completion. Each reward and each measure has a column of its own."""
    import pyarrow
    from pyarrow import parquet

    names: dict[str, None] = {}
    flat = []
    for record in records:
        row = {key: value for key, value in record.items() if key not in ("rewards", "measures")}
        flat.append(row | record["measures"] | record["rewards"])
        names |= dict.fromkeys(flat[-1])
    columns = {name: [row.get(name) for row in flat] for name in names}
    with whole_file(file) as beside:
        parquet.write_table(pyarrow.table(columns), beside)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: estimates as mappings, and None for NaN."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- What it comes to


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Every figure of an evaluation."""
    by_problem: dict[str, list[Record]] = {}
    for record in records:
        by_problem.setdefault(record["problem"], []).append(record)
    units = independent(by_problem)
    completions = max(map(len, by_problem.values()), default=1)
    shares = mean_estimates(units, ("correct", "cheating", "cut_off", "reached_final", "reward"))

    # pass@1 is the share that is correct. The others need all completions of a problem.
    pass_at = {1: shares["correct"]}
    judged = {name: judged_of(own) for name, own in by_problem.items()}
    for k in estimates.ks_up_to(completions)[1:]:
        values = []
        for own in judged.values():
            if len(own) >= k:
                correct = sum(record["correct"] for record in own)
                values.append(estimates.pass_at_k(len(own), correct, k))
        pass_at[k] = estimates.mean_estimate(values)

    counts = Counter(record["status"] for record in records)
    lengths = [record["tokens"] for record in records]
    decoding_s = sum(record["decoding_s"] for record in records)
    grading_s = sum(record["grading_s"] for record in records)
    return {
        "problems": len(units),
        "unjudged": sum(not judged_of(unit) for unit in units),  # problems without an answer
        "completions": len(records),
        "pass_at": pass_at,
        **shares,
        "rewards": inner_estimates(units, "rewards"),
        "status": {name: count / len(records) for name, count in sorted(counts.items())},
        "tokens": {
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "largest": max(lengths),
        },
        "tasks": {task: summarize_task(task, units) for task in tasks_of(records)},
        "time": {
            "decoding_s": decoding_s,
            "grading_s": grading_s,
            "tokens_per_s": sum(lengths) / max(decoding_s, 1e-9),
            "completions_per_s": len(records) / max(decoding_s + grading_s, 1e-9),
        },
    }


def judged_of(records: Iterable[Record]) -> list[Record]:
    """The records of which it is known whether they are correct."""
    return [record for record in records if record["correct"] is not None]


def tasks_of(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(record["task"] for record in records))


def independent(by_problem: Mapping[str, list[Record]]) -> list[list[Record]]:
    """Groups of records that do not depend on each other: those of each problem.

    Where the task has one prompt, every completion is tried on inputs of its own, so each is a
    group of its own.
    """
    groups = list(by_problem.values())
    records = list(itertools.chain.from_iterable(groups))
    if have_fresh_inputs(records):
        return [[record] for record in records]
    return groups


def have_fresh_inputs(records: Iterable[Record]) -> bool:
    """Whether these completions have one prompt, and inputs of their own."""
    return any(record.get("fresh_inputs") for record in records)


def mean_estimates(units: Sequence[list[Record]], names: Sequence[str]) -> dict[str, Estimate]:
    """The mean of each of these entries of the records, with its interval. None does not count."""
    columns = {name: [[record[name] for record in unit] for unit in units] for name in names}
    return estimates_of(columns)


def inner_estimates(units: Sequence[list[Record]], key: str) -> dict[str, Estimate]:
    """The same for each name inside the entry `key`. None does not count."""
    names = dict.fromkeys(name for unit in units for record in unit for name in record[key])
    columns = {}
    for name in names:
        columns[name] = [[record[key].get(name) for record in unit] for unit in units]
    return estimates_of(columns)


def estimates_of(columns: Mapping[str, list[list[float | None]]]) -> dict[str, Estimate]:
    """The mean of each column, with its interval. A column has a list of values for each unit."""
    if not columns:
        return {}
    sums, counts = [], []
    for column in columns.values():
        known = [[value for value in values if value is not None] for values in column]
        sums.append([float(sum(values)) for values in known])
        counts.append([len(values) for values in known])
    found = estimates.ratio_estimates(np.array(sums).T, np.array(counts).T)
    return dict(zip(columns, found, strict=True))


def summarize_task(task: str, units: Sequence[list[Record]]) -> dict[str, Any]:
    """What one task's completions achieve."""
    own = [unit for unit in units if unit[0]["task"] == task]
    return {
        "problems": len(own),
        "correct": mean_estimates(own, ["correct"])["correct"],
        "measures": {
            measure.name: summarize_measure(measure, own) for measure in measures_of(task)
        },
    }


def summarize_measure(measure: tasks.Measure, units: Sequence[list[Record]]) -> Estimate:
    """One figure of a task. The largest value has no interval."""
    values = [[record["measures"].get(measure.name) for record in unit] for unit in units]
    known = [value for row in values for value in row if value is not None]
    if measure.summary == "largest":
        return Estimate(max(known, default=math.nan), math.nan, math.nan)
    if measure.summary == "mean":
        return estimates_of({measure.name: values})[measure.name]
    logarithms = [[log_or_none(value) for value in row] for row in values]
    found = estimates_of({measure.name: logarithms})[measure.name]
    return Estimate(*(math.exp(part) for part in (found.value, found.low, found.high)))


def log_or_none(value: float | None) -> float | None:
    if value is None or value <= 0:
        return None
    return math.log(value)


# ---- Two evaluations of the same problems


@dataclass(frozen=True)
class Comparison:
    """How much better the second of two evaluations is, on the problems that both have."""

    problems: int
    first: Estimate  # pass@1
    second: Estimate
    difference: Estimate  # of pass@1, with the interval of a paired bootstrap
    p_value: float
    better: int  # problems that the second solves more often
    worse: tuple["Worse", ...]  # those that it solves less often, the worst first

    @property
    def sentence(self) -> str:
        """The comparison in one line: 41 % → 63 %, +22 points [15, 29], p < 0.001, 200 problems."""
        points = [100 * part for part in (self.difference.low, self.difference.high)]
        p_value = f"p = {self.p_value:.3f}"
        if self.p_value < 0.001:
            p_value = "p < 0.001"
        ending = "" if self.problems == 1 else "s"
        return (
            f"{percent(self.first.value)} → {percent(self.second.value)}, "
            f"{100 * self.difference.value:+.0f} points [{points[0]:.0f}, {points[1]:.0f}], "
            f"{p_value}, {self.problems} problem{ending}"
        )

    def as_json(self) -> dict[str, Any]:
        return plain(asdict(self) | {"sentence": self.sentence})


@dataclass(frozen=True)
class Worse:
    """A problem that the second model solves less often than the first."""

    problem: str
    question: str  # the last message of its prompt
    first: float  # share of its completions that are correct
    second: float


def compare(first: Sequence[Record], second: Sequence[Record]) -> Comparison:
    """Compare two evaluations, problem by problem.

    Where the task has one prompt, completions are compared one by one: both models face the same
    inputs with their i-th completion.

    Problems without an answer to compare with are left out.

    Raises:
        ConfigError: if they have no problem in common.
    """
    is_fresh = have_fresh_inputs([*first, *second])
    before, after = (by_unit(judged_of(records), is_fresh) for records in (first, second))
    shared = [unit for unit in before if unit in after]
    if not shared:
        what = "problem" if judged_of(first) and judged_of(second) else "problem with an answer"
        raise ConfigError(f"the two evaluations have no {what} in common")
    rates = {unit: (correct_rate(before[unit]), correct_rate(after[unit])) for unit in shared}
    pairs = np.array([rates[unit] for unit in shared])
    differences = pairs[:, 1] - pairs[:, 0]

    # Whole numbers for the exact test
    sizes = [(len(before[unit]), len(after[unit])) for unit in shared]
    scale = math.lcm(*(size for both in sizes for size in both))
    exact = [round(difference * scale) for difference in differences]

    worse = []
    for unit in sorted(shared, key=lambda unit: rates[unit][1] - rates[unit][0]):
        was, is_now = rates[unit]
        if is_now < was:
            record = before[unit][0]
            worse.append(Worse(record["problem"], record["question"], was, is_now))
    return Comparison(
        problems=len(shared),
        first=estimates.mean_estimate(pairs[:, 0]),
        second=estimates.mean_estimate(pairs[:, 1]),
        difference=estimates.mean_estimate(differences),
        p_value=estimates.paired_test(exact),
        better=sum(difference > 0 for difference in exact),
        worse=tuple(worse),
    )


def by_unit(records: Sequence[Record], is_fresh: bool) -> dict[str, list[Record]]:
    """The records of each problem, or of each completion where each has inputs of its own."""
    by_problem: dict[str, list[Record]] = {}
    for record in records:
        by_problem.setdefault(record["problem"], []).append(record)
    if not is_fresh:
        return by_problem
    return {f"{record['problem']}.{record['number']}": [record] for record in records}


def correct_rate(records: Sequence[Record]) -> float:
    return sum(record["correct"] for record in records) / len(records)


def read_completions(folder: Path) -> list[Record]:
    """The records of a finished evaluation, with what a comparison needs.

    Raises:
        ConfigError: if they cannot be read.
    """
    from pyarrow import parquet

    columns = ["problem", "number", "question", "correct"]
    try:
        if "fresh_inputs" in parquet.read_schema(folder / COMPLETIONS).names:  # not in older ones
            columns.append("fresh_inputs")
        return parquet.read_table(folder / COMPLETIONS, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / COMPLETIONS}: cannot be read: {one_line(error)}") from error


# ---- Words


def percent(share: float | None) -> str:
    if share is None or math.isnan(share):
        return "-"
    return f"{100 * share:.0f} %"


def table(titles: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """The figures of one or several evaluations side by side, as evaluation.json holds them."""
    lines = [["", *titles]]
    for section in zip(*(sections(result) for result in results), strict=True):
        for name in dict.fromkeys(itertools.chain.from_iterable(section)):
            cells = [figures.get(name, "-") for figures in section]
            if set(cells) != {"-"}:
                lines.append([name, *cells])
    return aligned(lines)


def unjudged_in_words(result: Mapping[str, Any]) -> str:
    """How many problems pass@k leaves out; empty if there are none."""
    count = result.get("unjudged", 0)
    if not count:
        return ""
    return (
        f"{count} of {result['problems']} problems have no answer to compare with: they are left "
        "out of pass@k"
    )


def sections(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures of an evaluation as text, by name: what was solved, what was paid, and how."""
    solved = {}
    for k, estimate in result["pass_at"].items():
        name = "correct (pass@1)" if k == "1" else f"pass@{k}"
        solved[name] = cell(estimate, percent)
    for task, own in result["tasks"].items():
        if len(result["tasks"]) > 1:
            solved[f"correct in {task}"] = cell(own["correct"], percent)
        for measure in measures_of(task):
            form = percent if measure.is_share else decimal
            solved[measure.name] = cell(own["measures"].get(measure.name), form)

    paid = {
        "cheating": cell(result["cheating"], percent),
        "reward": cell(result["reward"], decimal),
    }
    for name, estimate in result["rewards"].items():
        paid[f"  {name}"] = cell(estimate, decimal)

    ended = {f"status {name}": percent(share) for name, share in result["status"].items()}
    rest = {
        "reached its answer": cell(result["reached_final"], percent),
        "cut off": cell(result["cut_off"], percent),
        "mean tokens": decimal(result["tokens"]["mean"]),
        "tokens a second": decimal(result["time"]["tokens_per_s"]),
    }
    return [solved, paid, ended, rest]


def decimal(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}"


def cell(value: Mapping[str, Any] | None, form: Callable[[float | None], str]) -> str:
    """A figure with its interval, if it has one. None is a dash."""
    if value is None:
        return "-"
    if value["value"] is None or value["low"] is None:
        return form(value["value"])
    low, high = (form(value[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{form(value['value'])} [{low}, {high}]"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns; numbers stand on the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for first, *others in lines:
        cells = [first.ljust(widths[0])]
        cells += [other.rjust(width) for other, width in zip(others, widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def worse_in_words(comparison: Comparison, shown: int = 10) -> str:
    """How many problems got worse, and the first of them, one line each."""
    counts = f"{comparison.better} problems got better, {len(comparison.worse)} worse"
    questions = {item.question for item in comparison.worse}
    if len(questions) <= 1 < len(comparison.worse):
        return counts  # there is one prompt, and nothing to tell its inputs apart by
    lines = [counts]
    for item in comparison.worse[:shown]:
        question = " ".join(item.question.split())[:70]
        lines.append(f"  {percent(item.first)} → {percent(item.second)}  {question}")
    if len(comparison.worse) > shown:
        lines.append(f"  and {len(comparison.worse) - shown} more in comparison.json")
    return "\n".join(lines)


def show_progress(total: int, title: str) -> Any:
    """A progress bar with the time that is left, on standard error. In a log file it is rarer."""
    from tqdm.auto import tqdm

    interval_s = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=title, unit=" completions", mininterval=interval_s)
