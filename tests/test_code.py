"""tasks/code.py: tests decide, hidden ones too; ruff's verdict is bounded; and nothing untrusted is
parsed here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear import is_slow, name_of, patterns_of, slow_pieces
from test_check import CORPUS, acceptable

import reward_functions
import tasks
from job import config
from job.errors import CheckError, ConfigError
from job.grade_file import grade_file
from job.reward_check import check_rewards
from sandbox import Status
from tasks import Grade, code
from tasks.code import Options, read_assert, read_problem, same, verdicts

ROOT = Path(__file__).parent.parent
ADD = {
    "task": "adds",
    "entry_point": "add",
    "tests": [[[1, 2], 3]],
    "hidden_tests": [[[2, 2], 4], [[0, 0], 0], [[5, 5], 10]],
}


def grade(sandbox, program, problem=ADD, **options):
    settings = Options(type="code", problems=[problem], **options)
    return code.grade(
        f"```python\n{program}\n```", {"problem": 0}, settings, sandbox, np.random.default_rng(0)
    )


def test_the_corpus_gets_acceptable_verdicts(quick_sandbox):
    rows = [row for row in CORPUS if row["task"] == "code"]
    columns = ("id", "task", "completion", "entry_point", "tests")
    job = config.load_config(None, ["task.type=code"])
    lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
    graded = [json.loads(line) for line in grade_file(lines, job, quick_sandbox, None)]
    reference = {"c_ok_sum": "sum_even", "c_ok_fib_lru": "fib"}
    totals = {
        row["entry_point"]: got["total"]
        for row, got in zip(rows, graded, strict=True)
        if row["id"] in reference
    }
    assert len(rows) >= 13 and set(totals) == {"sum_even", "fib"}
    for row, got in zip(rows, graded, strict=True):
        assert acceptable(row, got, totals.get(row["entry_point"], min(totals.values()))), (
            row["id"],
            got,
        )


def test_a_hard_coded_visible_test_earns_less_than_the_whole(sandbox):
    graded = grade(sandbox, "def add(a, b):\n    return {(1, 2): 3}.get((a, b))")
    assert (graded.status, graded.correct, graded.passed) == (Status.OK, False, 0.25)
    assert grade(sandbox, "def add(a, b):\n    return a + b").correct


def test_hidden_tests_stay_hidden():
    row, *_ = code.rows(Options(type="code", problems=[ADD]))
    assert "`add(1, 2)` is `3`" in row["prompt"][0]["content"] and "add(2, 2)" not in json.dumps(
        row
    )
    assert set(row) == {"prompt", "problem"}
    assert (
        "add(1, 2)"
        not in code.rows(Options(type="code", problems=[ADD], show_tests=0))[0]["prompt"][0][
            "content"
        ]
    )


def test_the_seed_configuration_without_tests(sandbox, tmp_path):
    (tmp_path / "seed.yaml").write_text(
        "task:\n  type: code\n  prompt_template: |\n    Write a Python function that {task}\n"
        "  problems:\n    - sorts a list of numbers\n    - finds the factorial of n\n"
    )
    job = config.load_config(tmp_path / "seed.yaml")
    contents = [row["prompt"][0]["content"] for row in code.rows(job.tasks[0])[:3]]
    assert contents == [
        f"Write a Python function that {what}"
        for what in (
            "sorts a list of numbers",
            "finds the factorial of n",
            "sorts a list of numbers",
        )
    ]
    table, line = check_rewards(job.tasks[0], sandbox)
    assert "unverified" in table and "honest ones earn" in line


def test_without_tests_a_program_is_seen_to_run_and_no_more(sandbox, capsys):
    tasks.note_once.cache_clear()
    runs, fails = (
        grade(sandbox, "def anything(x):\n    return x", "adds"),
        grade(sandbox, "def f(x):\n    return (", "adds"),
    )
    assert (runs.status, runs.correct, runs.data["style"]) == (Status.OK, False, 1.0)
    assert fails.status is Status.SYNTAX_ERROR and "style" not in fails.data
    for _ in range(2):
        assert reward_functions.tests_passed([None, None], grades=[runs, fails]) == [None, None]
    assert capsys.readouterr().err.count("without tests is not scored") == 1


def test_a_function_of_any_name_is_found_where_none_is_given():
    text = "```python\ndef helper():\n    pass\ndef main(x):\n    return x\n```\n```text\nno\n```"
    assert code.last_function(text) == "main"
    assert code.last_function("def f(): pass") is None and code.last_function(None) is None


def test_the_first_failure_gives_the_status_and_the_rest_still_counts(sandbox):
    graded = grade(
        sandbox, "def add(a, b):\n    if a == 2:\n        raise KeyError(a)\n    return a + b"
    )
    assert (graded.status, graded.passed) == (
        Status.CRASH,
        0.75,
    ) and "test 2 of 4: KeyError" in graded.detail
    assert "style" not in graded.data
    paid = (reward_functions.tests_passed, reward_functions.style, reward_functions.documentation)
    assert [function([None], grades=[graded])[0] for function in paid] == [
        7.0,
        0.0,
        0.0,
    ]


def test_cheating_pays_nothing(sandbox):
    graded = grade(sandbox, "import subprocess\ndef add(a, b):\n    return a + b")
    assert graded.cheating and "style" not in graded.data
    found_in_a_call = grade(
        sandbox,
        "def add(a, b):\n"
        "    try:\n        __import__('o' + 's')\n"
        "    except ImportError:\n        return a + b",
    )
    assert found_in_a_call.cheating and reward_functions.tests_passed(
        [None], grades=[found_in_a_call]
    ) == [-2.0]


@pytest.mark.parametrize(("share", "score"), [(0.0, -2.0), (0.5, 4.0), (1.0, 10.0)])
def test_score_of_tests(share, score):
    assert reward_functions.tests_passed(
        [None], grades=[Grade(Status.OK, passed=share, data={"tests": 2})]
    ) == [score]
    # Of another task
    assert reward_functions.tests_passed([None], grades=[Grade(Status.OK, passed=share)]) == [score]


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, True, False), (True, 1, False), (True, 1.0, False), (0, False, False),
        (True, True, True), (None, None, True), (0, None, False), (2.0, 2, True), (2, 2.0, True),
        (2.0000001, 2, False), (10**400, 1.0, False), (0.1 + 0.2, 0.3, True), (0.30001, 0.3, False),
        (1e-13, 0.0, True), (10**30, 1e30, True), (10**30 + 1, 10**30, False),
        (float("nan"), float("nan"), True), (float("nan"), 1.0, False), (1.0, float("nan"), False),
        (float("inf"), float("inf"), True), (float("-inf"), float("inf"), False),
        (float("inf"), 3, False), ("a", "a", True), ("1", 1, False), (1, "1", False),
        ([1, 2], (1, 2), True), ([1], [1, 2], False), ([], {}, False), ({}, [], False),
        ("", [], False), ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, True),
        ({"a": 1}, {"a": True}, False), ({"a": 1}, {"b": 1}, False),
        ([[1, [True]]], [[1, [1]]], False),
    ],
)  # fmt: skip
def test_comparison(value, expected, equal):
    assert same(value, expected) is equal


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_comparison_is_reflexive_and_never_fails(one, other):
    assert same(one, one) is True
    assert same(one, other) in (True, False)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("assert f(1, 'a') == [1, 2]", ("f", [1, "a"], [1, 2])),
        ("assert f() is None", ("f", [], None)),
        ("assert (1, -2) == f({'a': 1})", ("f", [{"a": 1}], (1, -2))),
        ("  assert f([1]), 'why'  ", ("f", [[1]], True)),
        ("assert not f(0)", ("f", [0], False)),
    ],
)
def test_assert_lines(line, read):
    assert read_assert(line) == read


@pytest.mark.parametrize(
    "line",
    [
        "assert f(x) == 1", "assert f(1) == g(1)", "assert abs(f(1) - 2) < 1e-9",
        "assert f(1) != 2", "assert f(a=1) == 1", "assert len(f(1)) == 2", "assert f(*[1]) == 1",
        "f(1) == 2", "assert", "",
        "assert f(1) == 1 == 1", "assert f(1) == 1; import os", "assert f(" + "(" * 5000 + ") == 1",
        "assert f(1) == 1\nassert f(2) == 2", "\0", "assert a.f(1) == 2",
    ],
)  # fmt: skip
def test_other_assert_lines_are_refused(line):
    with pytest.raises(ValueError, match=r"not of the form|cannot be parsed"):
        read_assert(line)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (3, "must be a sentence or a mapping"),
        ({"tests": []}, "task must be a sentence"),
        ({"task": "x", "test": []}, r"unknown keys \['test'\]"),
        ({"task": "x", "tests": [[[1], 2]]}, "entry_point is missing"),
        (
            {"task": "x", "entry_point": "f", "tests": [[1, 2]]},
            r"tests\[0\]: must be \[\[arguments\], expected\]",
        ),
        (
            {"task": "x", "entry_point": "f", "hidden_tests": ["assert g(1) == 1"]},
            "tests g, but the entry point is f",
        ),
        ({"task": "x", "tests": ["assert f(1) == {1, 2}"]}, "no program can return"),
        ({"task": "x", "tests": ["assert f(1) == {1: 2}"]}, "only text keys"),
        ({"task": "x", "tests": [{"assert f('a": "b')"}]}, "quotes round a line with a colon"),
        ({"task": "x", "entry_point": "not a name"}, "must be a function name"),
        ({"task": "x", "tests": "assert f(1) == 1"}, "tests must be a list"),
    ],
)
def test_mistakes_in_problems(problem, message):
    with pytest.raises(ValueError, match=message):
        read_problem(problem)


def test_mistakes_are_config_errors_with_their_place():
    with pytest.raises(ConfigError, match=re.escape("problems[1]: tests[0]:")):
        config.load_config(
            None,
            ["task.type=code", "task.problems=[sorts, {task: x, tests: ['assert f(y) == 1']}]"],
        )
    with pytest.raises(ConfigError, match="prompt_template: {task} must stand in it"):
        config.load_config(None, ["task.type=code", "task.prompt_template=Write a function"])


def test_a_row_of_a_file_may_be_broken(sandbox):
    lines = [json.dumps({"task": "code", "completion": "", **row}) for row in (
        {"problem": 99}, {"problem": [1]}, {"tests": [3]}, {"entry_point": 5},
        {"entry_point": "f", "tests": "no"}, {},
    )]  # fmt: skip
    graded = [
        json.loads(line) for line in grade_file(lines, config.load_config(None), sandbox, None)
    ]
    assert [row["status"] for row in graded] == ["bad_row"] * 5 + ["no_function"]


def test_every_problem_of_the_configuration_can_be_solved(sandbox, tmp_path):
    job = config.load_config(ROOT / "configs" / "code.yaml")
    rows = code.rows(job.tasks[0])[: len(job.tasks[0].problems)] + code.eval_rows(job.tasks[0])
    assert [row["problem"] for row in rows] == list(
        range(len(job.tasks[0].problems) + len(job.tasks[0].eval_problems))
    )
    for row in rows:
        reference = dict(reversed(code.known_answers(row, job.tasks[0])))["reference"]
        assert code.grade(reference, row, job.tasks[0], sandbox, np.random.default_rng(0)).correct
    config.save(job, tmp_path / "saved.yaml")
    assert config.load_config(tmp_path / "saved.yaml") == job


def test_tests_that_accept_anything_are_found_out(quick_sandbox):
    job = config.load_config(
        None,
        ["task.type=code", "task.problems=[{task: does nothing, tests: ['assert f(1) is None']}]"],
    )
    with pytest.raises(CheckError, match="an answer of kind 'wrong' earns"):
        check_rewards(job.tasks[0], quick_sandbox)


TIDY = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n    return a + b'


@pytest.mark.parametrize(
    ("program", "styled", "documented"),
    [
        (TIDY, 1.0, 1.0),
        (TIDY + "\n\n\n", 1.0, 1.0),
        ("def add(a: int, b: int) -> int:\n    return a + b", 1.0, 0.5),
        ('def add(a, b):\n    """Add."""\n    return a + b', 1.0, 0.5),
        ('def add(a, b):\n    """ """\n    return a + b', 1.0, 0.0),
        ("import json\ndef add(a, b):\n    l = a + b ;\n    return l", 0.4, 0.0),
        (
            "import json\nimport re\nimport math\nimport abc\nimport io\nimport queue\n" + TIDY,
            0.0,
            1.0,
        ),
        ("# ruff: noqa\nimport json  # noqa\n" + TIDY, 0.8, 1.0),
        ("__all__ = []\n\n\n" + TIDY, 1.0, 0.0),
        (TIDY + "\n\n\nx = " + "-" * 300_000 + "1", 0.0, 0.0),
        (TIDY + "\n\n\nx = " + "-" * 150_000 + "1", 0.0, 0.0),
        (TIDY + "\n\n\nx = '\ud800'", 1.0, 1.0),
    ],
)
def test_style_and_documentation(program, styled, documented):
    assert verdicts(program, "add") == {"style": styled, "documentation": documented}


ASKED = (
    'def maxSum(numList: list, l: int) -> int:\n    """Add some."""\n    return sum(numList[:l])'
)


def test_a_name_that_the_task_asks_for_is_no_fault():
    assert verdicts(ASKED, "maxSum", ["numList", "l"])["style"] == 1.0
    assert verdicts(ASKED, "maxSum")["style"] == 0.6
    assert verdicts(ASKED.replace("maxSum", "other"), "other", ["numList", "l"])["style"] == 1.0


def test_the_sentence_of_a_problem_says_which_names_it_asks_for(sandbox):
    problem = {"task": "adds the first l of numList", "tests": ["assert maxSum([1, 2, 3], 2) == 3"]}
    assert grade(sandbox, ASKED, problem).data["style"] == 1.0
    assert grade(sandbox, ASKED, problem | {"task": "adds some"}).data["style"] == 0.6


def test_no_undefined_function_earns_more_than_an_undocumented_one():
    least = sum(verdicts("def add(a, b):\n    return a + b", "add").values())
    for program in (
        "from operator import add",
        "import operator\n\nadd = operator.add",
        "add = int.__add__",
        "add = lambda a, b: a + b",
        'exec("def add(a, b):\\n    return a + b")',
        'add = eval("lambda a, b: a + b")',
        TIDY + '\n\n\nexec("add = int.__add__")',
        TIDY + "\n\n\nadd = int.__add__",
    ):
        assert sum(verdicts(program, "add").values()) <= least, program


def test_ruff_is_stopped_in_time(monkeypatch, tmp_path):
    # The real one may be done before any deadline that could be set here
    endless = tmp_path / "ruff"
    endless.write_text("#!/bin/sh\necho '[]'\nexec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setattr(code, "RUFF", str(endless))
    monkeypatch.setattr(code, "RUFF_TIMEOUT_S", 0.3)
    assert verdicts(TIDY, "add") == {"style": 0.0, "documentation": 0.0}


def test_ruff_runs_only_for_its_rewards(sandbox, monkeypatch):
    monkeypatch.setattr(code, "run_tool", lambda *_: pytest.fail("a tool was asked"))
    assert grade(sandbox, TIDY, rewards=["tests_passed"]).correct


REWARD_ROWS = [
    json.loads(line)
    for line in (ROOT / "tests" / "data" / "code_rewards.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


def test_programs_of_all_kinds_are_paid_acceptably(sandbox):
    columns = ("id", "task", "completion", "entry_point", "tests")
    lines = [json.dumps({name: row[name] for name in columns}) for row in REWARD_ROWS]
    job = config.load_config(None, ["task.type=code"])
    for row, line in zip(REWARD_ROWS, grade_file(lines, job, sandbox, None), strict=True):
        got, accept = json.loads(line), row["accept"]
        assert got["correct"] == accept.get("correct", got["correct"]), (row["id"], got)
        assert got["cheating"] == accept.get("cheating", got["cheating"]), (row["id"], got)
        assert accept.get("min_total", -100) <= got["total"] < accept.get("max_total_below", 100), (
            row["id"],
            got,
        )


ANCHORED = {"FENCE", "QUOTE"}  # these are only tried where a line begins


@pytest.mark.parametrize(
    ("name", "pattern"), [*patterns_of(code), *patterns_of(tasks)], ids=name_of
)
def test_every_pattern_takes_linear_time(name, pattern):
    assert slow_pieces(pattern, anchored=name in ANCHORED) == []


LINES = [
    "```\n",
    "```python\n",
    "```md\n",
    "~~~\n",
    "> ```\n",
    "> ",
    "> a\n",
    "- ",
    "1. ",
    " \n",
    "\t",
    "`",
    "a",
    "\n",
]
LINES += ["def f(\\\n", "def f", "def ", "def \\\n", "async ", "f: ", "f =", "f"]


@pytest.mark.parametrize("start", ["", "```\n", "> > ```python\n"])
@pytest.mark.parametrize("piece", LINES)
def test_extraction_takes_linear_time(start, piece):
    assert not is_slow(lambda text: tasks.extract_code(start + text, "f"), piece)
    assert not is_slow(lambda text: code.last_function(start + text), piece)


def test_without_ruff_only_what_needs_it_is_refused(monkeypatch):
    monkeypatch.setattr(code, "RUFF", None)
    with pytest.raises(
        ConfigError, match="documentation and style need ruff, which is not installed"
    ):
        config.load_config(None, ["task.type=code"])
    config.load_config(None, ["task.type=code", "task.rewards=[function_works, tests_passed]"])
    config.load_config(None, ["task.type=matmul"])
