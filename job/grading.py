"""Grades each batch of completions once, and calls the reward functions on the grades: in training,
in check.py and in evaluation alike."""

import asyncio
import functools
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import tasks
from job.episodes.episode import CUT_OFF, Answer, Player, Turn, is_script, turns_of
from job.grading_pool import GradingPool, Job, Step, advance_here, grade_here
from job.rewards import (
    RewardFunction,
    call_together,
    checked,
    is_async,
    resolve,
    select,
    text_of,
)
from job.schedules import RewardWeights
from sandbox import Sandbox, Status
from tasks import Grade

NOT_COLUMNS = ("completion_ids",)  # what TRL hands on and no task reads


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
        total = 0
        for name, reward in self.rewards.items():
            if reward is not None:
                total += weights[name] * reward
        return total


class Grader:
    """Grades each batch once; the reward functions that it hands out read the same grades.

    Args:
        mixture: the validated `task:` section, one Options for each task. sandbox: where programs
        run. A GradingPool grades in processes that can be killed, as a run does; a Sandbox
            grades in this process, for tests and tools.
        seed: for tests, which must repeat. None draws the inputs from the operating system's
            entropy: a program that could foresee them would work out the products while it is
            loaded, before any clock runs.
        reward_timeout_s: wall clock for one call of a reward function; None: no limit.
    """

    def __init__(
        self,
        mixture: Sequence[tasks.Options],
        sandbox: Sandbox | GradingPool,
        seed: int | None = None,
        reward_timeout_s: float | None = None,
    ):
        self.reward_timeout_s = reward_timeout_s
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
        # Episodes without a pool, for tests: one after the other
        self._player_thread = ThreadPoolExecutor(1, thread_name_prefix="player")
        self._player = Player(sandbox)
        self._batch_lock = threading.Lock()  # async reward functions ask from threads of their own

    def grade(
        self, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0
    ) -> list[Grade]:
        """One Grade for each text, in order, each task as its curriculum has it at `step`.

        A row's task may be left out where there is one task. Equal texts of equal rows are run
        once.
        """
        keys = [repr((text, row)) for text, row in zip(texts, rows, strict=True)]
        running: dict[str, Future[Grade]] = {}
        for key, text, row in zip(keys, texts, rows, strict=True):
            if key in running:
                continue
            job = self.job(text, row, step, len(running))
            running[key] = self._threads.submit(self._judge, job)
        return [running[key].result() for key in keys]

    def job(self, completion: Any, row: dict[str, Any], step: int, place: int) -> Job:
        """What grading one completion needs.

        Args:
            place: of the completion in its batch, for the random numbers of the task.
        """
        options = tasks.at_step(self.options[self._task_of(row)], step)
        known = {name: value for name, value in row.items() if value is not None}
        known["step"] = step
        # In an evaluation the same inputs are drawn for every model.
        place = known.get("evaluation_seed", place)
        return Job(options, completion, known, (self.entropy, step, place))

    @property
    def takes_turns(self) -> bool:
        """Whether completions of any task may take several turns."""
        return any(map(tasks.takes_turns, self.options.values()))

    def advance(self, step: Step) -> Future[Answer]:
        """What follows the newest turn of an episode, as soon as it is known."""
        if isinstance(self.sandbox, GradingPool):
            return self.sandbox.advance(step)
        return self._player_thread.submit(advance_here, step, self._player)

    def _judge(self, job: Job) -> Grade:
        if isinstance(self.sandbox, GradingPool):
            return self.sandbox.grade(job)
        return grade_here(job, self.sandbox)

    def score(
        self, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0
    ) -> list[Scored]:
        """Grade texts and put them through the reward functions, called as in training at `step`.

        Args:
            rows: of the same length; each with the columns of its text, and "prompt" where there is
                one.

        Raises:
            RewardError: if a reward function fails.
        """
        completions = [messages_of(text) for text in texts]
        return self.score_completions(completions, [[] for _ in texts], rows, step)

    def score_completions(
        self,
        completions: Sequence[list[dict[str, Any]]],
        completion_ids: Sequence[list[int]],
        rows: Sequence[dict[str, Any]],
        step: int = 0,
    ) -> list[Scored]:
        """The same for completions of a model.

        Args:
            completions: each a list with one message, as chat.Reading makes it.
            completion_ids: the tokens of each.
        """
        # The columns, and what GRPOTrainer hands on besides
        arguments: dict[str, Any] = {}
        for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
            if name != "prompt":
                arguments[name] = [row.get(name) for row in rows]
        arguments |= {
            "completions": list(completions),
            "prompts": [row.get("prompt", []) for row in rows],
            "completion_ids": list(completion_ids),
            "trainer_state": SimpleNamespace(global_step=step, max_steps=max(step, 1), epoch=0.0),
            "log_metric": lambda name, value: float(value),  # raises where training would
            "log_extra": lambda column, values: None,
        }
        # What each function pays for the whole batch
        returned = call_together(self.reward_functions(), arguments)
        paid = dict(zip(self.weights.names, returned, strict=True))

        # The same, completion by completion
        scored = []
        for i, grade in enumerate(self._grades_of(**arguments)):
            rewards = {name: column[i] for name, column in paid.items()}
            scored.append(Scored(grade, rewards))
        return scored

    def longest_batch_s(self, count: int) -> float:
        """Bound on the wall clock of grading `count` completions, whatever they hold: the pool
        stops each of them at its deadline."""
        return math.ceil(count / self.sandbox.workers) * self.sandbox.timeout_s

    def reward_functions(self) -> list[RewardFunction]:
        """The configured functions, in the order of `weights`, as GRPOTrainer calls them."""
        return [self.bind(resolve(name), self._owners[name]) for name in self.weights.names]

    def bind(self, function: RewardFunction, owners: set[str]) -> RewardFunction:
        """`function` as GRPOTrainer calls it: with the grades, and only the rows of the tasks in
        `owners`. Others get None, which TRL leaves out.

        An async function stays one, so that GRPOTrainer runs it together with others. Each waits in
        a thread of its own.
        """

        @functools.wraps(function)
        def reward(completions, **kwargs):
            grades = self._grades_of(completions, **kwargs)
            arguments = {**kwargs, "completions": completions, "grades": grades}
            own = self._places_of(owners, task_column(kwargs), len(completions))
            rewards: list[float | None] = [None] * len(completions)
            if not own:
                return rewards
            if kwargs.get("log_extra"):
                arguments["log_extra"] = log_for(own, len(completions), kwargs["log_extra"])
            paid = checked(function, select(arguments, own), self.reward_timeout_s)
            for i, value in zip(own, paid, strict=True):
                rewards[i] = value
            return rewards

        @functools.wraps(function)
        async def async_reward(completions, **kwargs):
            return await asyncio.to_thread(reward, completions, **kwargs)

        return async_reward if is_async(function) else reward

    def _places_of(
        self, owners: set[str], column: Sequence[str | None] | None, count: int
    ) -> list[int]:
        """Where in a batch of `count` completions the rows of these tasks stand."""
        if not column:
            column = [None] * count
        own = []
        for i, task in enumerate(column):
            if (task or self._only_task) in owners:
                own.append(i)
        return own

    def _task_of(self, row: Mapping[str, Any]) -> str:
        return tasks.type_of(row) or self._only_task

    @property
    def _only_task(self) -> str:
        """The task of a row that names none."""
        return next(iter(self.options))

    def _grades_of(
        self, completions, trainer_state=None, log_metric=None, log_extra=None, **columns
    ) -> list[Grade]:
        """The Grades of a batch, worked out when its first reward function asks for them."""
        # A batch that is graded already. TRL hands the same list to every function of
        # one batch. Holding on to it keeps its identity unique.
        with self._batch_lock:
            if self._batch is None or self._batch[0] is not completions:
                grades = self._grade_batch(
                    completions, trainer_state, log_metric, log_extra, columns
                )
                self._batch = completions, grades
            return self._batch[1]

    def _grade_batch(
        self,
        completions: Sequence[Any],
        trainer_state: Any,
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
        columns: Mapping[str, Sequence[Any]],
    ) -> list[Grade]:
        """Grade a batch, and log what was found."""
        # Grade it.
        step = getattr(trainer_state, "global_step", 0)
        rows = rows_from(columns, len(completions))
        grades = self._fresh_grades(completions, rows, step)

        # Log what was found.
        if log_metric:
            metrics = self._metrics(grades, task_column(columns)) | self._weights_at(step)
            for name, value in metrics.items():
                log_metric(name, value)
        if log_extra:
            log_extra("status", [str(grade.status) for grade in grades])
            log_extra("correct", [is_correct(grade) for grade in grades])
            log_extra("cheating", ["; ".join(grade.cheating) for grade in grades])
            log_extra("detail", ["; ".join((*grade.cheating, grade.detail)) for grade in grades])
        return grades

    def _fresh_grades(
        self, completions: Sequence[Any], rows: Sequence[dict[str, Any]], step: int
    ) -> list[Grade]:
        """Grades of completions, of which episodes bring theirs along."""
        found = [known_grade(completion) for completion in completions]
        places = [i for i, grade in enumerate(found) if grade is None]
        texts = [text_of(completions[i]) for i in places]
        fresh = self.grade(texts, [rows[i] for i in places], step)
        for i, grade in zip(places, fresh, strict=True):
            if ended_early(completions[i]):
                grade = replace(grade, status=Status.NO_FINAL, detail=CUT_OFF)
            found[i] = grade
        return found

    def _metrics(self, grades: Sequence[Grade], column: Sequence[str]) -> dict[str, float]:
        """Shares of the whole batch and, where several tasks are mixed, of each task's part."""
        metrics = shares(grades)
        if len(self.options) == 1:
            return metrics
        for task in sorted(set(column)):
            own = [grade for grade, name in zip(grades, column, strict=True) if name == task]
            for name, value in shares(own).items():
                metrics[name.replace("grades/", f"grades/{task}/", 1)] = value
        return metrics

    def _weights_at(self, step: int) -> dict[str, float]:
        """Metrics: the weight in force of each function, by the name that TRL logs."""
        metrics = {}
        for name, weight in self.weights.at(step).items():
            metrics[f"reward_weights/{name.rpartition(':')[2]}"] = weight
        return metrics


def rows_from(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """One row for each of `count` completions, of the columns that a task gets."""
    names = {name: name for name in columns if name not in NOT_COLUMNS}
    if "prompts" in names:
        names["prompts"] = "prompt"  # as the dataset calls it
    rows = []
    for i in range(count):
        rows.append({own: columns[name][i] for name, own in names.items()})
    return rows


def task_column(columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """The task of each row, as `tasks.type_of` finds it; empty if no row says it."""
    named = columns.get("task") or []
    labels = columns.get(tasks.TASK_COLUMN) or [None] * len(named)
    return [label or name for label, name in zip(labels, named, strict=True)]


def log_for(
    own: Sequence[int], count: int, log_extra: Callable[[str, list[Any]], None]
) -> Callable[[str, Sequence[Any]], None]:
    """A `log_extra` for a function that sees only the completions at the places `own` of `count`.

    A column of the logged table has a value for each completion, also for the others.
    """

    def log_own(name: str, values: Sequence[Any]) -> None:
        logged = dict(zip(own, values, strict=True))
        log_extra(name, [logged.get(i) for i in range(count)])

    return log_own


def messages_of(text: Any) -> list[dict[str, Any]]:
    """A completion as reward functions get it. A list of turns is one without what others say."""
    if not is_script(text):
        return [{"role": "assistant", "content": text}]
    try:
        return [turn.message() for turn in turns_of(text)] or [Turn().message()]
    except ValueError:  # it is graded as a bad row
        return [{"role": "assistant", "content": text}]


def known_grade(completion: Any) -> Grade | None:
    """The Grade that an episode was given when it ended: see loop.py."""
    if not isinstance(completion, list):
        return None
    return completion[-1].get("grade")


def ended_early(completion: Any) -> bool:
    """Whether a completion of one turn never got to its answer, as chat.py says in its message."""
    if not isinstance(completion, list) or len(completion) > 1:
        return False
    return not completion[0].get("reached_final", True)


def is_correct(grade: Grade) -> bool:
    """Whether a completion counts as correct: it is right, and it did not attempt to cheat."""
    return grade.correct and not grade.cheating


def is_judged(grade: Grade) -> bool:
    """Whether anything could say if a completion is right: its row has an answer, or tests."""
    return bool(grade.data.get("answered", True)) and grade.data.get("tests") != 0


def shares(grades: Sequence[Grade]) -> dict[str, float]:
    """Metrics of a batch: the share (0 to 1) of correct, of cheating and of unclosed completions,
    and of each status."""
    counts: Counter[str] = Counter()
    for grade in grades:
        counts["correct"] += is_correct(grade)
        counts["cheating"] += bool(grade.cheating)
        counts["unclosed"] += grade.data.get("unclosed", False)
        counts[f"status/{grade.status}"] += 1
    names = ["correct", "cheating", "unclosed", *(f"status/{status}" for status in Status)]
    return {f"grades/{name}": counts[name] / max(len(grades), 1) for name in names}
