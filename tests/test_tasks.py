"""tasks/: every file there is held to the same checks; what all tasks share; and each task's own rules."""

import ast
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
from job import config
from job.errors import ConfigError
from job.grading import Grader, resolve, shares
from sandbox import Status
from tasks import code_blocks, extract_code, matmul

ROOT = Path(__file__).parent.parent


def totals(task, options, sandbox, texts):
    """Total reward of each text on the task's first row, as training would score it."""
    row = {name: value for name, value in task.rows(options)[0].items() if name != "prompt"}
    grades = Grader([options], sandbox, seed=5).grade(texts, [row] * len(texts))
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {name: [value] * len(texts) for name, value in row.items()}
    return np.sum(
        [resolve(name)(completions, grades=grades, **columns) for name in task.REWARDS], axis=0
    ), grades


class Watched:
    """Options that remember which of their keys were read."""

    def __init__(self, options):
        self.options, self.read = options, set()

    def __getattr__(self, key):
        self.read.add(key)
        return getattr(self.options, key)


@pytest.mark.parametrize("name", tasks.names())
class TestEveryTask:
    def test_rows_render(self, name):
        task = tasks.load(name)
        rows = task.rows(task.Options(type=name, num_rows=3))
        assert len(rows) == 3
        for row in rows:
            assert row["prompt"] and all(
                message["role"] and message["content"] for message in row["prompt"]
            )

    def test_reference_earns_full_marks_and_nothing_else_does(self, name, sandbox):
        task = tasks.load(name)
        (reference, *others), grades = totals(
            task,
            task.Options(type=name),
            sandbox,
            [task.REFERENCE, "", "no code here", None, *task.WRONG, *task.CHEAT],
        )
        assert grades[0].correct and not grades[0].cheating, grades[0].detail
        assert max(others) < reference
        assert not any(grade.correct and not grade.cheating for grade in grades[1:])

    def test_options_have_defaults(self, name):
        task = tasks.load(name)
        assert issubclass(task.Options, tasks.Options)
        assert dataclasses.asdict(task.Options(type=name))
        assert [resolve(reward) for reward in task.REWARDS]

    def test_what_a_curriculum_may_change_is_read_by_no_row(self, name):
        task = tasks.load(name)
        own = {field.name for field in dataclasses.fields(task.Options)}
        own -= {field.name for field in dataclasses.fields(tasks.Options)}
        keys = set(getattr(task, "CURRICULUM_KEYS", []))
        assert keys <= own
        watched = Watched(task.Options(type=name, num_rows=9))
        assert task.rows(watched) and watched.read
        if hasattr(task, "eval_rows"):
            task.eval_rows(watched)
        assert not keys & watched.read

    def test_imports_no_torch(self, name):
        code = f"import sys, tasks.{name}; print('torch' in sys.modules)"
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("step", "pairs", "largest"),
    [(0, 5, 96), (9, 5, 96), (10, 2, 96), (19, 2, 96), (20, 5, 64), (10**6, 5, 64)],
)
def test_a_stage_replaces_the_tasks_own_values_and_no_others(step, pairs, largest):
    stages = [{"step": 10, "timing_pairs": 2}, {"step": 20, "timing_max_size": 64}]
    options = tasks.at_step(matmul.Options(type="matmul", prompt="mine", curriculum=stages), step)
    assert (options.timing_pairs, options.timing_max_size, options.prompt) == (
        pairs,
        largest,
        "mine",
    )


def test_an_impossible_stage_is_refused_where_nobody_validated_it():
    options = matmul.Options(type="matmul", curriculum=[{"step": 0, "prompt": "other"}])
    with pytest.raises(
        ValueError, match="prompt: cannot change by step; of matmul can: timing_pairs"
    ):
        tasks.at_step(options, 0)


SHAPES = [
    json.loads(line)
    for line in (ROOT / "tests" / "data" / "extraction.jsonl").open(encoding="utf-8")
]


@pytest.mark.parametrize("shape", SHAPES, ids=[shape["id"] for shape in SHAPES])
def test_extract_code(shape):
    assert extract_code(shape["completion"], shape["function"]) == (
        shape["code"],
        shape["unclosed"],
    )


@given(st.text(alphabet="`~>-1.\n\r\t python markdown def matmul(A):x", max_size=300))
def test_code_blocks_hold_whole_lines_of_the_text(text):
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    for code, _ in code_blocks(text):
        rest = iter(lines)
        assert all(any(line.endswith(own.strip()) for line in rest) for own in code.split("\n"))


@pytest.mark.parametrize(
    "text_of",
    [
        lambda n: " " * n + "x",
        lambda n: "\t" * n + "```",
        lambda n: "`" * n,
        lambda n: "``` " * (n // 4),
        lambda n: ">" * n + "```",
        lambda n: "> " * n + "```\n" + "> " * n + "x",
        lambda n: "> " * 1000 + "```\n" + ("> " * 999 + "x\n") * (n // 2000),
        lambda n: "1. " * n,
        lambda n: "- " * n + "```",
        lambda n: "```md\n" * (n // 6),
        lambda n: "".join("`" * length + "md\n" for length in range(math.isqrt(2 * n), 2, -1)),
        lambda n: "```" + " " * n + "`",
        lambda n: "```\n" + " " * n + "x",
        lambda n: "```\n" + " \n" * (n // 2),
        lambda n: "```\n" + "def " + " " * n,
        lambda n: "```\n" + "def " + "\\\n" * n,
        lambda n: "```\n" + "async " * n,
        lambda n: "```\n" + "matmul:" * n,
        lambda n: "```\n" + "matmul" + " " * n,
        lambda n: "\r" * n,
    ],
    ids=lambda text_of: repr(text_of(3000)[:12]),
)
def test_extraction_takes_linear_time(times_as_much, text_of):
    def extract(text):
        assert extract_code(text, "matmul") == (None, False)

    # 15 times as long: quadratic work would take 225 times as much
    assert times_as_much(extract, text_of(20_000), text_of(300_000)) < 75


@pytest.mark.parametrize("name", ["matmul", "game_2048", "code"])
def test_an_unclosed_program_is_judged_like_any_other_and_flagged(name, sandbox):
    task = tasks.load(name)
    closed = task.REFERENCE
    (total, cut_total), (grade, cut) = totals(
        task, task.Options(type=name), sandbox, [closed, cut_off(closed)]
    )
    assert cut.correct and cut.code.strip() == grade.code.strip() and cut_total > 0 < total
    assert cut.data["unclosed"] is True and "never closed" in cut.detail
    assert "unclosed" not in grade.data and "never closed" not in grade.detail
    assert shares([grade, cut])["grades/unclosed"] == 0.5


def cut_off(completion):
    return completion[: completion.rindex("```")]


def grade(sandbox, code, seed=0, **options):
    text = f"```python\n{code}\n```"
    return matmul.grade(
        text, {}, matmul.Options(type="matmul", **options), sandbox, np.random.default_rng(seed)
    )


LOOP = matmul.BASELINE


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        (
            "def matmul(A, B):\n    return [[0.0] * len(B[0]) for _ in A]",
            Status.OK,
            "wrong product",
        ),
        ("def matmul(A, B):\n    return A + A", Status.OK, "expected a list of 1 rows"),
        (
            "def matmul(A, B):\n    return [[float('nan')] * len(B[0]) for _ in A]",
            Status.OK,
            "not finite",
        ),
        (
            "def matmul(A, B):\n    return [[10 ** 999] * len(B[0]) for _ in A]",
            Status.OK,
            "too large",
        ),
        (
            "def matmul(A, B):\n    return [[True] * len(B[0]) for _ in A]",
            Status.OK,
            "expected int or float",
        ),
        (
            "def matmul(A, B):\n    return [['1'] * len(B[0]) for _ in A]",
            Status.OK,
            "expected int or float",
        ),
        ("def matmul(A, B):\n    return None", Status.OK, "expected a list"),
        ("def matmul(A, B):\n    raise ValueError('no')", Status.CRASH, "no"),
        ("def matmul(A):\n    return A", Status.CRASH, "argument"),
        ("def matmul(A, B:\n    return A", Status.SYNTAX_ERROR, ""),
        ("def matmul(A, B):\n    while True: pass", Status.TIMEOUT, "stopped"),
    ],
)
def test_wrong_programs(sandbox, code, status, detail):
    result = matmul.grade(
        f"```python\n{code}\n```",
        {},
        matmul.Options(type="matmul"),
        sandbox_with_short_limit(sandbox),
        np.random.default_rng(0),
    )
    assert (result.status, result.correct, result.speedup) == (status, False, None)
    assert detail in result.detail


class sandbox_with_short_limit:
    """The shared sandbox with half a second for a call."""

    def __init__(self, sandbox):
        self.sandbox = sandbox

    def open(self, code, entry_point):
        return self.sandbox.open(
            code, entry_point, dataclasses.replace(self.sandbox.limits, timeout_s=0.5)
        )


def test_an_overflowing_value_counts_as_wrong_not_as_our_error():
    assert matmul.mistake([[10**400]], np.ones((1, 1)), np.ones((1, 1)))


def test_rounding_in_another_order_is_right():
    rng = np.random.default_rng(3)
    a, b = (
        rng.uniform(-1, 1, (20, 300)) * 10.0 ** rng.integers(-6, 7, (20, 300)),
        rng.uniform(-1, 1, (300, 5)),
    )
    backwards = [
        [sum(a[i, p] * b[p, j] for p in reversed(range(300))) for j in range(5)] for i in range(20)
    ]
    assert matmul.mistake([[float(x) for x in row] for row in backwards], a, b) == ""
    assert matmul.mistake([[float(x) * (1 + 1e-6) for x in row] for row in backwards], a, b)


def test_inputs_are_fresh_and_of_all_kinds():
    drawn = [matmul.draw_inputs(np.random.default_rng(seed)) for seed in range(2)]
    for inputs in drawn:
        shapes = [(a.shape[0], *b.shape) for a, b in inputs]
        assert (1, 1, 1) in shapes and len(shapes) >= 6
        assert any(n == 1 < m for n, k, m in shapes) and any(m == 1 < n for n, k, m in shapes)
        assert any(a.dtype.kind == "i" for a, b in inputs) and any(
            (a == 0).any() for a, b in inputs
        )
    assert any(not np.array_equal(one[0], other[0]) for one, other in zip(*drawn, strict=True))


def test_a_special_case_for_one_size_is_found_out(sandbox):
    code = LOOP.replace(
        "    C = ", "    if n > 20:\n        return [[0.0] * m for _ in range(n)]\n    C = "
    )
    assert not grade(sandbox, code).correct


def test_changing_the_inputs_is_wrong(sandbox):
    code = (
        LOOP
        + "\ninner = matmul\ndef matmul(A, B):\n    C = inner(A, B)\n    del A[1:]\n    return C\n"
    )
    result = grade(sandbox, code)
    assert not result.correct and "changed its arguments" in result.detail


@pytest.mark.parametrize(
    "key", ["len(A), len(B[0]), A[0][0], B[0][0]", "sum(map(len, A)), B[0][0]"]
)
def test_a_remembered_result_is_found_out(sandbox, key):
    code = LOOP + f"\ninner, seen = matmul, {{}}\ndef matmul(A, B):\n    key = {key}\n"
    code += "    if key not in seen:\n        seen[key] = inner(A, B)\n    return seen[key]\n"
    assert not grade(sandbox, code).correct


def test_a_faster_program_has_the_higher_speedup(sandbox):
    same, fast = grade(sandbox, LOOP), grade(sandbox, extract_code(matmul.REFERENCE, "matmul")[0])
    assert fast.speedup > same.speedup


@pytest.mark.slow  # it measures: other programs on the machine disturb it
def test_speed_is_measured_against_the_naive_loop(sandbox):
    same, fast = grade(sandbox, LOOP), grade(sandbox, extract_code(matmul.REFERENCE, "matmul")[0])
    assert same.speedup == pytest.approx(1.0, abs=0.25)
    assert fast.speedup > 1.3


def test_an_implausible_speedup_is_not_paid(sandbox):
    result = grade(sandbox, LOOP, max_speedup=0.1)
    assert result.correct and result.speedup is None and "implausible" in result.detail


def test_the_task_files_define_what_the_package_promises():
    for name in tasks.names():
        tree = ast.parse((ROOT / "tasks" / f"{name}.py").read_text())
        assert ast.get_docstring(tree)


GOOD_TASK = """
from tasks import Options
REWARDS, REFERENCE, SLOWER, WRONG, CHEAT = [], "", [], [], []
def rows(options): return [{"prompt": "x"}]
def grade(*arguments): pass
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def rows(:\n",
            r"tasks/broken.py cannot be imported: SyntaxError: .*\(broken.py, line 1\)",
        ),
        (
            "\nfrom sandbox import Statuz\n",
            r"cannot be imported: ImportError: .*'Statuz'.*\(broken.py:2\)",
        ),
        (
            GOOD_TASK.replace("REFERENCE", "REFERENZ").replace("def grade", "def grades"),
            "lacks grade, REFERENCE; the",
        ),
        (
            GOOD_TASK.replace("from tasks import", "class"),
            r"its Options must be a subclass of tasks.Options",
        ),
    ],
)
def test_a_file_that_is_no_task_is_a_config_error(tmp_path, monkeypatch, text, message):
    (tmp_path / "broken.py").write_text(text.replace("class Options", "class Options: pass"))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tasks.broken", raising=False)
    with pytest.raises(ConfigError, match=f"^task.type: .*{message}"):
        config.load_config(None, ["task.type=broken"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompts": []}, "a row must be a mapping with a prompt"),
        ("text", "a row must be a mapping with a prompt"),
        ({"prompt": "text"}, "a prompt must be .* not 'text'"),
        ({"prompt": []}, "a prompt must be"),
        ({"prompt": [{"role": "user", "contents": "x"}]}, "a prompt must be"),
    ],
)
def test_what_is_no_row_is_told(row, message):
    with pytest.raises(ValueError, match=f"rows of tasks/matmul.py: {message}"):
        tasks.labelled(row, matmul.Options(type="matmul"))
    assert tasks.labelled(
        {"prompt": [{"role": "user", "content": "x"}]}, matmul.Options(type="matmul")
    )
