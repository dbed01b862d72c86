"""conclusions/: where a text concludes, what a literal is worth, which conclusions are answers; all
in linear time."""

import importlib
import json
import pkgutil
import re
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Status, conclusions, verifier
from sandbox.conclusions import Unreadable, compare, contradicts, find, kind_of, read_expected
from sandbox.conclusions.literals import plain, read_values
from tasks import jsonl, reasoning

DATA = Path(__file__).parent / "data"
ROWS = [
    json.loads(line)
    for name in ("answers.jsonl", "round2_answers.jsonl")
    for line in (DATA / name).open(encoding="utf-8")
]


# ------------------------------------------------------------ rows of tests/data


def grade(row):
    options = {"reasoning": reasoning, "jsonl": jsonl}[row["task"]]
    return options.grade(row["completion"], row, OPTIONS[row["task"]], None, None)


OPTIONS = {"reasoning": reasoning.Options(type="reasoning"), "jsonl": jsonl.Options(type="jsonl")}


@pytest.fixture(scope="module")
def grades():
    with ThreadPoolExecutor(4) as threads:
        return dict(zip((row["id"] for row in ROWS), threads.map(grade, ROWS), strict=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_a_row_is_judged_as_a_reader_would(grades, row):
    assert grades[row["id"]].correct is row["accept"], row["why"]
    assert grades[row["id"]].status in (Status.OK, Status.TIMEOUT)
    assert grades[row["id"]].status is Status.OK or not row["accept"]


# ------------------------------------------------------------ where a text concludes


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("1. a\nAnswer: 42", "42"), ("**Answer:** 42", "42"), ("**Answer: 42**", "42"),
        ("### Final answer\n42", "42"), ("The answer is 42.", "42."),
        ("So the final answer is: no", "no"), ("345", ""),
        ("Conclusion: No, it does not.", "No, it does not."), ("x = 1\nso \\boxed{5}", "5"),
        ("one\ntwo", ""), ("Answer: 1\nAnswer: 2", "2"), ("Answer:", ""), ("", ""),
        ("Answers vary.\nMore.", ""), ("\\boxed{1}\nAnswer: 2\nThat is all.", "1"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{\\boxed{5}}", "\\boxed{5}"),
        ("\\boxed{5} and \\boxed{6", "5"), ("\\boxed{}\nAnswer: 3", "3"), ("}\\boxed{5}", "5"),
        ("\\boxed 7", "7"), ("\\fbox{8}", "8"), ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("<answer>\n 5 \n</answer>", "5"), ("<ANSWER>5</ANSWER> <answer>6", "5"), ("#### 72", "72"),
        ("<answer>a\nAnswer: 5</answer>", "5"), ("#### Step 3", ""),
        ("<think>Answer: 1</think>Answer: 2", "2"), ("Answer:\n\\[\n5\n\\]", "5"),
        ("Answer:\n$$\n5\n$$\n", "5"), ("Answer: $$\n5\n$$", "5"), ("Answer:\n```\n5\n```", "5"),
        ("Answer: 5 <!-- 6 -->", "5"), ("<!-- Answer: 5", ""), ("1. Answer: 5", "5"),
        ("Answer: -5", "-5"), ("Answer - 5", "5"), ("Answer (in m): 5", "5"),
        ("The answer is 5.\nI hope this helps!", "5."), ("The answer is 5.\nBut is it?", ""),
        ("### Answer\n" + "word " * 30, ""),
    ],
)  # fmt: skip
def test_the_conclusion_is_found(text, conclusion):
    assert find(text).text == conclusion


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("a\n345", "345"), ("So 15 * 23 = 345.", "So 15 * 23 = 345."),
        ("Yes, of course.", "Yes, of course."), ("In 1990 there were many people in the town", ""),
        ("345\n---\n", "345"), ("1\nAnswer: 2", "2"),
    ],
)  # fmt: skip
def test_without_a_marker_the_last_line_may_conclude(text, conclusion):
    assert find(text, marked=False).text == conclusion


@pytest.mark.parametrize("line", ["3. Add them up", "Step 3: add", "- 3) Done", "3. So it goes"])
def test_the_number_of_a_step_is_no_conclusion(line):
    assert not compare("3", find(line, marked=False).text).agrees


def test_a_choice_of_the_question_is_no_conclusion_of_its_echo():
    question = "Which is the largest?\nA) 2\nB) 3"
    row = {"answer": "B", "prompt": question}
    right = {
        question: False,
        "A) 2\nB) 3": False,
        "B) 3": True,
        "It has the largest value.\nB) 3": True,
    }
    for text, correct in right.items():
        assert jsonl.grade(text, row, OPTIONS["jsonl"], None, None).correct is correct, text


def test_other_places_are_kept_and_the_lines_before():
    found = find("1. a\n\n2. b\n\\boxed{5}\nAnswer: 6")
    assert (found.text, found.others, found.lines) == ("5", ("6",), ("1. a", "2. b", "\\boxed{5}"))
    assert find("1. a\nAnswer: 6").lines == ("1. a",)
    assert (
        contradicts("5", "6") and not contradicts("5", "5.0") and not contradicts("5", "see above")
    )
    assert (
        contradicts("yes", "No.") and contradicts("B", "(C)") and not contradicts("B", "the second")
    )


# ------------------------------------------------------------ literals


@given(st.integers(-(10**30), 10**30))
def test_integers_are_read_exactly_with_any_separator(number):
    for written in (
        f"{number}",
        f"{number:,}",
        f"{number:,}".replace(",", " "),
        f"{number:,}".replace(",", "{,}"),
    ):
        assert [value.value for value in read_values(plain(written))] == [number]


@given(st.fractions(max_denominator=10**6))
def test_fractions_are_read_exactly_and_final_in_lowest_terms(number):
    for written in (
        f"{number.numerator}/{number.denominator}",
        rf"\frac{{{number.numerator}}}{{{number.denominator}}}",
    ):
        (literal,) = read_values(plain(written))
        assert literal.value == number and literal.final is (number.denominator > 1)
    doubled = f"{2 * number.numerator}/{2 * number.denominator}"
    assert not read_values(doubled)[0].final


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9
    )
)
def test_decimals_round_what_is_near(number):
    (literal,) = read_values(plain(f"{number:f}"))
    assert literal.value == Fraction(number)
    assert literal.rounds(Fraction(number) + literal.step / 3) and not literal.rounds(
        Fraction(number) + literal.step
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1½", "3/2"), ("1 1/2", "3/2"), (r"1\frac12", "3/2"), ("-1 1/2", "-3/2"), ("50%", "1/2"),
        ("6.02×10²", 602), ("1.5e2", 150), ("$1,234.50", "2469/2"), ("80 km/h", 80), ("15 cm²", 15),
        ("3 million", 3000000), ("5!", None), ("1,23", None), ("123 45", "12345x"), ("5x", None),
        ("5 x", None), ("345k", None), ("1/0", None), ("x < 5", None), ("1e99999", None),
        ("1.2.3", None), ("12/05/2024", None), ("2 * 3", None), ("not 5", None),
        ("at least 5", None), ("minus 5", None), ("", None), ("no number", None), (".5", "1/2"),
        ("5.", 5), ("3rd", None), ("٣", None),
    ],
)  # fmt: skip
def test_a_literal_has_one_value_or_none(text, value):
    values = read_values(plain(text))
    if value is None or value == "12345x":
        assert not values
    else:
        assert [literal.value for literal in values] == [Fraction(value)]


# ------------------------------------------------------------ kinds, and the data set's column


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("yes", "yes_no"), ("False", "yes_no"), ("B", "letter"), ("(C)", "letter"),
        ("A,C", "letters"), ("x", "formula"), ("345", "number"), ("1,234", "number"),
        ("\\$36", "number"), ("10\\%", "number"), ("15\\text{ cm}^2", "number"),
        ("120^\\circ", "number"), ("x = 5", "number"), ("12 apples", "number"), ("5!", "formula"),
        ("2x", "formula"), ("3:2", "text"), ("2024-01-05", "text"), ("555-1234", "text"),
        ("4210_5", "text"), ("Paris", "words"), ("\\text{Evelyn}", "words"),
        ("Paris 2024", "words"), ("H2O", "words"), ("\\sqrt{2}", "formula"), ("(3, 4)", "formula"),
        ("3, 4", "formula"), ("y = 2x + 3", "formula"), ("sin(x)", "formula"),
    ],
)  # fmt: skip
def test_the_kind_of_an_answer(answer, kind):
    assert kind_of(plain(answer)) == kind


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("72", "72"), (" 72 ", "72"), ("She has 3 + 4 = 7.\nSo 7.\n#### 7", "7"),
        ("Thus $x = \\boxed{\\frac12}$.", "\\frac12"), ("Answer: B", "B"),
        ("The answer is 5.", "5."), ("3:2", "3:2"), ("the blue whale", "the blue whale"),
    ],
)  # fmt: skip
def test_the_answer_of_a_column(text, answer):
    assert read_expected(text) == answer


@pytest.mark.parametrize("text", ["", "  ", "one line\nand another", "word " * 30])
def test_a_column_without_an_answer_is_told(text):
    with pytest.raises(Unreadable):
        read_expected(text)


# ------------------------------------------------------------ the question again


@pytest.mark.parametrize(
    ("question", "expected", "text", "agrees"),
    [
        ("What is 3/4 as a decimal?", "0.75", "3/4", False),
        ("What is 3 ÷ 4?", "0.75", "3/4", False), ("What is 13/4?", "3/4", "3/4", True),
        ("Which is larger, 1/2 or 1/3?", "1/2", "1/2", True), ("", "0.75", "3/4", True),
        ("What is half of 1.5?", "0.75", "3/4", True), ("What is 13/41?", "0.75", "3/4", True),
    ],
)  # fmt: skip
def test_an_expression_of_the_question_is_no_answer(question, expected, text, agrees):
    assert compare(expected, text, question).agrees is agrees


@given(
    st.text(max_size=200),
    st.sampled_from(["345", "yes", "B", "x^2", "3:2", "Paris", "1, 2", "(1, 2)"]),
)
def test_no_text_breaks_the_reader(text, expected):
    found = find(text, marked=False)
    assert isinstance(compare(expected, found.text, text).agrees, bool)
    assert isinstance(compare(expected, text, text).agrees, bool)
    contradicts(expected, text)


# ------------------------------------------------------------ linear time

MODULES = [
    *(
        importlib.import_module(f"sandbox.conclusions.{name}")
        for _, name, _ in pkgutil.iter_modules(conclusions.__path__)
    ),
    conclusions, reasoning, jsonl, verifier,
]  # fmt: skip
PATTERNS = {
    f"{module.__name__}.{name}": pattern
    for module in MODULES
    for name, value in vars(module).items()
    for pattern in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    )
    if isinstance(pattern, re.Pattern)
}
PIECES = [  # characters, pairs of them, and the words that patterns look for
    *"a1 .,-*_=(){}[]\\$#/:<>\n\"'`!|x√²½",
    *(one + other for one in "a1 -*({=" for other in "1 .-*)}$," if one != other), "111,", "1 1 ",
    "\\text{", "\\boxed{", "\\frac{", "}{", "so ", "is ", "is it ", "is A ", "no, ", "(a) ",
    "Answer: ", "<!--", "<answer>", "1/2 ", "A, B ", "**a**", "-x = ", "\\boxed{1} or ", "x = 1, ",
    "1. a ", "not ", "the answer is ",
]  # fmt: skip
SHORT, LONG = 750, 3000
TOO_LITTLE_S = 0.004  # a quadratic pattern takes longer for LONG characters
# Times as long for four times the text; a quadratic pattern takes sixteen times as long
GENEROUS = 10


def least_time(call, runs=3):
    times = []
    for _ in range(runs):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def superlinear(call, piece):
    """Whether `call` takes far more than four times as long for four times the text; too little to
    measure is linear."""
    long = piece * (LONG // len(piece))
    if least_time(lambda: call(long), 1) < TOO_LITTLE_S:
        return False
    short = piece * (SHORT // len(piece))
    return least_time(lambda: call(long)) > GENEROUS * max(least_time(lambda: call(short)), 0.0005)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name):
    def search(text):
        PATTERNS[name].sub("", text)
        PATTERNS[name].fullmatch(text)

    assert [piece for piece in PIECES if superlinear(search, piece)] == []


def test_reading_and_comparing_is_linear():
    def judge(text):
        found = find(text, marked=False)
        for expected in (
            "345",
            "yes",
            "B",
            "A, B",
            "3:2",
            "Paris",
            "x^2 - 2",
            "(1, 2)",
            "\\{1, 2\\}",
        ):
            compare(expected, found.text or text, text)
            contradicts(expected, text)

    assert [piece for piece in PIECES[::4] if superlinear(judge, piece)] == []


@pytest.mark.parametrize("piece", ["-", "*", "- ", "#", "Answer ", "(", "="])
def test_grading_a_repeated_piece_is_linear(piece):
    assert not superlinear(lambda text: reasoning.judge(text, "345", 2000), piece)


def test_every_pattern_is_a_constant_that_the_test_above_sees():
    for module in MODULES:
        source = Path(module.__file__).read_text(encoding="utf-8")
        inline = re.findall(r"\bre\.(?:sub|findall|split|search|finditer)\(", source)
        assert not inline, module.__name__


FIGURES = st.characters(categories=("Nd", "No", "Nl", "Sm", "Lu"))


@given(
    st.text(
        FIGURES | st.sampled_from(" .,:=/%^$\\{}()[]<>-+*#\nAnswer:boxed0123456789"), max_size=80
    ),
    st.sampled_from(["345", "1/2", "no", "(1, 2)", "x^2"]),
)
def test_any_text_is_read_without_an_error(text, expected):
    for marked in (True, False):
        found = conclusions.find(text, marked)
        conclusions.compare(expected, found.text, "What is 15 * 23?")
