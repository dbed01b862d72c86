"""tasks/: every file there is held to the same checks; what all tasks share; and each task's own
rules."""

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
from job.rows import mixed_rows
from sandbox import Run, Status
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
        options = task.Options(type=name)
        row = tasks.labelled(task.rows(options)[0], options)
        known = tasks.known_answers(task, row, options)
        texts = [text for kind, text in known if kind == "reference"][:1]
        texts += ["", "no code here", None]
        texts += [text for kind, text in known if kind in ("wrong", "cheat")]
        (reference, *others), grades = totals(task, options, sandbox, texts)
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

    def open(self, code, entry_point, **options):
        limits = dataclasses.replace(self.sandbox.limits, call_cpu_s=0.5)
        return self.sandbox.open(code, entry_point, limits, **options)


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


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [*matmul.draw_inputs(rng), *matmul.draw_large_inputs(rng)]


@pytest.mark.parametrize("seed", range(20))
def test_every_draw_has_inputs_of_all_classes(seed):
    inputs = drawn(seed)
    shapes = [(a.shape[0], *b.shape) for a, b in inputs]
    assert all(a.shape[1] == b.shape[0] for a, b in inputs)
    assert {(n == 1, k == 1, m == 1) for n, k, m in shapes} >= {
        (True, True, True), (True, False, True), (True, False, False),
        (False, False, True), (False, True, False),
    }  # fmt: skip
    sides = {n for n, k, m in shapes if n == k == m}
    assert sides >= {2, 3, 4, 8, 16, 32, 64, 128}
    assert {k % 8 for n, k, m in shapes if k > 8} == set(range(8))
    assert len({(n % 2, k % 2, m % 2) for n, k, m in shapes if k > 1}) == 8
    for i in range(3):
        assert any(shape[i] > 160 for shape in shapes)
        other, third = (i + 1) % 3, (i + 2) % 3
        assert any(shape[i] == shape[other] != shape[third] for shape in shapes)
        assert any(shape[i] > shape[other] > 1 for shape in shapes)
        assert any(1 < shape[i] < shape[other] for shape in shapes)


@pytest.mark.parametrize("seed", range(20))
def test_every_draw_has_values_of_all_classes(seed):
    inputs = drawn(seed)
    assert any(a is b for a, b in inputs)
    assert any(a is not b and np.array_equal(a, b) for a, b in inputs)
    assert any(a.dtype.kind == "i" and b.dtype.kind == "f" for a, b in inputs)
    assert any(a.dtype.kind == "f" and b.dtype.kind == "i" for a, b in inputs)
    large = [(a, b) for a, b in inputs if a.dtype.kind == "i" and np.abs(a).min() >= 2**33]
    assert any((a < 0).any() for a, b in large)
    assert any((a > 0).all() and (b > 0).all() for a, b in large)
    proper = [(a, b) for a, b in inputs if a.size > 9 and b.size > 9]
    assert any((a > 0).all() and a.dtype.kind == "f" for a, b in proper)
    assert any(a[0, 0] == 0 and a.any() and not a.any(axis=1).all() for a, b in proper)
    assert any(not b.any(axis=0).all() for a, b in proper)
    assert any(not a.any() for a, b in proper)
    cancelling = [(a, b) for a, b in proper if a.all(axis=1).any() and (a @ b == 0).any()]
    assert any(np.abs(a).sum() and a.dtype.kind == "i" for a, b in cancelling)


def test_every_draw_is_fresh():
    assert not any(
        np.array_equal(one[0], other[0]) and one[0].any()
        for one, other in zip(drawn(0), drawn(1), strict=True)
        if one[0].shape == other[0].shape
    )


def test_one_object_can_be_sent_twice(sandbox):
    a = np.arange(4.0).reshape(2, 2)
    for b, same in ((a, True), (a.copy(), False)):
        with sandbox.open("def matmul(A, B):\n    return A is B", "matmul") as program:
            assert program.call(matmul.arguments_of(a, b)).value is same


SPOILED = """
def right(A, B):
    columns = list(zip(*B))
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in A]

def matmul(A, B):
    n, k, m = len(A), len(B), len(B[0])
    C = right(A, B)
    numbers = [x for M in (A, B) for row in M for x in row]
    if {condition}:
        C[-1][-1] += 1 + abs(C[-1][-1])
    return C
"""


@pytest.mark.parametrize(
    "condition",
    [
        "n == k == m > 1",
        "n == k == m == 2",
        "n == k == m > 1 and n & (n - 1) == 0",
        "n == k == m > 64 and n & (n - 1) == 0",  # Strassen's method with a cutoff at 64
        "n > 160",
        "k > 128",
        "m > 160",
        "A is B",
        "A == B",
        "n == 1 < m",
        "n == m == 1 < k",
        "k > 8 and k % 8 == 5",
        "all(type(x) is int for x in numbers)",
        "any(x < 0 for x in numbers)",
        "len(numbers) > 20 and all(x > 0 for x in numbers)",
        "A[0][0] == 0",
        "not all(map(any, A))",
        "any(type(x) is int and x > 2**32 for x in numbers)",
        "C[0][0] == 0",
    ],
)
def test_a_program_that_is_wrong_on_one_class_only_is_found_out(condition):
    names = {}
    exec(SPOILED.format(condition=condition), names)
    for seed in range(3):
        results = ((a, b, names["matmul"](*matmul.arguments_of(a, b))) for a, b in drawn(seed))
        assert any(matmul.mistake(value, a, b) for a, b, value in results)


WRAPPED = """
inner = matmul
def matmul(A, B):
    wrap = lambda x: x % 2**{bits} if type(x) is int and x > 0 else x
    return [[wrap(x) for x in row] for row in inner(A, B)]
"""
SINGLE = """
import struct
inner = matmul
def matmul(A, B):
    return [[struct.unpack("f", struct.pack("f", x))[0] for x in row] for row in inner(A, B)]
"""


@pytest.mark.parametrize("code", [WRAPPED.format(bits=32), WRAPPED.format(bits=64), SINGLE])
def test_short_numbers_are_found_out(sandbox, code):
    exact = extract_code(matmul.REFERENCE, "matmul")[0]  # sums of integers stay integers
    assert grade(sandbox, exact, timing_pairs=1).correct
    assert not grade(sandbox, exact + code).correct


@pytest.mark.parametrize("start", ["0", "0.0"])
def test_large_integers_may_be_summed_as_integers_or_as_floats(start):
    names = {}
    exec(LOOP.replace("total = 0.0", f"total = {start}"), names)
    for seed in range(3):
        for a, b in matmul.draw_inputs(np.random.default_rng(seed)):
            assert matmul.mistake(names["matmul"](a.tolist(), b.tolist()), a, b) == ""


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


def pairs_of(speedups, naive_s=0.02):
    """One round of timed pairs, each of 10**6 multiplications."""
    pairs = []
    for speedup in speedups:
        run, naive = (Run(Status.OK, cpu_s=cpu_s) for cpu_s in (naive_s / speedup, naive_s))
        pairs.append(matmul.Pair(run, naive, "", 10**6))
    return pairs


def test_one_round_is_enough_on_a_quiet_machine():
    quiet = pairs_of([1.0, 4.0, 0.5])  # speed-ups that depend on the shape are no unrest
    assert matmul.enough_rounds([quiet]) and not matmul.enough_rounds([])
    restless = pairs_of([1.0, 1.0]) + pairs_of([1.0], naive_s=0.03)
    assert not matmul.enough_rounds([restless])


def test_rounds_are_added_until_they_agree():
    restless = pairs_of([1.0]) + pairs_of([2.0], naive_s=0.03)
    assert matmul.enough_rounds([restless, restless])
    other = pairs_of([1.5, 3.0])
    assert not matmul.enough_rounds([restless, other])
    assert matmul.enough_rounds([restless, other] * 2)  # the last round
    assert matmul.uncertainty([restless, other] * 2) > matmul.MAX_ERROR


def test_a_slow_program_is_timed_in_one_round():
    assert matmul.enough_rounds([pairs_of([0.01]) + pairs_of([0.01], naive_s=0.04)])


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.integers(2, 4))
def test_rounds_that_agree_leave_no_uncertainty(speedups, count):
    assert matmul.uncertainty([pairs_of(speedups)] * count) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 12), st.integers(1, 90), st.integers(0, 60), st.integers(0, 2**32))
def test_timed_shapes_are_spread_over_the_range(count, least, width, seed):
    options = matmul.Options(
        type="matmul", timing_pairs=count, timing_min_size=least, timing_max_size=least + width
    )
    shapes = matmul.timed_shapes(options, np.random.default_rng(seed))
    assert len(shapes) == count
    for sizes in zip(*shapes, strict=True):
        parts = sorted((size - least) * count / (width + 1) for size in sizes)
        assert min(sizes) >= least and max(sizes) <= least + width
        assert all(
            part - count / (width + 1) < i + 1 and part >= i - count for i, part in enumerate(parts)
        )


def test_a_speed_that_cannot_be_measured_is_not_paid(sandbox, monkeypatch):
    monkeypatch.setattr(matmul, "QUIET", -1.0)
    monkeypatch.setattr(matmul, "GOOD_ERROR", -1.0)
    monkeypatch.setattr(matmul, "MAX_ERROR", -1.0)
    result = grade(sandbox, LOOP, timing_max_size=60)
    assert result.correct and result.passed == 1.0 and result.speedup is None
    assert "could not be measured: the machine is too busy" in result.detail


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
        (
            GOOD_TASK.replace("*arguments", "completion, row"),
            r"grade\(completion, row\) must take what it is called with: "
            r"grade\(completion, row, options, sandbox, rng\)$",
        ),
        (GOOD_TASK.replace("def grade", "async def grade"), "grade must not be async"),
        (GOOD_TASK.replace("rows(options)", "rows()"), r"rows\(\) must take .*: rows\(options\)"),
        (GOOD_TASK + "grade = 5", r"grade must be a function, called as grade\(comp"),
        (GOOD_TASK + "REWARDS = 'style'", "REWARDS must be a list of names, not 'style'"),
        (GOOD_TASK + "WRONG = 'a text'", "WRONG must be a list of texts, not 'a text'"),
        (GOOD_TASK + "REFERENCE = None", "REFERENCE must be a text, not None"),
        (
            GOOD_TASK + "class Options(Options):\n    size: int = 4",
            r"its Options lack @dataclass\(frozen=True\)",
        ),
    ],
)
def test_a_file_that_is_no_task_is_a_config_error(tmp_path, monkeypatch, text, message):
    (tmp_path / "broken.py").write_text(text.replace("class Options\n", "class Options: pass\n"))
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"rows of tasks/mine.py returned None \(NoneType\), not a list"),
        ("yield {'prompt': 'x'}", r"rows of tasks/mine.py returned <generator .*not a list"),
        ("return []", "rows of tasks/mine.py returned no row"),
        ("return [1 / 0]", r"rows of tasks/mine.py raised ZeroDivisionError: .* \(mine.py:4\)"),
        ("return [{'prompts': 'x'}]", "rows of tasks/mine.py: a row must be a mapping with a pro"),
        ("raise ValueError('length: is odd')", "^length: is odd$"),
    ],
)
def test_rows_that_are_none_are_one_clear_line(tmp_path, monkeypatch, body, message):
    text = GOOD_TASK.replace("def rows(options): return [{\"prompt\": \"x\"}]",
                             f"def rows(options): {body}")  # fmt: skip
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tasks.mine", raising=False)
    with pytest.raises(ValueError, match=message):
        mixed_rows([tasks.load("mine").Options(type="mine")])
