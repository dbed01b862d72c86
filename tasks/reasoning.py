"""Answer a question step by step: is the conclusion right, and is the way there laid out?

A problem is a question, or a mapping {question: ..., answer: ...}. The answer may be a number, a fraction, LaTeX,
yes or no (YAML's bare yes and no are understood), a choice from A to E, or words; verifier.py compares by value.
Without an answer only the layout can be scored.

Everything but `correct_conclusion` is a heuristic over the text: deterministic, bounded, cheap, and blind to whether
the steps are true. What each one looks at stands in its function here. `correct_conclusion` outweighs them together,
so that no wrong conclusion earns what a right one does.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sandbox import Sandbox, Status, verifier
from tasks import Grade, problem_mistakes
from tasks import Options as SharedOptions

TEMPLATE = """\
Think step-by-step to answer: {question}
Write numbered steps, then a last line "Answer: " with the answer alone."""

PROBLEMS = [
    {"question": "What is 15 * 23?", "answer": 345},
    {
        "question": "If all roses are flowers and some flowers fade quickly, can we conclude that some roses fade "
        "quickly?",
        "answer": "no",
    },
    {"question": "What is 1/3 + 1/6, as a fraction?", "answer": "1/2"},
]

REWARDS = ["correct_conclusion", "step_by_step", "consistency", "clarity", "length_penalty"]
CURRICULUM_KEYS = ["free_characters"]

STEPS = """\
1. Split 23 into 20 and 3.
2. Multiply: 15 * 20 = 300 and 15 * 3 = 45.
3. Add the two: 300 + 45 = {}
"""
REFERENCE = STEPS.format(345) + "Answer: 345\n"
SLOWER = ["Answer: 345", "15 * 20 = 300, 15 * 3 = 45, and together\n\\boxed{345}"]
WRONG = [
    STEPS.format(335) + "Answer: 335\n",
    STEPS.format(345) + "Answer: 335\n",
    STEPS.format(345),
    "345\nAnswer: no",
    "Answer: -345",
    "Answer:",
]
CHEAT = [
    "Answer: 345 or 346 or 344",
    "Answer: " + ", ".join(map(str, range(300, 400))),
    "Answer: 345\n" + "Answer: 1\n" * 50,
    "1. Multiply the numbers.\n" * 40 + "Answer: 9",
    "Answer: 9^9^9^9^9^9",
    "Answer: " + "(" * 400,
]


@dataclass(frozen=True)
class Options(SharedOptions):
    prompt_template: str = TEMPLATE  # {question} becomes the question
    problems: Any = field(default_factory=lambda: PROBLEMS)  # questions, or mappings as above
    eval_problems: Any = field(default_factory=list)  # held out for evaluation
    free_characters: int = 2000  # longer completions pay a length penalty; full at twice as many

    def __post_init__(self):
        mistakes = []
        if "{question}" not in self.prompt_template:
            mistakes.append("prompt_template: {question} must stand in it")
        if self.free_characters < 1:
            mistakes.append(f"free_characters: must be above 0, not {self.free_characters}")
        mistakes += problem_mistakes(self, read_problem)
        if mistakes:
            raise ValueError("; ".join(mistakes))


def read_problem(problem: Any) -> tuple[str, str | None]:
    """(question, answer). Raises ValueError, which says what is wrong."""
    if isinstance(problem, str):
        problem = {"question": problem}
    if not isinstance(problem, Mapping) or not isinstance(problem.get("question"), str):
        raise ValueError(
            f"must be a question or a mapping with question and answer, not {problem!r}"
        )
    unknown = set(map(str, problem)) - {"question", "answer"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}; there are question and answer")
    return problem["question"], read_answer(problem.get("answer"))


def read_answer(answer: Any) -> str | None:
    """The answer as text: YAML reads a bare `no` as false. Raises ValueError for a list, a mapping or no text."""
    if answer is None:
        return None
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"answer must be a number or text, not {answer!r}")
    return str(answer)


def rows(options: Options) -> list[dict[str, Any]]:
    """One row for each of num_rows, problem by problem in turn, with the columns question and answer."""
    return [
        make_row(problem, options)
        for problem in itertools.islice(itertools.cycle(options.problems), options.num_rows)
    ]


def eval_rows(options: Options) -> list[dict[str, Any]]:
    """One row for each problem that is held out."""
    return [make_row(problem, options) for problem in options.eval_problems]


def make_row(problem: Any, options: Options) -> dict[str, Any]:
    question, answer = read_problem(problem)
    text = options.prompt_template.replace("{question}", question).rstrip()
    return {"prompt": [{"role": "user", "content": text}], "question": question, "answer": answer}


def grade(
    completion: Any,
    row: Mapping[str, Any],
    options: Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    try:
        answer = read_answer(row.get("answer"))
    except ValueError as error:
        return Grade(Status.BAD_ROW, detail=str(error))
    return judge(completion, answer, options.free_characters)


def judge(completion: Any, answer: str | None, free_characters: int) -> Grade:
    """Score a text. `data` holds: answered (is an answer known to compare with), and step_by_step, consistency,
    clarity and length_penalty. No program is run, so the status is OK, or that of a comparison that was stopped."""
    text = completion if isinstance(completion, str) else ""
    steps, conclusion = split(text)
    status, correct, detail = Status.OK, False, ""
    if answer is not None and conclusion:
        verdict = verifier.shared().agree(answer, conclusion)
        correct = verdict is True
        if verdict is None:
            status, detail = Status.TIMEOUT, "the conclusion could not be compared in time"
        elif not correct:
            detail = f"the conclusion is not {answer}"
    elif not conclusion:
        detail = "no conclusion"
    else:
        detail = "there is no answer to compare with"
    known_wrong = answer is not None and not correct
    data = {
        "answered": answer is not None,
        "step_by_step": step_by_step(steps),
        "consistency": 0.0 if known_wrong else consistency(steps, conclusion),
        "clarity": clarity(text, conclusion),
        "length_penalty": -round(min(max(len(text) / free_characters - 1.0, 0.0), 1.0), 3),
    }
    return Grade(status, correct=correct, passed=float(correct), detail=detail, data=data)


MARKER = re.compile(
    r"\W*(?:so|thus|therefore|hence)?\W*(?:the|my)?\W*(?:final\W+)?(?:answer|conclusion)\b(?:\W*\bis\b)?[\s:*_]*",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"\W*(?:step\W*)?\d{1,3}\s*[.):]", re.IGNORECASE)
LISTED = re.compile(
    r"\s*[-*•]\s|\W*(?:first|second|third|next|then|now|finally|so|thus|therefore|hence)\b",
    re.IGNORECASE,
)
BOXED = re.compile(r"\\boxed\s*\{")


def split(text: str) -> tuple[list[str], str]:
    """(lines before the conclusion, conclusion): what follows the last "Answer" or "Conclusion" that begins a line,
    else the last line with a \\boxed{}; a text that marks neither has no conclusion, unless it is a single line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        marker = MARKER.match(lines[i])
        if marker:
            rest = lines[i][marker.end() :].strip()
            return lines[:i], rest or " ".join(lines[i + 1 : i + 2])
        if BOXED.search(lines[i]):
            return lines[: i + 1], lines[i][BOXED.search(lines[i]).start() :]
    return ([], lines[0]) if len(lines) == 1 else (lines, "")


def step_by_step(lines: list[str]) -> float:
    """0 to 1: a third for each distinct line, up to three, that begins as a step does (a number, a bullet, First,
    Then, ...) and says something (three words or an equation). More steps earn nothing more."""
    found = {
        line.casefold().lstrip("0123456789.:) ")
        for line in lines
        if (NUMBERED.match(line) or LISTED.match(line)) and (len(line.split()) > 3 or "=" in line)
    }
    return round(min(len(found), 3) / 3, 3)


def consistency(lines: list[str], conclusion: str) -> float:
    """1 if the last line before the conclusion arrives at the conclusion's value, else 0. Its value is what follows
    its last "=", or what math-verify finds in it."""
    if not lines or not conclusion:
        return 0.0
    result = (
        lines[-1].rpartition("=")[2]
        if "\\boxed" not in lines[-1]
        else " ".join(lines[-2:-1]).rpartition("=")[2]
    )
    word = re.match(r"\W*(yes|no)\b", conclusion, re.IGNORECASE)
    return float(
        bool(result.strip())
        and verifier.shared().agree(word[1] if word else conclusion, result) is True
    )


def clarity(text: str, conclusion: str) -> float:
    """0 to 1, a third each: a conclusion of at most 100 characters; no sentence or line of more than 40 words; and at
    least 7 of 10 runs of three words occur for the first time, in a text of ten words or more."""
    words = text.casefold().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    short = (
        max((len(sentence.split()) for sentence in re.split(r"[.!?]\s|\n", text)), default=0) <= 40
    )
    fresh = len(words) >= 10 and len(set(runs)) >= 0.7 * len(runs)
    return round(((0 < len(conclusion) <= 100) + (bool(words) and short) + fresh) / 3, 3)


def known_answers(row: Mapping[str, Any], options: Options) -> list[tuple[str, str]]:
    """(kind, completion) for check.py, whatever the first question is."""
    answer = row.get("answer")
    steps = "1. Read what is given and what is asked.\n2. Work it out, one part after the other.\n3. The result is = {}\n"
    if answer is None:
        return [
            ("unverified", steps.format("42") + "Answer: 42"),
            ("cheat", "1. Think.\n" * 300),
            ("wrong", "Answer:"),
        ]
    other = {"yes": "no", "no": "yes"}.get(answer.casefold(), "-98765.4321")
    wrong = [
        steps.format(answer) + f"Answer: {other}",
        steps.format(other) + f"Answer: {other}",
        steps.format(answer),
    ]
    cheat = [
        f"Answer: {answer}\n" + f"Answer: {other}\n" * 50,
        "1. Think it through once more.\n" * 40 + f"Answer: {other}",
        "Answer: yes and no, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -98765",
        "Answer: 9^9^9^9^9^9",
    ]
    right = [
        ("reference", steps.format(answer) + f"Answer: {answer}"),
        ("slower", f"Answer: {answer}"),
    ]
    return right + [("wrong", text) for text in wrong] + [("cheat", text) for text in cheat]
