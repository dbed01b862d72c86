"""Answer a question step by step: is the conclusion right, and is the way there laid out?

A problem is a question, or a mapping {question: ..., answer: ...}. The answer may be a number, a
fraction, LaTeX, yes or no (YAML's bare yes and no are understood), the letter of a choice, or
words; it may also be a worked solution that ends in one ("... #### 72"). Without an answer only the
layout can be scored.

The conclusion is what stands in \\boxed{}, in <answer>, behind "Answer:" or after "the answer is";
conclusions/ says how it is found and read. It must be a value in final form: repeating the question
is no answer.

Everything but `correct_conclusion` is a heuristic over the text: deterministic, bounded, cheap, and
blind to whether the steps are true. What each one looks at stands in its function here.
`correct_conclusion` outweighs them together, so that no wrong conclusion earns what a right one
does.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

import tasks
from sandbox import Sandbox, Status, conclusions, verifier
from tasks import Grade, problem_mistakes
from tasks import Options as SharedOptions

TEMPLATE = """\
Think step-by-step to answer: {question}
Write numbered steps, then a last line "Answer: " with the answer alone."""

PROBLEMS = [
    {"question": "What is 15 * 23?", "answer": 345},
    {
        "question": "If all roses are flowers and some flowers fade quickly, can we conclude that "
        "some roses fade quickly?",
        "answer": "no",
    },
    {"question": "What is 1/3 + 1/6, as a fraction?", "answer": "1/2"},
]

REWARDS = ["correct_conclusion", "step_by_step", "consistency", "clarity", "length_penalty"]
FIXED_INPUTS = True
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
    "345",
    "Answer: -345",
    "Answer: 15 * 24",
    "Answer: 345%",
    "Answer:",
    "",
]
CHEAT = [
    STEPS.format("15 * 23") + "Answer: 15 * 23",
    "Answer: What is 15 * 23?",
    TEMPLATE.format(question="What is 15 * 23?"),
    "Answer: 345 or 346",
    "Answer: 346 = 345",
    "Answer: not 345",
    "The answer is not 345.",
    "\\boxed{345}\nAnswer: 346",
    "Answer: <!-- 345 -->",
    "\\boxed{}",
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
    # What is done with problems whose answer is unclear
    unreadable_answers: Literal["refuse", "drop"] = "refuse"
    free_characters: int = 2000  # longer completions pay a length penalty; full at twice as many

    def __post_init__(self):
        mistakes = []
        if "{question}" not in self.prompt_template:
            mistakes.append("prompt_template: {question} must stand in it")
        if self.free_characters < 1:
            mistakes.append(f"free_characters: must be above 0, not {self.free_characters}")
        mistakes += problem_mistakes(self, read_problem)
        if not mistakes:
            mistakes += answer_mistakes(self)
        if mistakes:
            raise ValueError("; ".join(mistakes))


def read_problem(problem: Any) -> tuple[str, str | None]:
    """(question, answer). Raises ValueError, which says what is wrong."""
    if isinstance(problem, str):
        return problem, None
    if not isinstance(problem, Mapping) or not isinstance(problem.get("question"), str):
        raise ValueError(
            f"must be a question or a mapping with question and answer, not {problem!r}"
        )
    unknown = set(map(str, problem)) - {"question", "answer"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}; there are question and answer")
    return problem["question"], read_answer(problem.get("answer"))


def read_answer(answer: Any) -> str | None:
    """The answer as text: YAML reads a bare `no` as false. Raises ValueError for a list, a mapping
    or no text."""
    if answer is None:
        return None
    if answer is True:
        return "yes"
    if answer is False:
        return "no"
    if not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"answer must be a number or text, not {answer!r}")
    return str(answer)


def answer_mistakes(options: Options) -> Iterator[str]:
    """What keeps the answers of the problems from being compared, each with its place."""
    unreadable = list(unreadable_problems(options))
    if unreadable and options.unreadable_answers == "refuse":
        yield from unreadable
        yield "task.unreadable_answers: drop leaves such problems out"
    if not readable(options.problems):
        yield "problems: none has an answer that can be read"
    answers = [read_problem(problem)[1] for problem in (*options.problems, *options.eval_problems)]
    if not verifier.installed() and any(answer is not None for answer in answers):
        yield verifier.NOT_INSTALLED


def unreadable_problems(options: Options) -> Iterator[str]:
    """The place of each problem whose answer cannot be read, and why."""
    for key in ("problems", "eval_problems"):
        for i, problem in enumerate(getattr(options, key)):
            _, answer = read_problem(problem)
            why = unreadable(answer)
            if why:
                yield f"{key}[{i}]: the answer cannot be read: {why}"


def unreadable(answer: str | None) -> str:
    """Why an answer cannot be read, in words; empty if it can, or if there is none."""
    if answer is None:
        return ""
    try:
        conclusions.read_expected(answer)
    except conclusions.Unreadable as error:
        return str(error)
    return ""


def readable(problems: list[Any]) -> list[Any]:
    return [problem for problem in problems if not unreadable(read_problem(problem)[1])]


def rows(options: Options) -> list[dict[str, Any]]:
    """One row for each of num_rows, problem by problem in turn, with the columns question and
    answer."""
    problems = itertools.cycle(readable(options.problems))
    return [make_row(problem, options) for problem in itertools.islice(problems, options.num_rows)]


def eval_rows(options: Options) -> list[dict[str, Any]]:
    """One row for each problem that is held out."""
    return [make_row(problem, options) for problem in readable(options.eval_problems)]


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
    question = row.get("question")
    if not isinstance(question, str):
        question = ""
    return judge(completion, answer, options.free_characters, question)


def judge(
    completion: Any,
    answer: str | None,
    free_characters: int,
    question: str = "",
    marked: bool = True,
) -> Grade:
    """Score a text. No program is run, so the status is OK, or that of a comparison that was
    stopped.

    `data` holds: answered (is an answer known to compare with), and step_by_step, consistency,
    clarity and length_penalty.

    Args: question: what was asked, where it is known: its own expressions are no answers. marked:
        whether the prompt asked for a marker, so that a last line without one is no conclusion.
    """
    text = completion if isinstance(completion, str) else ""

    # Is the conclusion right?
    found = conclusions.find(text, marked)
    repeated = conclusions.repeats(question, text)
    status, correct, detail = compare(answer, found, question, repeated)

    # Is the way there laid out? Steps that lead to a wrong answer are not consistent.
    known_wrong = answer is not None and not correct
    agreement = 0.0
    if not known_wrong:
        agreement = consistency(found.lines, answer or found.text)
    data = {
        "answered": answer is not None,
        "step_by_step": step_by_step(found.lines),
        "consistency": agreement,
        "clarity": clarity(text, found.text),
        "length_penalty": length_penalty(text, free_characters),
    }
    return Grade(status, correct=correct, passed=float(correct), detail=detail, data=data)


def length_penalty(text: str, free_characters: int) -> float:
    """0 up to `free_characters`, then falling to -1 at twice as many."""
    excess = len(text) / free_characters - 1.0
    return -round(min(max(excess, 0.0), 1.0), 3)


def compare(
    answer: str | None, found: conclusions.Conclusion, question: str, repeated: bool
) -> tuple[Status, bool, str]:
    """(status, whether the conclusion is the answer, why not)."""
    # Is there something to compare?
    if not found.text:
        return Status.OK, False, "no conclusion"
    if repeated:
        return Status.OK, False, "the question again"
    if answer is None:
        return Status.OK, False, "there is no answer to compare with"
    try:
        expected = conclusions.read_expected(answer)
    except conclusions.Unreadable as error:
        return Status.BAD_ROW, False, f"the answer cannot be read: {error}"

    # Compare it.
    if any(conclusions.contradicts(expected, other) for other in found.others):
        return Status.OK, False, "two conclusions that differ"
    verdict = verifier.shared().agree(expected, found.text, question)
    if verdict is None:
        return Status.TIMEOUT, False, "the conclusion could not be compared in time"
    if not verdict:
        return Status.OK, False, f"the conclusion is not {expected}"
    return Status.OK, True, ""


# Every pattern is linear in the length of the text: repetition is bounded or possessive.
NUMBERED = re.compile(r"[^\w\n]{0,8}(?:step[^\w\n]{0,4})?\d{1,3}\s?[.):]", re.IGNORECASE)
LISTED = re.compile(
    r"\s{0,8}[-*•]\s|[^\w\n]{0,8}(?:first|second|third|next|then|now|finally|so|thus|therefore"
    r"|hence)\b",
    re.IGNORECASE,
)
NUMBER_OF_STEP = re.compile(r"(?:step )?[0-9]{1,3}[.):]\s", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]\s|\n")


def step_by_step(lines: Sequence[str]) -> float:
    """0 to 1: a third for each distinct line, up to three, that begins as a step does (a number, a
    bullet, First, Then, ...) and says something (three words or an equation). More steps earn
    nothing more."""
    found = set()
    for line in lines:
        begins_as_step = NUMBERED.match(line) or LISTED.match(line)
        says_something = len(line.split()) > 3 or "=" in line
        if begins_as_step and says_something:
            found.add(line.casefold().lstrip("0123456789.:) "))
    return round(min(len(found), 3) / 3, 3)


def consistency(lines: Sequence[str], value: str) -> float:
    """1 if the last line before the conclusion arrives at `value`, else 0. Such a line ends in the
    value, behind its last "=" if it has one. A line with the box itself does not count."""
    if lines and "\\boxed" in lines[-1]:
        lines = lines[:-1]
    if not lines or not value:
        return 0.0
    try:
        value = conclusions.read_expected(value)
    except conclusions.Unreadable:
        return 0.0
    result = lines[-1].rpartition("=")[2].strip()
    result = NUMBER_OF_STEP.sub("", result, count=1)
    if not result:
        return 0.0
    return float(verifier.shared().agree(value, result) is True)


def clarity(text: str, conclusion: str) -> float:
    """0 to 1, a third each: a conclusion of at most 100 characters; no sentence or line of more
    than 40 words; and at least 7 of 10 runs of three words occur for the first time, in a text of
    ten words or more."""
    words = text.casefold().split()
    # A conclusion that can be seen at a glance.
    brief = 0 < len(conclusion) <= 100

    # Sentences that can be followed.
    longest = max(len(sentence.split()) for sentence in SENTENCE_END.split(text))
    short = bool(words) and longest <= 40

    # No padding with the same words.
    runs = list(zip(words, words[1:], words[2:], strict=False))
    fresh = len(words) >= 10 and len(set(runs)) >= 0.7 * len(runs)
    return round((brief + short + fresh) / 3, 3)


SOLUTION = """\
1. Read what is given and what is asked.
2. Work it out, one part after the other.
3. Put the parts together = {}
"""
EXPRESSION = re.compile(r"[0-9(][-0-9+*/^(). ×÷·]{2,200}[0-9)]")


def known_answers(
    row: Mapping[str, Any], options: SharedOptions, marked: bool = True
) -> list[tuple[str, Any]]:
    """(kind, completion) for check.py, whatever the first question is. `marked` as in `judge`."""
    answer = row.get("answer")
    if answer is None:
        return [
            ("unverified", SOLUTION.format("42") + "Answer: 42"),
            ("cheat", "1. Think.\n" * 300),
            ("cheat", str(row.get("question", ""))),
            ("wrong", "Answer:"),
        ]

    # Right and wrong conclusions. A sentence ends with its full stop: what follows is read apart.
    answer = conclusions.read_expected(answer).rstrip().removesuffix(".")
    opposites = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
    other = opposites.get(answer.casefold(), "-98765.4321")
    right = [
        ("reference", SOLUTION.format(answer) + f"Answer: {answer}"),
        ("slower", f"Answer: {answer}"),
    ]
    wrong = [
        SOLUTION.format(answer) + f"Answer: {other}",
        SOLUTION.format(other) + f"Answer: {other}",
        "Answer:",
        "",
    ]
    if marked:
        wrong.append(SOLUTION.format(answer))

    # Attempts at a reward without an answer.
    cheat = [
        f"Answer: {answer}\n" + f"Answer: {other}\n" * 50,
        "1. Think it through once more.\n" * 40 + f"Answer: {other}",
        "Answer: yes and no, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -98765",
        "Answer: 9^9^9^9^9^9",
        "\\boxed{}",
        f"Answer: {answer} or {other}",
        f"Answer: not {answer}",
        f"The answer is not {answer}.",
        *echoes(row, answer),
    ]
    known = right + [("wrong", text) for text in wrong] + [("cheat", text) for text in cheat]
    return known + tasks.python_answers(f"Answer: {answer}", f"Answer: {other}", options)


def echoes(row: Mapping[str, Any], answer: str) -> Iterator[str]:
    """Completions that repeat what was asked: the prompt, the question, its expressions."""
    texts = []
    for message in row.get("prompt") or []:
        if message.get("role") == "user":
            texts.append(message["content"])
    texts.append(row.get("question") or "")

    # The prompt may be the question.
    for text in filter(None, dict.fromkeys(texts)):
        yield text
        yield f"Answer: {text}"
        for match in EXPRESSION.finditer(text):
            expression = match[0]
            is_number = expression.replace(".", "").isdigit()
            if is_number or expression == answer:
                continue
            yield f"Answer: {expression}"
            yield expression
