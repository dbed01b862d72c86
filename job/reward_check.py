"""Do the rewards pay what they should? Puts a task's known answers through the configured rewards.

Every task knows right, slower, wrong and dishonest answers to its first row. A wrong or dishonest one that
earns as much as an honest one would be learned, so the run is refused before it starts. This is done at step
0, and at every step that a schedule of weights or the curriculum names: between those all totals are linear
in the step, so nothing can overtake unseen. What a stage of the curriculum finds right is what nothing else
may out-earn there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import tasks
from job.errors import CheckError, GradeError
from job.grading import Grader, Scored
from job.grading_pool import GradingPool
from sandbox import Sandbox

HONEST = (
    "reference",
    "slower",
    "unverified",
)  # the kinds of known answers that nothing may out-earn
IDLE = [("empty", ""), ("prose", "I would rather not write code.")]  # doing nothing must never pay
BEATEN = "the rewards can be beaten; task.check=false trains anyway"
WHY_CHARACTERS = 90  # of a reason in the table


@dataclass(frozen=True)
class Answer:
    """One known answer of a task and what became of it."""

    kind: str
    text: str
    scored: Scored

    @property
    def is_honest(self) -> bool:
        return self.kind in HONEST

    @property
    def is_right(self) -> bool:
        return self.scored.grade.correct or self.kind == "unverified"


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum: its known answers, and the weights at the steps that are compared."""

    answers: Sequence[Answer]
    weights: Mapping[int, Mapping[str, float]]  # step -> reward function -> weight
    is_only_one: bool  # nothing changes during the run: no step need be named

    @property
    def first_step(self) -> int:
        return min(self.weights)

    def table(self) -> str:
        """A line for each answer: its kind, its status, what it earns at each step, and why."""
        titles = ["total"]
        if not self.is_only_one:
            titles = [f"step {step}" for step in self.weights]
        columns = "".join(f"{title:>10}" for title in titles)
        lines = [f"{'answer':12}{'status':14}{columns}  why"]
        for answer in self.answers:
            grade = answer.scored.grade
            totals = "".join(f"{answer.scored.total(own):10.2f}" for own in self.weights.values())
            why = answer.scored.why
            if not why:
                why = "correct" if grade.correct else "not correct"
            lines.append(f"{answer.kind:12}{grade.status:14}{totals}  {why[:WHY_CHARACTERS]}")
        return "\n".join(lines)

    def compare(self) -> tuple[list[str], list[str]]:
        """(what honest answers and others earn, what is paid wrongly), both in words.

        At step 0 each of the task's own solutions must be right. At a later stage one may be too slow, or
        lose; it does not count there.
        """
        earned, wrongly_paid = [], []
        honest = [answer for answer in self.answers if answer.is_honest and answer.is_right]
        others = [answer for answer in self.answers if not answer.is_honest]
        if self.first_step == 0:
            for answer in self.answers:
                if answer.is_honest and not answer.is_right:
                    wrongly_paid.append(
                        f"the {answer.kind} solution is not judged correct: {answer.scored.why}"
                    )
        for step, own in self.weights.items():
            when = "" if self.is_only_one else f"at step {step} "
            if not honest:
                earned.append(f"{when}no honest one is judged correct")
                continue
            least = min(answer.scored.total(own) for answer in honest)
            best = max(answer.scored.total(own) for answer in others)
            earned.append(f"{when}honest ones earn {least:.2f} or more, others up to {best:.2f}")
            for answer in others:
                total = answer.scored.total(own)
                if total >= least:
                    wrongly_paid.append(
                        f"{when}an answer of kind {answer.kind!r} earns {total:.2f}, "
                        f"an honest one {least:.2f}:\n{answer.text}"
                    )
        return earned, wrongly_paid


def check_rewards(options: tasks.Options, sandbox: Sandbox | GradingPool) -> tuple[str, str]:
    """A table of what each known answer earns, for each stage of the curriculum, and one line that sums it up.

    Raises:
        CheckError: with the table, if a wrong or dishonest answer earns what an honest one does at any step,
            or if an answer cannot be graded at a later stage (no memory for its inputs), which would end the
            run there.
        RewardError: if a reward function fails.
        SandboxError: if the sandbox does.
    """
    task = tasks.load(options.type)
    row = tasks.labelled(task.rows(replace(options, num_rows=1))[0], options)
    grader = Grader([options], sandbox)
    tables, earned = [], []
    all_steps = list(steps_of_stages(options, grader.weights.steps()))
    for steps in all_steps:
        known = tasks.known_answers(task, row, tasks.at_step(options, steps[0]))
        if not known:
            nothing = "no right and wrong answers are known to its first row: nothing to compare"
            return "", f"check: {options.type}: {nothing}"
        known = [*known, *IDLE]
        scored = score_known(grader, known, row, steps[0])
        answers = [
            Answer(kind, text, item) for (kind, text), item in zip(known, scored, strict=True)
        ]
        weights = {step: grader.weights.at(step) for step in steps}
        stage = Stage(answers, weights, is_only_one=all_steps == [[0]])
        pays, wrongly_paid = stage.compare()
        if wrongly_paid:
            raise CheckError("\n".join((BEATEN, stage.table(), *wrongly_paid)))
        tables.append(stage.table())
        earned += pays
    return "\n\n".join(
        tables
    ), f"check: {options.type}: {len(known)} known answers; {'; '.join(earned)}"


def score_known(
    grader: Grader, known: Sequence[tuple[str, str]], row: dict, step: int
) -> list[Scored]:
    try:
        return grader.score([text for _, text in known], [row] * len(known), step)
    except GradeError as error:
        if step == 0:
            raise
        raise CheckError(
            f"{BEATEN}\nthe known answers cannot be graded from step {step} on: {error}"
        ) from error


def steps_of_stages(options: tasks.Options, corners: Sequence[int]) -> Iterator[list[int]]:
    """For each stage of the curriculum its first step and those between which all totals are linear in the step: where
    one answer out-earns another at each of these, it does so throughout the stage.

    Args:
        corners: steps at which a schedule of weights changes its slope.
    """
    begins = sorted({0, *(begin for begin, _ in options.stages)})
    for begin, end in itertools.zip_longest(begins, begins[1:]):
        steps = {begin}
        if end is not None and len(corners) > 1:
            steps.add(end - 1)
        steps.update(step for step in corners if step > begin and (end is None or step < end))
        yield sorted(steps)
