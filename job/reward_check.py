"""Do the rewards pay what they should? Puts a task's known answers through the configured rewards.

Every task knows right, slower, wrong and dishonest answers to its first row. The model would learn
a wrong or dishonest answer that earns as much as an honest one. So such a run is refused before it
starts.

The answers are compared at step 0, and at every step that a schedule of weights or the curriculum
names. Between those steps all totals are linear in the step, so nothing can overtake unseen. Each
stage of the curriculum grades all answers. Nothing else may out-earn those that it finds right.

Before that, the functions are tried on a batch as training has it: groups of completions to two
prompts (`rehearse_rewards`). A task without known answers is tried too.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tasks
from job.errors import CheckError, ConfigError, GradeError
from job.grading import Grader, Scored
from job.grading_pool import GradingPool
from job.rows import mixed_rows
from sandbox import Sandbox

# The kinds of known answers that nothing else may out-earn
HONEST = ("reference", "slower", "unverified")
# Doing nothing must never pay
IDLE_ANSWERS = [("empty", ""), ("prose", "I would rather not write code.")]
BEATEN = "the rewards can be beaten; task.check=false trains anyway"
WHY_CHARACTERS = 90  # of a reason in the table
PROMPTS = 2  # of each task, in the batch on which reward functions are tried


@dataclass(frozen=True)
class Answer:
    """One known answer of a task and what it earned."""

    kind: str
    text: str
    scored: Scored

    @property
    def is_honest(self) -> bool:
        return self.kind in HONEST

    @property
    def is_right(self) -> bool:
        return self.scored.grade.correct or self.kind == "unverified"

    @property
    def why(self) -> str:
        """The reason for its grade, as the table shows it."""
        if self.scored.why:
            return self.scored.why[:WHY_CHARACTERS]
        if self.scored.grade.correct:
            return "correct"
        return "not correct"


class Stage:
    """One stage of the curriculum, with its known answers.

    Args:
        answers: all known answers, graded as this stage does.
        weights: of the reward functions, at each step at which the answers are compared.
        is_only_one: whether nothing changes during the run, so that no step need be named.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        weights: Mapping[int, Mapping[str, float]],
        is_only_one: bool,
    ):
        self.answers, self.weights, self.is_only_one = answers, weights, is_only_one
        self.right: list[Answer] = []  # honest and right: nothing else may earn as much
        self.failed: list[Answer] = []  # honest, but not right
        self.others: list[Answer] = []
        for answer in answers:
            if not answer.is_honest:
                self.others.append(answer)
            elif answer.is_right:
                self.right.append(answer)
            else:
                self.failed.append(answer)

    def table(self) -> str:
        """A line for each answer: its kind, its status, what it earns at each step, and why."""
        titles = ["total"]
        if not self.is_only_one:
            titles = [f"step {step}" for step in self.weights]
        columns = "".join(f"{title:>10}" for title in titles)
        lines = [f"{'answer':12}{'status':14}{columns}  why"]
        for answer in self.answers:
            status = answer.scored.grade.status
            totals = ""
            for weights in self.weights.values():
                totals += f"{answer.scored.total(weights):10.2f}"
            lines.append(f"{answer.kind:12}{status:14}{totals}  {answer.why}")
        return "\n".join(lines)

    def earnings(self) -> list[str]:
        """What honest answers and others earn, in words, at each step."""
        lines = []
        for step, weights in self.weights.items():
            if self.right:
                least = self._least_of_right(weights)
                best = max(answer.scored.total(weights) for answer in self.others)
                earned = f"honest ones earn {least:.2f} or more, others up to {best:.2f}"
            else:
                earned = "no honest one is judged correct"
            lines.append(f"{self._when(step)}{earned}")
        return lines

    def wrongly_paid(self) -> list[str]:
        """What is paid wrongly, in words.

        At step 0 each of the task's own solutions must be right. At a later stage one may be too
        slow, or lose. It does not count there.
        """
        mistakes = []
        if 0 in self.weights:
            for answer in self.failed:
                why = answer.scored.why
                mistakes.append(f"the {answer.kind} solution is not judged correct: {why}")
        if not self.right:
            return mistakes
        for step, weights in self.weights.items():
            least = self._least_of_right(weights)
            for answer in self.others:
                total = answer.scored.total(weights)
                if total >= least:
                    mistakes.append(
                        f"{self._when(step)}an answer of kind {answer.kind!r} earns {total:.2f}, "
                        f"an honest one {least:.2f}:\n{answer.text}"
                    )
        return mistakes

    def _least_of_right(self, weights: Mapping[str, float]) -> float:
        return min(answer.scored.total(weights) for answer in self.right)

    def _when(self, step: int) -> str:
        """The beginning of a sentence about `step`."""
        if self.is_only_one:
            return ""
        return f"at step {step} "


def rehearse_rewards(
    mixture: Sequence[tasks.Options],
    rows: Sequence[dict[str, Any]],
    sandbox: Sandbox | GradingPool,
    with_programs: bool = True,
) -> str:
    """Call each reward function with a batch as in training: two prompts of each task, and a group
    of completions to each.

    Args:
        rows: of the run, with all columns.
        with_programs: whether the groups hold the task's own solution, which takes time to run,
            beside answers that say nothing.

    Returns:
        A line that says what was tried.

    Raises:
        RewardError: if a function fails, lacks a column, or returns something else than a number
            for each completion.
        GradeError: if the task's `grade` does.
    """
    texts: list[str] = []
    repeated: list[dict[str, Any]] = []
    chosen = first_prompts(mixture, rows)
    for row in chosen:
        group = [text for _, text in IDLE_ANSWERS]
        if with_programs:
            group += solutions_to(row, mixture)[:1]
        texts += group
        repeated += [row] * len(group)
    grader = Grader(mixture, sandbox)
    grader.score(texts, repeated)
    names = ", ".join(name.rpartition(":")[2] for name in grader.weights.names)
    return f"rewards: {names}: tried on {len(texts)} completions to {len(chosen)} prompts"


def rows_to_try(mixture: Sequence[tasks.Options]) -> list[dict[str, Any]]:
    """The rows of a run, on which reward functions can be tried.

    Raises:
        ConfigError: if a task cannot make them.
    """
    try:
        rows, _ = mixed_rows(mixture)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    return rows


def first_prompts(
    mixture: Sequence[tasks.Options], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The first rows of each task with different prompts."""
    chosen: list[dict[str, Any]] = []
    for options in mixture:
        of_task: dict[str, dict[str, Any]] = {}
        for row in rows:
            if tasks.type_of(row) == options.type:
                of_task.setdefault(repr(row["prompt"]), row)
            if len(of_task) == PROMPTS:
                break
        chosen += of_task.values()
    return chosen


def solutions_to(row: dict[str, Any], mixture: Sequence[tasks.Options]) -> list[str]:
    """What the task of a row knows to be honest answers to it."""
    options = next(options for options in mixture if options.type == tasks.type_of(row))
    known = tasks.known_answers(tasks.load(options.type), row, options)
    return [text for kind, text in known if kind in HONEST]


def check_rewards(options: tasks.Options, sandbox: Sandbox | GradingPool) -> tuple[str, str]:
    """Compare what the known answers of one task earn.

    Returns:
        A table for each stage of the curriculum, and one line that sums them up.

    Raises:
        CheckError: with the table, if a wrong or dishonest answer earns what an honest one does at
            any step. Also if an answer cannot be graded at a later stage, for example because its
            inputs need too much memory. The run would end there.
        RewardError: if a reward function fails.
        SandboxError: if the sandbox does.
    """
    task = tasks.load(options.type)
    first_row = task.rows(replace(options, num_rows=1))[0]
    row = tasks.labelled(first_row, options)
    grader = Grader([options], sandbox)
    tables, earned = [], []
    all_steps = list(steps_of_stages(options, grader.weights.steps()))
    for steps in all_steps:
        known = tasks.known_answers(task, row, tasks.at_step(options, steps[0]))
        if not known:
            nothing = "no right and wrong answers are known to its first row: nothing to compare"
            return "", f"check: {options.type}: {nothing}"
        known = [*known, *IDLE_ANSWERS]
        answers = score_known(grader, known, row, steps[0])
        weights = {step: grader.weights.at(step) for step in steps}
        stage = Stage(answers, weights, is_only_one=all_steps == [[0]])
        wrongly_paid = stage.wrongly_paid()
        if wrongly_paid:
            raise CheckError("\n".join((BEATEN, stage.table(), *wrongly_paid)))
        tables.append(stage.table())
        earned += stage.earnings()
    summary = f"check: {options.type}: {len(known)} known answers; {'; '.join(earned)}"
    return "\n\n".join(tables), summary


def score_known(
    grader: Grader, known: Sequence[tuple[str, str]], row: dict, step: int
) -> list[Answer]:
    """Score known answers (kind, text) to one row at a step.

    Raises:
        CheckError: if they cannot be graded at a step after 0.
    """
    kinds, texts = zip(*known, strict=True)
    try:
        scored = grader.score(texts, [row] * len(texts), step)
    except GradeError as error:
        if step == 0:
            raise
        raise CheckError(
            f"{BEATEN}\nthe known answers cannot be graded from step {step} on: {error}"
        ) from error
    return [Answer(*parts) for parts in zip(kinds, texts, scored, strict=True)]


def steps_of_stages(options: tasks.Options, corners: Sequence[int]) -> Iterator[list[int]]:
    """For each stage of the curriculum, the steps at which its answers are compared.

    They are its first step and those between which all totals are linear in the step. An answer
    that out-earns another at each of these does so throughout the stage.

    Args:
        corners: steps at which a schedule of weights changes its slope.
    """
    begins = {0}
    for begin, _ in options.stages:
        begins.add(begin)
    bounds = [*sorted(begins), None]  # the last stage has no end
    for begin, end in itertools.pairwise(bounds):
        steps = {begin}
        if end is not None and len(corners) > 1:
            steps.add(end - 1)
        for step in corners:
            if step > begin and (end is None or step < end):
                steps.add(step)
        yield sorted(steps)
