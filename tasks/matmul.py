"""Fast matrix multiplication in pure Python: is it right, and how much faster than a naive loop?"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sandbox import Program, Sandbox, Status
from tasks import Grade, extract_code, flag_unclosed
from tasks import Options as SharedOptions

PROMPT = """\
Create a new fast matrix multiplication function using only native Python code.
You are given a list of list of numbers.
Output your new function in backticks using the format below:
```python
def matmul(A, B):
    return ...
```"""

REWARDS = ["function_works", "no_cheating", "correctness_check", "speed_check"]
CURRICULUM_KEYS = ["timing_pairs", "timing_min_size", "timing_max_size", "max_speedup"]

REFERENCE = """\
```python
from operator import mul

def matmul(A, B):
    columns = list(zip(*B))
    return [[sum(map(mul, row, column)) for column in columns] for row in A]
```
"""

MAX_IDLE_CPU_S = (
    0.002  # of a program that waits for its next call; 0.00005 is usual, more disturbs the baseline
)

BASELINE = """\
def matmul(A, B):
    n, k, m = len(A), len(B), len(B[0])
    C = [[0.0] * m for _ in range(n)]
    for i in range(n):
        for j in range(m):
            total = 0.0
            for p in range(k):
                total += A[i][p] * B[p][j]
            C[i][j] = total
    return C
"""


def answer(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"```python\n{before}def matmul(A, B):\n{lines}```\n"


LOOP = "return [[sum(A[i][k] * B[k][j] for k in range(len(B))) for j in range(len(B[0]))] for i in range(len(A))]"
SLOWER = [
    f"```python\n{BASELINE}```\n",
    answer(
        f"for _ in range(3):\n    C = [[sum(x * y for x, y in zip(r, c)) for c in zip(*B)] for r in A]\n{LOOP}"
    ),
]
WRONG = [
    answer("return [[0.0] * len(B[0]) for _ in A]"),
    answer("return -1e9"),
    answer("return [[float('nan')] * len(B[0]) for _ in A]"),
    answer("if len(A) > 16:\n    return []\n" + LOOP),
    answer("raise ValueError"),
    answer("while True:\n    pass"),
    answer("return A @ B"),
    answer("calls.append(1)\nif len(calls) > 9:\n    raise ValueError\n" + LOOP, "calls = []\n"),
    "```python\ndef matmul(A, B:\n    return A\n```",
]
CHEAT = [
    answer("return (np.array(A) @ np.array(B)).tolist()", "import numpy as np\n"),
    answer("import torch\nreturn (torch.tensor(A) @ torch.tensor(B)).tolist()"),
    answer(
        "return Zero()",
        "class Zero:\n    def __sub__(self, other):\n        return 0\n    __eq__ = lambda *_: True\n\n",
    ),
    answer("raise SystemExit(0)"),
    answer("import os\nos._exit(0)"),
    answer("import time\ntime.perf_counter = time.process_time = lambda: 0.0\n" + "return []"),
    answer("import sys\nsys.stdout.write('[[0.0]]')\nreturn sys._getframe(1).f_locals"),
    answer("return __import__('subprocess').getoutput('id')"),
    answer("open('/tmp/result', 'w').write('1')\nreturn []"),
    answer(
        "return remembered.setdefault(len(A), [[0.0] * len(B[0]) for _ in A])", "remembered = {}\n"
    ),
    answer("return [x for c in ().__class__.__base__.__subclasses__() for x in [c]]"),
    answer("A.clear()\nB.clear()\nreturn []"),
]


@dataclass(frozen=True)
class Options(SharedOptions):
    prompt: str = PROMPT
    timing_pairs: int = 5  # measured pairs of (program, baseline); the median counts
    timing_min_size: int = 56  # bounds of n, k and m in a timed call
    timing_max_size: int = 96
    max_speedup: float = 20.0  # above this a speed-up is not believed and not paid

    def __post_init__(self):
        if not (
            1 <= self.timing_min_size <= self.timing_max_size and 1 <= self.timing_pairs <= 100
        ):
            raise ValueError(
                "1 <= timing_pairs <= 100 and 1 <= timing_min_size <= timing_max_size must hold"
            )
        if not self.max_speedup > 0:
            raise ValueError(
                f"max_speedup: must be above 0, or no speed is paid, not {self.max_speedup}"
            )


def rows(options: Options) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": options.prompt}]} for _ in range(options.num_rows)
    ]


def grade(
    completion: Any,
    row: Mapping[str, Any],
    options: Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    """Run the completion's matmul on fresh inputs, then time it if every result was right.

    Inputs are copied to the program and drawn anew for every call, so one that changes or remembers them gains
    nothing; changing them is wrong all the same, because matmul(A, B) must leave A and B to its caller.
    """
    code, unclosed = extract_code(completion, "matmul")
    if code is None:
        return Grade(Status.NO_FUNCTION, detail="no code block defines matmul")
    with sandbox.open(code, "matmul") as program:
        graded = try_program(program, options, sandbox, rng)
        graded = replace(
            graded, code=code, cheating=program.findings
        )  # findings may come with any call
    return flag_unclosed(graded) if unclosed else graded


def try_program(
    program: Program, options: Options, sandbox: Sandbox, rng: np.random.Generator
) -> Grade:
    if program.status is not Status.OK:
        return Grade(program.status, detail=program.error)
    inputs = draw_inputs(rng)
    mistakes = []
    for a, b in inputs:
        run = program.call([a.tolist(), b.tolist()])
        if run.status is not Status.OK:
            return Grade(run.status, detail=run.error)
        mistakes.append(run.error or mistake(run.value, a, b))
    passed = mistakes.count("") / len(inputs)
    if any(mistakes):
        return Grade(Status.OK, passed=passed, detail=next(filter(None, mistakes)))
    return time_program(program, options, sandbox, rng)


def draw_inputs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of (n, k) and (k, m) matrices: corner shapes, one dimension large, one large pair, values of all kinds.

    The last pair differs from the one before it in one inner number: a result remembered by shape, corners or
    object identity gives itself away.
    """
    n, k, m = (int(size) for size in rng.integers(3, 12, size=3))
    large = [
        n,
        2,
        m,
    ]  # one dimension beyond 128; only one, because padding programs (Strassen) pay for it cubed
    large[rng.integers(3)] = int(rng.integers(129, 160))
    shapes = [(1, 1, 1), (1, k, m), (n, k, 1), (n, 1, m), (n, n + 1, n + 3), (33, 47, 29)]
    shapes += [tuple(large), (n, k, m)]
    values = [
        lambda shape: rng.uniform(-10, 10, shape),
        lambda shape: rng.integers(-9, 10, shape),
        lambda shape: rng.uniform(-1, 1, shape) * 10.0 ** rng.integers(-6, 7, shape),
        lambda shape: rng.uniform(-10, 10, shape) * (rng.random(shape) < 0.5),
    ]
    first = int(rng.integers(len(values)))
    inputs = []
    for i, (n, k, m) in enumerate(shapes):
        draw = values[(first + i) % len(values)]
        inputs.append((draw((n, k)), draw((k, m))))
    a, b = inputs[-1]
    twin = a.copy()
    twin[1, 1] += 3
    return [*inputs, (twin, b)]


def mistake(value: Any, a: np.ndarray, b: np.ndarray) -> str:
    """What is wrong with `value` as the product of a and b, in words; empty if nothing is.

    The tolerance is 1e-9 of |a| @ |b|, the bound that the rounding error of any order of summation scales with
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.5), and 1e-14 of the largest entry squared for
    each term: Strassen's and Winograd's methods are only that stable (the same book, chapter 23).
    """
    n, m = a.shape[0], b.shape[1]
    if not isinstance(value, list) or len(value) != n:
        return f"expected a list of {n} rows"
    for row in value:
        if not isinstance(row, list) or len(row) != m:
            return f"expected rows of {m} numbers"
        if not all(type(entry) is float or type(entry) is int for entry in row):
            return "expected int or float entries"
    try:
        got = np.array([[float(entry) for entry in row] for row in value])
    except OverflowError:
        return "an entry is too large for a float"
    if not np.isfinite(got).all():
        return "an entry is not finite"
    largest = max(np.abs(a).max(), np.abs(b).max())
    if not (
        np.abs(got - a @ b) <= 1e-9 * (np.abs(a) @ np.abs(b)) + 1e-14 * len(b) * largest**2
    ).all():
        return f"wrong product of a {a.shape} and a {b.shape} matrix"
    return ""


def time_program(
    program: Program, options: Options, sandbox: Sandbox, rng: np.random.Generator
) -> Grade:
    """The Grade of a program that was right so far, with its speed-up: the median over pairs of CPU time of the naive
    loop / of the program, on the same fresh inputs, in turns on one CPU. Both clocks are read by this process from
    the kernel. A timed call is judged like any other, so a program that fails only here is wrong all the same.
    """
    ratios = []
    with sandbox.processor() as cpu, sandbox.open(BASELINE, "matmul") as baseline:
        program.pin(cpu)
        baseline.pin(cpu)
        for pair in range(options.timing_pairs + 1):
            n, k, m = (
                int(size)
                for size in rng.integers(
                    options.timing_min_size, options.timing_max_size + 1, size=3
                )
            )
            a, b = rng.uniform(-10, 10, (n, k)), rng.uniform(-10, 10, (k, m))
            arguments = [a.tolist(), b.tolist()]
            turns = (program, baseline) if pair % 2 else (baseline, program)
            runs = {turn: turn.call(arguments) for turn in turns}
            run, naive = runs[program], runs[baseline]
            problem = run.error or mistake(run.value, a, b)
            if problem:
                return Grade(
                    run.status,
                    passed=pair / (options.timing_pairs + 1),
                    detail=f"in a timed call: {problem}",
                )
            if (
                naive.status is not Status.OK
                or min(run.cpu_s, naive.cpu_s) <= 0
                or run.idle_cpu_s > MAX_IDLE_CPU_S
            ):
                why = naive.error or f"{run.idle_cpu_s:.3f} s of CPU between calls, or no CPU clock"
                return Grade(
                    Status.OK,
                    correct=True,
                    passed=1.0,
                    detail=f"speed could not be measured: {why}",
                )
            ratios.append(naive.cpu_s / run.cpu_s)
    speedup = statistics.median(ratios[1:])  # the first pair warms up
    if speedup > options.max_speedup:
        implausible = f"a speed-up of {speedup:.1f} is implausible and is not paid"
        return Grade(Status.OK, correct=True, passed=1.0, detail=implausible)
    return Grade(Status.OK, correct=True, passed=1.0, speedup=speedup)
