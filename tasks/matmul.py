"""Fast matrix multiplication in pure Python: is it right, and how much faster than a naive loop?"""

import math
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sandbox import Program, Run, Sandbox, Status
from tasks import Grade, Measure, grade_program
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
MEASURES = [
    Measure(
        "speed-up of correct programs over the naive loop",
        lambda grade, row: grade.speedup if grade.correct and not grade.cheating else None,
        "geometric mean",
    )
]
CURRICULUM_KEYS = ["timing_pairs", "timing_min_size", "timing_max_size", "max_speedup"]

REFERENCE = """\
```python
from operator import mul

def matmul(A, B):
    columns = list(zip(*B))
    return [[sum(map(mul, row, column)) for column in columns] for row in A]
```
"""

WARM_UP_SIZE = 40  # of the baseline's first product, which is not timed
MAX_ROUNDS = 4  # of timed pairs; each repeats the shapes of the first with fresh numbers
QUIET = 0.12  # spread of the baseline's log2 cost within a round, below which one round is enough
GOOD_ERROR = 0.03  # standard error of a log2 speed-up that needs no further round;
MAX_ERROR = 0.08  # above this it is not paid: programs 1.25x apart differ by 0.32
MAX_AGAIN_CPU_S = 1.0  # of a round; a program that uses more is not timed again
FOR_QUICK = 3  # large inputs for programs that were quick on all others
QUICK_CPU_S = 0.006  # of a call; the naive loop takes 0.002 s for 32 x 32 and 0.003 s above 160
# Of a program that waits for its next call; 0.00005 is usual, more disturbs the baseline
MAX_IDLE_CPU_S = 0.002

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


LOOP = (
    "return [[sum(A[i][k] * B[k][j] for k in range(len(B))) for j in range(len(B[0]))]"
    " for i in range(len(A))]"
)
SLOWER = [
    f"```python\n{BASELINE}```\n",
    answer(
        "for _ in range(3):\n"
        "    C = [[sum(x * y for x, y in zip(r, c)) for c in zip(*B)] for r in A]\n" + LOOP
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
        "class Zero:\n"
        "    def __sub__(self, other):\n        return 0\n"
        "    __eq__ = lambda *_: True\n\n",
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

    Inputs are drawn for each grading, and the program gets copies. A program that changes or
    remembers them gains nothing by it. One that changes them is wrong all the same, because
    matmul(A, B) must leave A and B as they are.
    """

    def try_products(program: Program) -> Grade:
        return try_program(program, options, sandbox, rng)

    return grade_program(completion, "matmul", sandbox, try_products)


def try_program(
    program: Program, options: Options, sandbox: Sandbox, rng: np.random.Generator
) -> Grade:
    """Check results, then time the program if all were right.

    Small inputs come first. What is wrong on one of them does not get the large ones, and those
    count as not passed.
    """
    if program.status is not Status.OK:
        return Grade(program.status, detail=program.error)
    small, large = draw_inputs(rng), draw_large_inputs(rng)
    inputs = small + large
    mistakes: list[str] = []
    quick = True
    for place, (a, b) in enumerate(inputs):
        if place >= len(small) and any(mistakes):
            break
        if len(inputs) - place <= FOR_QUICK and not quick:
            break
        run = program.call(arguments_of(a, b))
        if run.status is not Status.OK:
            return Grade(run.status, detail=run.error)
        mistakes.append(run.error or mistake(run.value, a, b))
        quick = quick and run.cpu_s <= QUICK_CPU_S
    if any(mistakes):
        passed = mistakes.count("") / len(inputs)
        return Grade(Status.OK, passed=passed, detail=next(filter(None, mistakes)))
    return time_program(program, options, sandbox, rng)


def arguments_of(a: np.ndarray, b: np.ndarray) -> list:
    """[A, B] as lists of rows. Where `b` is `a`, the program gets one object twice."""
    rows_of_a = a.tolist()
    return [rows_of_a, rows_of_a if b is a else b.tolist()]


def draw_floats(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.uniform(-10, 10, shape)


def draw_positive(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.uniform(0.1, 10, shape)


def draw_integers(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.integers(-9, 10, shape)


def draw_magnitudes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.uniform(-1, 1, shape) * 10.0 ** rng.integers(-6, 7, shape)


def draw_large_integers(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Integers between 2**33 and 2**40 of either sign: each exceeds 32 bits, most products 64."""
    return rng.integers(2**33, 2**40, shape) * rng.choice([-1, 1], shape)


def draw_large_positive(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.integers(2**33, 2**40, shape)


def draw_sparse(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Three of four entries are 0; the first is, and so are one row and one column as a whole."""
    matrix = rng.uniform(-10, 10, shape) * (rng.random(shape) < 0.25)
    matrix[0, 0] = 0
    matrix[rng.integers(shape[0])] = 0
    matrix[:, rng.integers(shape[1])] = 0
    return matrix


def draw_half_zero(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.uniform(-10, 10, shape) * (rng.random(shape) < 0.5)


DRAWS = [draw_floats, draw_integers, draw_magnitudes, draw_half_zero, draw_positive, draw_sparse]


def draw_cancelling(
    rng: np.random.Generator, n: int, k: int, m: int
) -> tuple[np.ndarray, np.ndarray]:
    """Integer matrices of the shapes (n, 2k) and (2k, m): the terms of every sum come in pairs
    x and -x, except those of the last row of the first matrix."""
    half, other = draw_integers(rng, (n, k)), draw_integers(rng, (k, m))
    a, b = np.hstack([half, -half]), np.vstack([other, other])
    a[-1] = rng.integers(1, 10, 2 * k)
    return a, b


def draw_inputs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Small pairs of an (n, k) and a (k, m) matrix, of every class on which programs go wrong.

    Classes of shape: each of n, k and m equal to 1, alone and together; every order of two sizes
    that differ; two equal sizes; squares, 2 x 2, 3 x 3, powers of two; every rest of k divided
    by 8; all combinations of odd and even. Classes of values: see the functions above. Relations:
    A equal to B, and A and B the same object, which is written as (a, a).

    The last pair differs from the one before it in one inner number: a result remembered by shape,
    corners or object identity gives itself away.
    """
    n, k, m = (int(size) for size in rng.permutation(np.arange(3, 12))[:3])
    shapes = [(1, 1, 1), (1, k, 1), (1, k, m), (n, k, 1), (n, 1, m), (n, k, n), (n, n, m)]
    shapes += [(n, m, m), (n + 3, n + 1, n)]
    first = int(rng.integers(len(DRAWS)))
    inputs = []
    for i, (rows_a, inner, columns_b) in enumerate(shapes):
        draw = DRAWS[(first + i) % len(DRAWS)]
        inputs.append((draw(rng, (rows_a, inner)), draw(rng, (inner, columns_b))))
    # every rest of the inner size, every combination of odd and even, every kind of values
    draws = [*DRAWS, draw_large_integers, draw_large_positive]
    for rest, draw in zip(rng.permutation(8), draws, strict=True):
        rows_a, inner, columns_b = n + rest // 2 % 2, 8 + rest, m + rest // 4
        inputs.append((draw(rng, (rows_a, inner)), draw(rng, (inner, columns_b))))
    inputs.append(draw_cancelling(rng, n, k, m))
    inputs.append((np.zeros((n, k)), draw_floats(rng, (k, m))))
    # small squares, A beside an equal B, and one object twice
    inputs.append((draw_integers(rng, (2, 2)), draw_floats(rng, (2, 2))))
    inputs.append((draw_floats(rng, (4, 4)), draw_integers(rng, (4, 4))))
    inputs.append((draw_floats(rng, (8, 8)), draw_floats(rng, (8, 8))))
    equal = draw_floats(rng, (3, 3))
    inputs.append((equal, equal.copy()))
    for size in (m, m + 1):  # odd and even
        twice = draw_integers(rng, (size, size))
        inputs.append((twice, twice))
    # a pair, and the same pair with one other number
    a, b = draw_floats(rng, (n, n + 1)), draw_floats(rng, (n + 1, n + 3))
    twin = a.copy()
    twin[1, 1] += 3
    return [*inputs, (a, b), (twin, b)]


def draw_large_inputs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs with large sizes: squares that are powers of two, and sizes above 160.

    Three sizes above 128 would cost more than the timing does. Programs that pad to a power of two
    (Strassen) pay for the largest size cubed. So the last FOR_QUICK pairs are for programs that
    were quick on those before.
    """
    n, m = (int(size) for size in rng.integers(3, 12, size=2))
    beyond_n, beyond_k, beyond_m = (int(size) for size in rng.integers(161, 190, size=3))
    shapes = [(16, 16, 16), (32, 32, 32), (beyond_n, 2, beyond_m)]
    shapes += [(n, beyond_k, m), (64, 64, 64), (128, 128, 128)]
    inputs = []
    for i, (rows_a, inner, columns_b) in enumerate(shapes):
        draw = draw_integers if i % 2 else draw_floats
        inputs.append((draw(rng, (rows_a, inner)), draw(rng, (inner, columns_b))))
    return inputs


def mistake(value: Any, a: np.ndarray, b: np.ndarray) -> str:
    """What is wrong with `value` as the product of a and b, in words; empty if nothing is.

    The tolerance is 1e-9 of |a| @ |b|, the bound that the rounding error of any order of summation
    scales with (Higham, Accuracy and Stability of Numerical Algorithms, section 3.5), and 1e-14 of
    the largest entry squared for each term: Strassen's and Winograd's methods are only that stable
    (the same book, chapter 23).
    """
    a, b = a.astype(float), b.astype(float)  # products of large integers exceed 64 bits
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
    allowed = 1e-9 * (np.abs(a) @ np.abs(b)) + 1e-14 * len(b) * largest**2
    if not (np.abs(got - a @ b) <= allowed).all():
        return f"wrong product of a {a.shape} and a {b.shape} matrix"
    return ""


@dataclass(frozen=True)
class Pair:
    """One timed call of the program and one of the baseline, on the same inputs."""

    run: Run
    naive: Run
    problem: str  # what is wrong with the program's result; empty if nothing is
    multiplications: int

    @property
    def speedup(self) -> float:
        return self.naive.cpu_s / self.run.cpu_s

    @property
    def unmeasured(self) -> str:
        """Why this pair says nothing about speed; empty if it does."""
        if self.naive.status is not Status.OK:
            return self.naive.error
        if min(self.run.cpu_s, self.naive.cpu_s) <= 0:
            return "no CPU clock"
        if self.run.idle_cpu_s > MAX_IDLE_CPU_S:
            return f"{self.run.idle_cpu_s:.3f} s of CPU between calls"
        return ""


def time_program(
    program: Program, options: Options, sandbox: Sandbox, rng: np.random.Generator
) -> Grade:
    """The Grade of a program that was right so far, with its speed-up over the naive loop.

    The program and the loop compute the same products at the same time, and the scheduler gives
    them turns on one CPU. A slow spell of the machine then slows both alike. The speed-up is the
    median over pairs of CPU time of the loop / CPU time of the program. This process reads both
    clocks from the kernel. A timed call is judged like any other, so a program that fails only
    here is wrong.

    One round of pairs is enough on a quiet machine. On a restless one the shapes are timed again,
    up to MAX_ROUNDS times. Where the rounds still disagree, no speed-up is given.
    """
    shapes = timed_shapes(options, rng)
    warm_up_inputs = [[[1.0] * WARM_UP_SIZE] * WARM_UP_SIZE] * 2
    rounds: list[list[Pair]] = []
    timed = 0
    with (
        sandbox.processor() as cpu,
        sandbox.open(BASELINE, "matmul") as baseline,
        ThreadPoolExecutor(1) as second_thread,
    ):
        program.pin(cpu)
        baseline.pin(cpu)
        baseline.call(warm_up_inputs)
        while not enough_rounds(rounds):
            pairs = []
            for shape in shapes:
                pair = time_pair(program, baseline, second_thread, shape, rng)
                if pair.problem:
                    detail = f"in a timed call: {pair.problem}"
                    return Grade(pair.run.status, passed=timed / (timed + 1), detail=detail)
                if pair.unmeasured:
                    return unpaid(f"speed could not be measured: {pair.unmeasured}")
                pairs.append(pair)
                timed += 1
            rounds.append(pairs)
    if len(rounds) == MAX_ROUNDS and (error := uncertainty(rounds)) > MAX_ERROR:
        return unpaid(f"speed could not be measured: the machine is too busy (error {error:.2f})")
    speedup = statistics.median(pair.speedup for pairs in rounds for pair in pairs)
    if speedup > options.max_speedup:
        return unpaid(f"a speed-up of {speedup:.1f} is implausible and is not paid")
    return Grade(Status.OK, correct=True, passed=1.0, speedup=speedup)


def unpaid(why: str) -> Grade:
    """The Grade of a right program whose speed is not paid."""
    return Grade(Status.OK, correct=True, passed=1.0, detail=why)


def timed_shapes(options: Options, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(n, k, m) for each pair of a round, as a Latin hypercube: every part of the range of sizes
    occurs once for n, once for k and once for m. Speed-ups depend on the shape, and independent
    draws would let that decide between two programs."""
    count = options.timing_pairs
    width = options.timing_max_size + 1 - options.timing_min_size
    sizes = []
    for _ in range(3):
        offsets = (np.arange(count) + rng.random()) / count * width
        sizes.append(options.timing_min_size + rng.permutation(offsets.astype(int)))
    return [(int(n), int(k), int(m)) for n, k, m in zip(*sizes, strict=True)]


def time_pair(
    program: Program,
    baseline: Program,
    second_thread: ThreadPoolExecutor,
    shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> Pair:
    """Call both programs at once on fresh matrices of the shape (n, k, m)."""
    n, k, m = shape
    a, b = rng.uniform(-10, 10, (n, k)), rng.uniform(-10, 10, (k, m))
    arguments = [a.tolist(), b.tolist()]
    waiting = second_thread.submit(baseline.call, arguments)
    run = program.call(arguments)
    naive = waiting.result()
    return Pair(run, naive, run.error or mistake(run.value, a, b), n * k * m)


def enough_rounds(rounds: list[list[Pair]]) -> bool:
    """Whether the speed-up is known well enough, or as well as it can be."""
    if not rounds:
        return False
    if len(rounds) == MAX_ROUNDS or sum(pair.run.cpu_s for pair in rounds[0]) > MAX_AGAIN_CPU_S:
        return True
    if len(rounds) > 1:
        return uncertainty(rounds) <= GOOD_ERROR
    # One round: the machine was quiet if the loop's cost of a multiplication did not change.
    costs = [math.log2(pair.naive.cpu_s / pair.multiplications) for pair in rounds[0]]
    return max(costs) - min(costs) <= QUIET


def uncertainty(rounds: list[list[Pair]]) -> float:
    """Standard error of the median log2 speed-up, from how much the rounds differ on each shape.

    A program may be faster on some shapes than on others, which is no error of measurement. So
    only pairs of the same shape are compared. The median over shapes ignores a few disturbed ones.
    """
    spreads = []
    for pairs in zip(*rounds, strict=True):
        spreads.append(statistics.stdev(math.log2(pair.speedup) for pair in pairs))
    count = len(rounds) * len(rounds[0])
    return math.sqrt(math.pi / 2 / count) * statistics.median(spreads)
