"""Completion -> Grade -> numbers. Add your own reward function here and name it in config.yaml: task.rewards.

A reward function takes `completions` (a list of one-message lists: [{"role": "assistant", "content": str}]), any
dataset column and `grades` (a list of tasks.Grade) by name, the rest as **kwargs, and returns one float for each
completion, or None for a completion that it does not judge. `content` is the final answer alone; what a reasoning model
wrote before it stands under "thinking", and "reached_final": False marks a completion that did not get to its answer.
"""

import functools
import importlib
import inspect
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

import tasks
from job.errors import RewardError
from sandbox import Sandbox, Status
from tasks import Grade

__all__ = """
    function_works no_cheating correctness_check correctness_partial speed_check strategy_succeeds injection_score
    tests_passed style documentation correct_conclusion step_by_step consistency clarity length_penalty
""".split()

INJECTION_SCORES = {"obtained": 11.0, "probed": 1.5, "idle": -1.0, "guessed": -10.0, "leaked": -10.0}
UNREADABLE = (Status.NO_FUNCTION, Status.SYNTAX_ERROR, Status.NO_FINAL)
CUT_OFF = "ended before its answer began: still in the analysis, or without a final channel"


def function_works(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1.0 the function ran and returned; -0.5 it failed; -2.0 there is none, or it does not parse."""
    return [-2.0 if grade.status in UNREADABLE else 1.0 if grade.status is Status.OK else -0.5 for grade in grades]


def no_cheating(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1.0 honest; -20.0 cheating was attempted; -1.0 nothing to judge: no code, or it does not parse."""
    return [-20.0 if grade.cheating else -1.0 if grade.status in UNREADABLE else 1.0 for grade in grades]


def correctness_check(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """10.0 every result was right; -2.0 otherwise."""
    return [10.0 if grade.correct and not grade.cheating else -2.0 for grade in grades]


def correctness_partial(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """Partial credit, to be named in place of correctness_check: from -2.0 to 10.0 by the share of checks passed."""
    return [-2.0 if grade.cheating else -2.0 + 12.0 * (1.0 if grade.correct else grade.passed) for grade in grades]


def speed_check(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 10 by the speed-up over the baseline; 0 unless correct and measured."""
    return [speed_score(grade.speedup) if grade.correct and not grade.cheating else 0.0 for grade in grades]


def speed_score(speedup: float | None) -> float:
    """2 points for each doubling of the speed, 4 for the baseline's own, between 0 and 10.

    The logarithm is rounded to steps of 0.15 (11 %), because GRPO divides by the spread of a group: equal programs
    must get equal scores although no two measurements agree.
    """
    if speedup is None or speedup <= 0:
        return 0.0
    doublings = round(math.log2(speedup) / 0.15) * 0.15
    return round(10.0 * min(max((doublings + 2.0) / 5.0, 0.0), 1.0), 6)


def strategy_succeeds(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """20.0 wins; 2.0 runs; 0.0 cannot be created; -1.0 times out; -2.0 no function; -3.0 crashes, or makes a move that
    is none. Cheating never earns more than 0."""
    scores = [strategy_score(grade) for grade in grades]
    return [min(score, 0.0) if grade.cheating else score for score, grade in zip(scores, grades, strict=True)]


def strategy_score(grade: Grade) -> float:
    if grade.status in UNREADABLE:
        return -2.0
    if grade.status is Status.OK:
        return 20.0 if grade.correct else 2.0
    if grade.status is Status.TIMEOUT:
        return -1.0
    return -3.0 if grade.data.get("loaded", True) else 0.0


def injection_score(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """11.0 the opponent gave its code away; 1.5 a question that probes; -1.0 idle; -10.0 the own code was given away,
    or codes were guessed. None where no such game was played."""
    return [INJECTION_SCORES.get(grade.data.get("outcome")) for grade in grades]


def tests_passed(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """-2.0 no test was passed, or cheating was attempted, to 10.0 all were; None for a problem without tests."""
    if any(grade.data.get("tests") == 0 for grade in grades):
        say_once("tests_passed: a problem without tests is not scored; only what can be seen without them counts")
    return [
        None if grade.data.get("tests") == 0 else -2.0 if grade.cheating else round(12.0 * grade.passed - 2.0, 6)
        for grade in grades
    ]


def style(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1: ruff's verdict on a program that runs and is honest; 0 otherwise."""
    return [grade.data.get("style", 0.0) for grade in grades]


def documentation(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1: docstrings and annotations of a program that runs and is honest; 0 otherwise."""
    return [grade.data.get("documentation", 0.0) for grade in grades]


def correct_conclusion(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """10.0 the conclusion has the answer's value; -2.0 it has not, or there is none; None where no answer is known."""
    if not all(grade.data.get("answered", True) for grade in grades):
        say_once("correct_conclusion: a problem without an answer is not scored; only its layout counts")
    return [
        None if not grade.data.get("answered", True) else 10.0 if grade.correct and not grade.cheating else -2.0
        for grade in grades
    ]


def step_by_step(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1, a heuristic: a third for each distinct step, up to three (tasks/reasoning.py)."""
    return [grade.data.get("step_by_step", 0.0) for grade in grades]


def consistency(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1 the last step arrives at the conclusion, which is not known to be wrong; 0 otherwise. A heuristic."""
    return [grade.data.get("consistency", 0.0) for grade in grades]


def clarity(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1, a heuristic: a short conclusion, short sentences, no repetition (tasks/reasoning.py)."""
    return [grade.data.get("clarity", 0.0) for grade in grades]


def length_penalty(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 up to task.free_characters, then falling to -1.0 at twice as many."""
    return [grade.data.get("length_penalty", 0.0) for grade in grades]


@functools.cache
def say_once(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def resolve(name: str) -> Callable[..., list[float | None]]:
    """The function called `name` in this file, or "package.module:function".

    Raises:
        ValueError: if there is no such function, or it does not take `completions`.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        module = importlib.import_module(module_name or __name__)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"{name}: module {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        raise ValueError(f"there is no function {function_name!r} in {module.__name__}")
    parameters = inspect.signature(function).parameters
    if "completions" not in parameters:
        raise ValueError(f"{name}{inspect.signature(function)} must take `completions`")
    return function


def names() -> list[str]:
    """What `task.rewards` may name without a module."""
    functions = inspect.getmembers(inspect.getmodule(resolve), inspect.isfunction)
    return [name for name, function in functions if "completions" in inspect.signature(function).parameters]


class Grader:
    """Grades each batch once; the reward functions that it hands out read the same grades.

    Args:
        mixture: the validated `task:` section, one Options for each task.
        sandbox: where programs run; one worker thread here for each of its workers.
        seed: for tests, which must repeat. None draws the inputs from the operating system's entropy: a program that
            could foresee them would work out the products while it is loaded, before any clock runs.
    """

    def __init__(self, mixture: Sequence[tasks.Options], sandbox: Sandbox, seed: int | None = None):
        self.options = {options.type: options for options in mixture}
        self.sandbox, self.entropy = sandbox, np.random.SeedSequence(seed).entropy
        self.weights: dict[str, Any] = {}  # reward function: a number, or its schedule {step: number}
        self._owners: dict[str, set[str]] = {}  # reward function: the tasks whose rows it judges
        for options in mixture:
            for name, weight in tasks.reward_weights(options.type, options.rewards).items():
                self.weights[name] = weight
                self._owners.setdefault(name, set()).add(options.type)
        self._threads = ThreadPoolExecutor(sandbox.workers, thread_name_prefix="grader")
        self._batch: tuple[Any, list[Grade]] | None = None

    def weights_at(self, step: int) -> list[float]:
        """The weight of each function of `weights`, in its order, when `step` optimizer steps are done."""
        return [tasks.weight_at(weight, step) for weight in self.weights.values()]

    def schedule_steps(self) -> list[int]:
        """0 and every step that a schedule of weights names: between two of them all totals are linear in the step."""
        return sorted({0, *(step for weight in self.weights.values() for step, _ in tasks.schedule(weight))})

    def grade(self, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0) -> list[Grade]:
        """One Grade for each text, in order, each task as its curriculum has it at `step`; a row's "task" may be left
        out where there is one task. Equal texts of equal rows are run once."""
        keys = [repr((text, row)) for text, row in zip(texts, rows, strict=True)]
        jobs = {}
        for key, text, row in zip(keys, texts, rows, strict=True):
            if key not in jobs:
                rng = np.random.default_rng([self.entropy, step, len(jobs)])
                options = tasks.at_step(self.options[row.get("task") or next(iter(self.options))], step)
                row = {name: value for name, value in row.items() if value is not None} | {"step": step}
                judge = tasks.load(options.type).grade
                jobs[key] = self._threads.submit(judge, text, row, options, self.sandbox, rng)
        return [jobs[key].result() for key in keys]

    def longest_batch_s(self, count: int) -> float:
        """Bound on the wall clock of grading `count` completions, whatever they do: each occupies one worker for its
        program's total time limit at most, and a correct one for the baseline's as well."""
        at_once = min(self.sandbox.workers, len(os.sched_getaffinity(0)))  # timings need a CPU each
        return math.ceil(count / at_once) * 2 * self.sandbox.limits.total_timeout_s

    def reward_functions(self) -> list[Callable[..., list[float | None]]]:
        """The configured functions, as GRPOTrainer calls them."""
        return [self.bind(resolve(name), self._owners[name]) for name in self.weights]

    def bind(self, function: Callable[..., list[float | None]], owners: set[str]) -> Callable[..., list[float | None]]:
        """`function` as GRPOTrainer calls it: with the grades, and only the rows of the tasks in `owners`; others
        get None, which TRL leaves out."""

        @functools.wraps(function)
        def reward(completions, **kwargs):
            arguments = {"completions": completions, "grades": self._grades_of(completions, **kwargs), **kwargs}
            column = kwargs.get("task") or [next(iter(self.options))] * len(completions)
            own = [i for i, task in enumerate(column) if task in owners]
            rewards: list[float | None] = [None] * len(completions)
            if log_extra := kwargs.get("log_extra"):  # a column of the table has a value for each completion

                def log_own(name: str, values: Sequence[Any]) -> None:
                    logged = dict(zip(own, values, strict=True))
                    log_extra(name, [logged.get(i) for i in range(len(completions))])

                arguments["log_extra"] = log_own
            for i, value in zip(own, checked(function, select(arguments, own)) if own else (), strict=True):
                rewards[i] = value
            return rewards

        return reward

    def _grades_of(self, completions, trainer_state=None, log_metric=None, log_extra=None, **columns) -> list[Grade]:
        # TRL hands the same list to every function of one batch; holding on to it keeps its identity unique.
        if self._batch is None or self._batch[0] is not completions:
            columns = {name: values for name, values in columns.items() if name not in ("prompts", "completion_ids")}
            rows = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
            step = getattr(trainer_state, "global_step", 0)
            grades = self.grade([text_of(completion) for completion in completions], rows, step)
            for i, completion in enumerate(completions):
                if ended_early(completion):
                    grades[i] = replace(grades[i], status=Status.NO_FINAL, detail=CUT_OFF)
            self._batch = completions, grades
            if log_metric:
                for name, value in (self._metrics(grades, columns.get("task", [])) | self._scheduled(step)).items():
                    log_metric(name, value)
            if log_extra:
                log_extra("status", [str(grade.status) for grade in grades])
                log_extra("detail", ["; ".join((*grade.cheating, grade.detail)) for grade in grades])
        return self._batch[1]

    def _metrics(self, grades: Sequence[Grade], column: Sequence[str]) -> dict[str, float]:
        metrics = shares(grades)
        if len(self.options) > 1:
            for task in sorted(set(column)):
                own = [grade for grade, name in zip(grades, column, strict=True) if name == task]
                metrics |= {name.replace("grades/", f"grades/{task}/", 1): v for name, v in shares(own).items()}
        return metrics

    def _scheduled(self, step: int) -> dict[str, float]:
        """Metrics: the weights in force of the functions that have a schedule, by the names that TRL logs."""
        scheduled = {name: weight for name, weight in self.weights.items() if isinstance(weight, Mapping)}
        return {f"reward_weights/{name.rpartition(':')[2]}": tasks.weight_at(w, step) for name, w in scheduled.items()}


def select(arguments: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The arguments of a reward function for some completions of a batch: every list as long as the batch is cut."""
    count = len(arguments["completions"])
    return {
        name: [value[i] for i in indices] if isinstance(value, list) and len(value) == count else value
        for name, value in arguments.items()
    }


def text_of(completion: Any) -> Any:
    """The text that rewards read: the content of the one message, or the completion itself if it is plain text."""
    return completion[0].get("content") if isinstance(completion, list) else completion


def ended_early(completion: Any) -> bool:
    """Whether a completion never got to its answer, as chat.py says in its message."""
    return isinstance(completion, list) and not completion[0].get("reached_final", True)


def shares(grades: Sequence[Grade]) -> dict[str, float]:
    """Metrics of a batch: the share (0 to 1) of correct, of cheating and of unclosed completions, and of each
    status."""
    count = max(len(grades), 1)
    statuses = Counter(str(grade.status) for grade in grades)
    return {
        "grades/correct": sum(grade.correct and not grade.cheating for grade in grades) / count,
        "grades/cheating": sum(bool(grade.cheating) for grade in grades) / count,
        "grades/unclosed": sum(grade.data.get("unclosed", False) for grade in grades) / count,
        **{f"grades/status/{status}": statuses[status] / count for status in map(str, Status)},
    }


def checked(function: Callable, arguments: dict[str, Any]) -> list[float | None]:
    """Call a reward function; anything but one number or None for each completion is a RewardError."""
    name, completions = function.__name__, arguments["completions"]
    parameters = inspect.signature(function).parameters
    named = [p for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    lacking = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if lacking:
        raise RewardError(
            f"reward function {name} takes {', '.join(lacking)}, which is no column of these rows; there are "
            f"{', '.join(sorted(arguments))}"
        )
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters or name == "completions"}
    try:
        returned = function(**arguments)
        rewards = list(returned) if isinstance(returned, Iterable) else None
    except Exception as error:
        culprit = find_culprit(function, arguments)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        raise RewardError(
            f"reward function {name} raised {type(error).__name__}: {error} ({place}){culprit}"
        ) from error
    if rewards is None:
        raise RewardError(f"reward function {name} returned {returned!r}, not a list with a number for each completion")
    if len(rewards) != len(completions):
        raise RewardError(f"reward function {name} returned {len(rewards)} rewards for {len(completions)} completions")
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is None:
            continue
        if isinstance(reward, bool) or not isinstance(reward, (int, float, np.number)) or not math.isfinite(reward):
            raise RewardError(
                f"reward function {name} returned {reward!r} ({type(reward).__name__}), not a finite float, for "
                f"{quoted(completion)}"
            )
    return rewards


def find_culprit(function: Callable, arguments: dict[str, Any]) -> str:
    """The first completion that makes the function raise on its own, in words."""
    count = len(arguments["completions"])
    for i in range(count):
        one = select(arguments, [i])
        try:
            function(**one)
        except Exception:
            return f"\non completion {i} of {count}: {quoted(arguments['completions'][i])}"
    return f"\non a batch of {count} completions, though on none of them alone"


def quoted(completion: Any) -> str:
    text = repr(text_of(completion))
    return text if len(text) <= 1000 else f"{text[:1000]}… ({len(text)} characters)"
