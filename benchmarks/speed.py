"""How steady and how sharp the speed score is: `python benchmarks/speed.py [--gradings N]`.

Two programs whose true work differs by 1.25x are graded N times each by every grader: on the idle
machine, with two spinning processes on every core, and by 4 graders at once beside 4 processes that
copy memory. The table says how often the faster program gets the better score, how many gradings
gave no speed score, and how long one took. The load average is that of the last minute, at the end.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reward_functions import speed_score  # noqa: E402
from sandbox import Sandbox  # noqa: E402
from tasks import matmul  # noqa: E402

PRODUCT = "[[sum([x * y for x, y in zip(row, column)]) for column in columns] for row in {rows}]"
ZIP = f"""\
def matmul(A, B):
    columns = list(zip(*B))
    return {PRODUCT.format(rows="A")}
"""
A_QUARTER_TWICE = f"""\
def matmul(A, B):
    columns = list(zip(*B))
    {PRODUCT.format(rows="A[: len(A) // 4]")}
    return {PRODUCT.format(rows="A")}
"""
PROGRAMS = {"zip": ZIP, "zip, a quarter of the rows twice": A_QUARTER_TWICE}
MAX_LOAD_S = 600  # how long a load runs if this process dies and cannot end it
COPIED_MB = 256  # of each copier: far more than the caches hold


def spin(until: float) -> None:
    while time.monotonic() < until:
        pass


def copy_memory(until: float) -> None:
    source, target = bytearray(COPIED_MB << 20), bytearray(COPIED_MB << 20)
    while time.monotonic() < until:
        target[:] = source


@dataclass(frozen=True)
class Condition:
    name: str
    graders: int
    load: Callable[[float], None]
    load_processes: int


@dataclass(frozen=True)
class Result:
    program: str
    score: float | None  # None: the speed could not be measured
    seconds: float  # of the timing alone, without the checks before it


@contextmanager
def under_load(condition: Condition) -> Iterator[None]:
    until = time.monotonic() + MAX_LOAD_S
    processes = []
    for _ in range(condition.load_processes):
        process = multiprocessing.Process(target=condition.load, args=(until,), daemon=True)
        process.start()
        processes.append(process)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def grade_in_turns(grader: int, gradings: int) -> list[Result]:
    """What one grader finds: each program `gradings` times, in turns."""
    options = matmul.Options(type="matmul")
    results = []
    with Sandbox(workers=1) as sandbox:
        for grading, (name, code) in itertools.product(range(gradings), PROGRAMS.items()):
            rng = np.random.default_rng([grader, grading])
            with sandbox.open(code, "matmul") as program:
                began = time.perf_counter()
                grade = matmul.time_program(program, options, sandbox, rng)
                seconds = time.perf_counter() - began
            assert grade.correct, grade.detail
            score = None if grade.speedup is None else speed_score(grade.speedup)
            results.append(Result(name, score, seconds))
    return results


def measure(condition: Condition, gradings: int) -> list[Result]:
    with under_load(condition), ProcessPoolExecutor(condition.graders) as pool:
        found = pool.map(grade_in_turns, range(condition.graders), [gradings] * condition.graders)
        return list(itertools.chain.from_iterable(found))


def print_row(condition: Condition, results: list[Result]) -> None:
    scores = {}
    for name in PROGRAMS:
        own = [result.score for result in results if result.program == name]
        scores[name] = [score for score in own if score is not None]
    fast, slow = scores.values()
    pairs = list(itertools.product(fast, slow))
    right = sum(one > other for one, other in pairs) / len(pairs)
    spread = max(statistics.pstdev(fast), statistics.pstdev(slow))
    unscored = sum(result.score is None for result in results) / len(results)
    seconds = statistics.fmean(result.seconds for result in results)
    print(
        f"| {condition.name} | {os.getloadavg()[0]:.1f} | {statistics.fmean(fast):.2f} "
        f"| {statistics.fmean(slow):.2f} | {spread:.2f} | {right:.1%} | {unscored:.1%} "
        f"| {seconds:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradings", type=int, default=20, help="2 or more")
    gradings = parser.parse_args().gradings
    cpus = len(os.sched_getaffinity(0))
    print(
        "| machine | load | score of the faster | of the slower | standard deviation (larger) "
        "| pairs in the right order | not scored | seconds a grading |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for condition in (
        Condition("idle", 1, spin, 0),
        Condition("two spinning processes a core", 1, spin, 2 * cpus),
        Condition("4 graders beside 4 memory copiers", 4, copy_memory, 4),
    ):
        print_row(condition, measure(condition, gradings))


if __name__ == "__main__":
    main()
