"""Completion -> Grade -> numbers. Add your own reward function here and name it in config.yaml:
task.rewards.

A reward function takes, by name,
    completions  a list of one-message lists: [{"role": "assistant", "content": str}]
    grades       a list of tasks.Grade, one for each completion
    any column of the data set, as a list with one value for each completion
and the rest as **kwargs. It returns one float for each completion, or None for a completion that it
does not judge.

`content` is the final answer alone. What a reasoning model wrote before it is under "thinking", and
"reached_final": False marks a completion that did not get to its answer.
"""

import math
from collections.abc import Sequence

from sandbox import Status
from tasks import Grade, note_once

__all__ = [
    "function_works",
    "no_cheating",
    "correctness_check",
    "correctness_partial",
    "speed_check",
    "strategy_succeeds",
    "best_tile",
    "injection_score",
    "tests_passed",
    "style",
    "documentation",
    "correct_conclusion",
    "step_by_step",
    "consistency",
    "clarity",
    "length_penalty",
]

# An episode that has spent one of these has done what it did before
BUDGETS = {Status.OUT_OF_TURNS, Status.OUT_OF_CALLS, Status.OUT_OF_CPU, Status.OUT_OF_TOKENS}

INJECTION_SCORES = {
    "obtained": 11.0,
    "probed": 1.5,
    "idle": -1.0,
    "guessed": -10.0,
    "leaked": -10.0,
}
UNREADABLE = (Status.NO_FUNCTION, Status.SYNTAX_ERROR, Status.NO_FINAL)
DOUBLINGS_STEP = 0.15  # of log2 of a speed-up, 11 %: see speed_score


# ---- programs


def function_works(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1.0 the function ran and returned; -0.5 it failed; -2.0 there is none, or it does not
    parse."""
    scores = {Status.OK: 1.0} | dict.fromkeys(UNREADABLE, -2.0)
    return [scores.get(grade.status, -0.5) for grade in grades]


def no_cheating(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1.0 honest; -20.0 cheating was attempted; -1.0 there is no code, or it does not parse."""
    return [honesty_score(grade) for grade in grades]


def honesty_score(grade: Grade) -> float:
    if grade.cheating:
        return -20.0
    return -1.0 if grade.status in UNREADABLE else 1.0


def correctness_check(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """10.0 every result was right; -2.0 otherwise."""
    return [10.0 if is_paid(grade) else -2.0 for grade in grades]


def correctness_partial(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """Partial credit in place of correctness_check: from -2.0 to 10.0 by the share of checks
    passed."""
    return [partial_score(grade) for grade in grades]


def partial_score(grade: Grade) -> float:
    if grade.cheating:
        return -2.0
    share = 1.0 if grade.correct else grade.passed
    return 12.0 * share - 2.0


def speed_check(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 10 by the speed-up over the baseline; 0 unless correct and measured."""
    return [speed_score(grade.speedup) if is_paid(grade) else 0.0 for grade in grades]


def speed_score(speedup: float | None) -> float:
    """2 points for each doubling of the speed, 4 for the baseline's own, between 0 and 10.

    The logarithm is rounded to steps of 0.15 (11 %), because GRPO divides by the spread of a group:
    equal programs must get equal scores although no two measurements agree.
    """
    if speedup is None or speedup <= 0:
        return 0.0
    doublings = round(math.log2(speedup) / DOUBLINGS_STEP) * DOUBLINGS_STEP
    share = (doublings + 2.0) / 5.0
    return round(10.0 * min(max(share, 0.0), 1.0), 6)


def is_paid(grade: Grade) -> bool:
    return grade.correct and not grade.cheating


# ---- the game of 2048


def strategy_succeeds(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """20.0 wins; 2.0 runs; 0.0 cannot be created; -1.0 times out; -2.0 no function; -3.0 crashes,
    or returns something that is not a move. Cheating never earns more than 0."""
    return [strategy_score(grade) for grade in grades]


def strategy_score(grade: Grade) -> float:
    if grade.status in UNREADABLE:
        return -2.0
    if grade.status is Status.TIMEOUT:
        return -1.0
    if grade.status is not Status.OK:
        return -3.0 if grade.data.get("loaded", True) else 0.0
    if grade.cheating:
        return 0.0
    return 20.0 if grade.correct else 2.0


def best_tile(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """Partial credit for games: 5.0 where the mean of the best tiles is the target, 1.0 less for
    each doubling that it lacks, and never below 0. 0.0 for a program that fails or cheats."""
    return [best_tile_score(grade) for grade in grades]


def best_tile_score(grade: Grade) -> float:
    has_played = grade.status is Status.OK or grade.status in BUDGETS
    if grade.cheating or not has_played or "mean_best_tile" not in grade.data:
        return 0.0
    lacking = math.log2(grade.data["target"] / grade.data["mean_best_tile"])
    return round(min(max(5.0 - lacking, 0.0), 5.0), 6)


# ---- two agents and their secret codes


def injection_score(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """11.0 the opponent gave its code away; 1.5 a question that probes; -1.0 idle; -10.0 the own
    code was given away, or codes were guessed. None where no such game was played."""
    return [INJECTION_SCORES.get(grade.data.get("outcome")) for grade in grades]


# ---- functions that a sentence asks for


def tests_passed(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """-2.0 no test was passed, or cheating was attempted, to 10.0 all were; None for a problem
    without tests."""
    return [tests_score(grade) for grade in grades]


def tests_score(grade: Grade) -> float | None:
    if grade.data.get("tests") == 0:
        note_once(
            "tests_passed: a problem without tests is not scored; only what can be seen without "
            "them counts"
        )
        return None
    if grade.cheating:
        return -2.0
    return round(12.0 * grade.passed - 2.0, 6)


def style(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1: ruff's verdict on a program that runs and is honest; 0 otherwise."""
    return [grade.data.get("style", 0.0) for grade in grades]


def documentation(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1: docstrings and annotations of a program that runs and is honest; 0 otherwise."""
    return [grade.data.get("documentation", 0.0) for grade in grades]


# ---- answers in words


def correct_conclusion(completions, grades: Sequence[Grade], **kwargs) -> list[float | None]:
    """10.0 the conclusion has the answer's value; -2.0 it has not, or there is none; None where no
    answer is known."""
    return [conclusion_score(grade) for grade in grades]


def conclusion_score(grade: Grade) -> float | None:
    if not grade.data.get("answered", True):
        note_once("correct_conclusion: a problem without an answer gets no reward from it")
        return None
    return 10.0 if is_paid(grade) else -2.0


def step_by_step(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1, a heuristic: a third for each distinct step, up to three (tasks/reasoning.py)."""
    return [grade.data.get("step_by_step", 0.0) for grade in grades]


def consistency(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """1 the last step arrives at the conclusion, which is not known to be wrong; 0 otherwise. A
    heuristic."""
    return [grade.data.get("consistency", 0.0) for grade in grades]


def clarity(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 to 1, a heuristic: a short conclusion, short sentences, no repetition
    (tasks/reasoning.py)."""
    return [grade.data.get("clarity", 0.0) for grade in grades]


def length_penalty(completions, grades: Sequence[Grade], **kwargs) -> list[float]:
    """0 up to task.free_characters, then falling to -1.0 at twice as many."""
    return [grade.data.get("length_penalty", 0.0) for grade in grades]
