"""Grades each batch of completions once, and calls the reward functions on the grades: in training, in check.py and in
evaluation alike."""

import functools
import importlib
import inspect
import math
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import reward_functions
import tasks
from job.errors import RewardError
from job.schedules import RewardWeights
from sandbox import Sandbox, Status
from tasks import Grade

CUT_OFF = "ended before its answer began: still in the analysis, or without a final channel"
NOT_COLUMNS = ("prompts", "completion_ids")  # what TRL hands on beside the columns of the rows

RewardFunction = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Scored:
    """One completion with its Grade and what each reward function pays for it."""

    grade: Grade
    rewards: dict[str, float | None]  # by the name in the config, before weights

    @property
    def why(self) -> str:
        """What speaks against it; empty for a correct answer."""
        return "; ".join((*self.grade.cheating, self.grade.detail)).strip("; ")

    def total(self, weights: Mapping[str, float]) -> float:
        """The weighted sum, as in training. A function that returned None does not count."""
        paid = {name: reward for name, reward in self.rewards.items() if reward is not None}
        return sum(weights[name] * reward for name, reward in paid.items())


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
        self.weights = RewardWeights.of(mixture)
        self.sandbox = sandbox
        self.entropy = np.random.SeedSequence(seed).entropy
        self._owners: dict[str, set[str]] = {}  # reward function: the tasks whose rows it judges
        for options in mixture:
            for name in tasks.reward_weights(options.type, options.rewards):
                self._owners.setdefault(name, set()).add(options.type)
        self._threads = ThreadPoolExecutor(sandbox.workers, thread_name_prefix="grader")
        self._batch: tuple[Any, list[Grade]] | None = None

    def grade(
        self, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0
    ) -> list[Grade]:
        """One Grade for each text, in order, each task as its curriculum has it at `step`.

        A row's "task" may be left out where there is one task. Equal texts of equal rows are run once.
        """
        keys = [repr((text, row)) for text, row in zip(texts, rows, strict=True)]
        jobs = {}
        for key, text, row in zip(keys, texts, rows, strict=True):
            if key not in jobs:
                rng = np.random.default_rng([self.entropy, step, len(jobs)])
                options = tasks.at_step(self.options[row.get("task") or self._only_task], step)
                known = {name: value for name, value in row.items() if value is not None}
                judge = tasks.load(options.type).grade
                jobs[key] = self._threads.submit(
                    judge, text, known | {"step": step}, options, self.sandbox, rng
                )
        return [jobs[key].result() for key in keys]

    def score(
        self, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0
    ) -> list[Scored]:
        """Grade texts and put them through the reward functions, called as in training at `step`.

        Args:
            rows: of the same length; each with the columns of its text, and "prompt" where there is one.

        Raises:
            RewardError: if a reward function fails.
        """
        columns = dict.fromkeys(name for row in rows for name in row if name != "prompt")
        arguments = {name: [row.get(name) for row in rows] for name in columns}
        arguments |= {
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
            "prompts": [row.get("prompt", []) for row in rows],
            "completion_ids": [[] for _ in texts],
            "trainer_state": SimpleNamespace(global_step=step),
            "log_metric": lambda name, value: None,
            "log_extra": lambda column, values: None,
        }
        paid = {}
        for name, function in zip(self.weights.names, self.reward_functions(), strict=True):
            paid[name] = function(**arguments)
        grades = self._grades_of(**arguments)
        return [
            Scored(grade, {name: rewards[i] for name, rewards in paid.items()})
            for i, grade in enumerate(grades)
        ]

    def longest_batch_s(self, count: int) -> float:
        """Bound on the wall clock of grading `count` completions, whatever they do.

        Each occupies one worker for its program's total time limit at most, and a correct one for the baseline's as
        well.
        """
        at_once = min(self.sandbox.workers, len(os.sched_getaffinity(0)))  # timings need a CPU each
        return math.ceil(count / at_once) * 2 * self.sandbox.limits.total_timeout_s

    def reward_functions(self) -> list[RewardFunction]:
        """The configured functions, in the order of `weights`, as GRPOTrainer calls them."""
        return [self.bind(resolve(name), self._owners[name]) for name in self.weights.names]

    def bind(self, function: RewardFunction, owners: set[str]) -> RewardFunction:
        """`function` as GRPOTrainer calls it: with the grades, and only the rows of the tasks in `owners`. Others get
        None, which TRL leaves out."""

        @functools.wraps(function)
        def reward(completions, **kwargs):
            arguments = {
                "completions": completions,
                "grades": self._grades_of(completions, **kwargs),
                **kwargs,
            }
            column = kwargs.get("task") or [self._only_task] * len(completions)
            own = [i for i, task in enumerate(column) if (task or self._only_task) in owners]
            rewards: list[float | None] = [None] * len(completions)
            if not own:
                return rewards
            if log_extra := kwargs.get(
                "log_extra"
            ):  # a column of the table has a value for each completion

                def log_own(name: str, values: Sequence[Any]) -> None:
                    logged = dict(zip(own, values, strict=True))
                    log_extra(name, [logged.get(i) for i in range(len(completions))])

                arguments["log_extra"] = log_own
            for i, value in zip(own, checked(function, select(arguments, own)), strict=True):
                rewards[i] = value
            return rewards

        return reward

    @property
    def _only_task(self) -> str:
        """The task of a row that names none."""
        return next(iter(self.options))

    def _grades_of(
        self, completions, trainer_state=None, log_metric=None, log_extra=None, **columns
    ) -> list[Grade]:
        # TRL hands the same list to every function of one batch; holding on to it keeps its identity unique.
        if self._batch is not None and self._batch[0] is completions:
            return self._batch[1]
        columns = {name: values for name, values in columns.items() if name not in NOT_COLUMNS}
        rows = [
            {name: values[i] for name, values in columns.items()} for i in range(len(completions))
        ]
        step = getattr(trainer_state, "global_step", 0)
        grades = self.grade([text_of(completion) for completion in completions], rows, step)
        for i, completion in enumerate(completions):
            if ended_early(completion):
                grades[i] = replace(grades[i], status=Status.NO_FINAL, detail=CUT_OFF)
        self._batch = completions, grades
        if log_metric:
            for name, value in (
                self._metrics(grades, columns.get("task", [])) | self._scheduled(step)
            ).items():
                log_metric(name, value)
        if log_extra:
            log_extra("status", [str(grade.status) for grade in grades])
            log_extra("detail", ["; ".join((*grade.cheating, grade.detail)) for grade in grades])
        return grades

    def _metrics(self, grades: Sequence[Grade], column: Sequence[str]) -> dict[str, float]:
        metrics = shares(grades)
        if len(self.options) > 1:
            for task in sorted(set(column)):
                own = [grade for grade, name in zip(grades, column, strict=True) if name == task]
                metrics |= {
                    name.replace("grades/", f"grades/{task}/", 1): v
                    for name, v in shares(own).items()
                }
        return metrics

    def _scheduled(self, step: int) -> dict[str, float]:
        """Metrics: the weights in force of the functions that have a schedule, by the names that TRL logs."""
        weights = self.weights.at(step)
        return {
            f"reward_weights/{name.rpartition(':')[2]}": weights[name]
            for name in self.weights.scheduled
        }


def resolve(name: str) -> Callable[..., list[float | None]]:
    """The reward function called `name`: one of reward_functions.py, or "package.module:function".

    Raises:
        ValueError: if there is no such function, or it does not take `completions`.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        module = importlib.import_module(module_name or reward_functions.__name__)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(
            f"{name}: module {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        raise ValueError(f"there is no function {function_name!r} in {module.__name__}")
    parameters = inspect.signature(function).parameters
    if "completions" not in parameters:
        raise ValueError(f"{name}{inspect.signature(function)} must take `completions`")
    return function


def names() -> list[str]:
    """What `task.rewards` may name without a module."""
    functions = inspect.getmembers(reward_functions, inspect.isfunction)
    return [
        name
        for name, function in functions
        if "completions" in inspect.signature(function).parameters
    ]


def select(arguments: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The arguments of a reward function for some completions of a batch: every list as long as the batch is cut."""
    count = len(arguments["completions"])
    return {
        name: [value[i] for i in indices]
        if isinstance(value, list) and len(value) == count
        else value
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
        arguments = {
            name: value
            for name, value in arguments.items()
            if name in parameters or name == "completions"
        }
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
        raise RewardError(
            f"reward function {name} returned {returned!r}, not a list with a number for each completion"
        )
    if len(rewards) != len(completions):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards for {len(completions)} completions"
        )
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is None:
            continue
        if (
            isinstance(reward, bool)
            or not isinstance(reward, (int, float, np.number))
            or not math.isfinite(reward)
        ):
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
