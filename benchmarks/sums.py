"""Makes a set of sums and word problems with integer answers: `python benchmarks/sums.py FOLDER`.

Writes train.jsonl (2,400 rows) and test.jsonl (240 rows), for `task.type: jsonl`. A test row
differs from every training row in its numbers and in its wording: the two draw from different
templates, and no pair of numbers is in both. Equal seeds give equal files.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

INSTRUCTION = """\
Write the calculation on one line. Then write the result alone on a last line, in this form:
Answer: <integer>"""
TRAIN_ROWS, TEST_ROWS = 2400, 240

# How the answer is worked out (a is the larger number), wordings for training, for the test.
Operation = tuple[Callable[[int, int], int], list[str], list[str]]
OPERATIONS: dict[str, Operation] = {
    "sum": (
        lambda a, b: a + b,
        [
            "What is {a} + {b}?",
            "Calculate {a} + {b}.",
            "Tom has {a} marbles and finds {b} more. How many marbles has he now?",
            "A bus carries {a} people. At a stop {b} people get on. How many are on the bus?",
        ],
        [
            "Add {b} to {a}.",
            "A farmer picks {a} apples today and {b} tomorrow. How many apples is that?",
        ],
    ),
    "difference": (
        lambda a, b: a - b,
        [
            "What is {a} - {b}?",
            "Calculate {a} - {b}.",
            "Anna has {a} stickers and gives {b} away. How many stickers are left?",
            "A tank holds {a} litres. {b} litres are used. How many litres remain?",
        ],
        [
            "Take {b} away from {a}.",
            "A shop had {a} loaves and sold {b} of them. How many loaves are still there?",
        ],
    ),
    "product": (
        lambda a, b: a * b,
        [
            "What is {a} * {b}?",
            "Calculate {a} * {b}.",
            "A box holds {b} eggs. How many eggs are in {a} boxes?",
            "There are {a} rows with {b} chairs each. How many chairs are there?",
        ],
        [
            "Multiply {a} by {b}.",
            "A ticket costs {b} coins. What do {a} tickets cost?",
        ],
    ),
}
LARGEST = {"sum": 60, "difference": 60, "product": 25}


def pairs(largest: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(2, largest + 1) for b in range(2, a + 1)]


def make_rows(
    operation: str, numbers: list[tuple[int, int]], wordings: list[str]
) -> Iterator[dict[str, Any]]:
    work_out = OPERATIONS[operation][0]
    for a, b in numbers:
        for wording in wordings:
            question = wording.format(a=a, b=b)
            yield {
                "prompt": f"{question}\n{INSTRUCTION}",
                "answer": work_out(a, b),
                "question": question,
            }


def make(seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, test rows), each with as many rows of every operation, in random order."""
    rng = random.Random(seed)
    train, test = [], []
    for operation, (_, known_wordings, new_wordings) in OPERATIONS.items():
        numbers = pairs(LARGEST[operation])
        rng.shuffle(numbers)
        split = len(numbers) // 5  # of the pairs are for the test alone
        for rows, own_numbers, wordings, count in (
            (test, numbers[:split], new_wordings, TEST_ROWS),
            (train, numbers[split:], known_wordings, TRAIN_ROWS),
        ):
            made = list(make_rows(operation, own_numbers, wordings))
            share = count // len(OPERATIONS)
            rows += rng.sample(made, min(share, len(made)))
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def write(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write train.jsonl and test.jsonl into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, rows in zip(paths, make(seed), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in write(arguments.folder, arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
