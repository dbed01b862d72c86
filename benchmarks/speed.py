"""How steady and how sharp the speed score is: `python benchmarks/speed.py [--gradings N]` prints a table.

Each program is graded N times on the idle machine and with every core kept busy. Two programs whose true work differs
by 1.25x (one computes a quarter of the rows twice) must come out in the right order.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reward_functions import speed_score  # noqa: E402
from sandbox import Sandbox  # noqa: E402
from tasks import matmul  # noqa: E402

PRODUCT = "[[sum([x * y for x, y in zip(row, column)]) for column in columns] for row in {rows}]"
ONCE = f"def matmul(A, B):\n    columns = list(zip(*B))\n    return {PRODUCT.format(rows='A')}\n"
AGAIN = ONCE.replace("    return", f"    {PRODUCT.format(rows='A[: len(A) // 4]')}\n    return")


def burn():
    while True:
        pass


@contextmanager
def busy_cores():
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in os.sched_getaffinity(0)]
    for burner in burners:
        burner.start()
    yield
    for burner in burners:
        burner.kill()


def scores(sandbox, code, gradings):
    """`gradings` speed scores of one program, and the seconds that one took."""
    options = matmul.Options(type="matmul")
    found, began = [], time.perf_counter()
    for seed in range(gradings):
        with sandbox.open(code, "matmul") as program:
            grade = matmul.time_program(program, options, sandbox, np.random.default_rng(seed))
        assert grade.speedup is not None, grade.detail
        found.append(speed_score(grade.speedup))
    return found, (time.perf_counter() - began) / gradings


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradings", type=int, default=20)
    gradings = parser.parse_args().gradings
    with Sandbox() as sandbox:
        print(
            "| machine | program | mean score | standard deviation | seconds a grading |\n|---|---|---|---|---|"
        )
        for condition, context in (("idle", None), ("every core busy", busy_cores())):
            if context:
                context.__enter__()
            results = {}
            programs = {
                "naive loop": matmul.BASELINE,
                "zip": ONCE,
                "zip, a quarter of the rows twice": AGAIN,
            }
            for name, code in programs.items():
                results[name], seconds = scores(sandbox, code, gradings)
                mean, spread = statistics.fmean(results[name]), statistics.stdev(results[name])
                print(f"| {condition} | {name} | {mean:.2f} | {spread:.2f} | {seconds:.2f} |")
            pairs = list(
                itertools.product(results["zip"], results["zip, a quarter of the rows twice"])
            )
            right = sum(fast > slow for fast, slow in pairs) / len(pairs)
            print(f"| {condition} | 1.25x apart, pairs in the right order | {right:.1%} | | |")
            if context:
                context.__exit__(None, None, None)


if __name__ == "__main__":
    main()
