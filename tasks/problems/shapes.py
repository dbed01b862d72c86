"""Rows of data sets as problems of tasks/code.py. A row is told by its columns:

    LeetCode       entry_point "Solution().f", test "def check(candidate): ...", starter_code
                   https://huggingface.co/datasets/newfacade/LeetCodeDataset
    HumanEval      prompt (the head of the function), entry_point, test
                   https://huggingface.co/datasets/openai/openai_humaneval
    MBPP           text or prompt, test_list, test_setup_code or test_imports
                   https://huggingface.co/datasets/google-research-datasets/mbpp
    APPS, TACO     question, starter_code, input_output {inputs, outputs, fn_name}
                   https://huggingface.co/datasets/codeparrot/apps, .../BAAI/TACO
    LiveCodeBench  question_content, starter_code, public_test_cases, private_test_cases, metadata
                   https://huggingface.co/datasets/livecodebench/code_generation_lite
    assert text    prompt, question, problem or instruction, and tests, test or test_cases as Python
    our own        task, entry_point, tests, hidden_tests, as in a config

Problems with `fn_name`, or with tests of a function, are functions; others read standard input and
print. A class Solution may hold the function.
"""

import ast
import base64
import io
import json
import pickle
import textwrap
import zlib
from collections.abc import Mapping
from typing import Any

from tasks.problems.asserts import split_asserts

Row = Mapping[str, Any]
STATEMENTS = ("question", "prompt", "problem", "instruction", "text")
TEST_TEXTS = ("tests", "test", "test_cases", "unit_tests")
# What LeetCode has imported before a program begins
LEETCODE_SETUP = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from typing import *
"""


def read_row(row: Row) -> dict[str, Any]:
    """The problem of a row, with the keys of tasks/code.py.

    Raises:
        ValueError: if it is of no known shape, or its tests cannot be read.
    """
    for is_shape, read in SHAPES:
        if is_shape(row):
            return {key: value for key, value in read(row).items() if value not in (None, "", [])}
    raise ValueError(
        f"no known shape of a problem: it has the columns {sorted(map(str, row))}; "
        "tasks/problems/shapes.py lists what is read"
    )


def has_check(row: Row) -> bool:
    return is_text(row, "entry_point") and "candidate" in str(row.get("test"))


def read_check(row: Row) -> dict[str, Any]:
    """LeetCode and HumanEval."""
    name = row["entry_point"].removeprefix("Solution().")
    tests = split_asserts(row["test"], name)
    if is_text(row, "problem_description"):
        starter = text_at(row, "starter_code")
        return {
            "statement": row["problem_description"],
            "entry_point": name,
            "starter": starter,
            "parameters": parameters_of(starter, name),
            "setup": f"{LEETCODE_SETUP}\n{text_at(row, 'prompt')}",
            "hidden_tests": tests,
        }
    head = text_at(row, "prompt")
    return {
        "statement": "Complete this function.",
        "entry_point": name,
        "starter": head,
        "setup": without_function(head, name),
        "hidden_tests": tests,
    }


def has_test_list(row: Row) -> bool:
    return isinstance(row.get("test_list"), list | str)


def read_test_list(row: Row) -> dict[str, Any]:
    """MBPP. In a CSV its lists are texts."""
    found = {}
    for column in ("test_list", "challenge_test_list", "test_imports"):
        value = row.get(column) or []
        found[column] = literal(value) if isinstance(value, str) else value
        if not isinstance(found[column], list):
            raise ValueError(f"{column} must be a list, not {value!r:.200}")
    setup = [*found["test_imports"], text_at(row, "test_setup_code")]
    return {
        "statement": first_text(row, ("text", "prompt")),
        "tests": found["test_list"],
        "hidden_tests": found["challenge_test_list"],
        "setup": "\n".join(setup).strip(),
    }


def has_input_output(row: Row) -> bool:
    return "input_output" in row and any(is_text(row, name) for name in STATEMENTS)


def read_input_output(row: Row) -> dict[str, Any]:
    """APPS and TACO. Of a function, the result stands in a list of its own in most rows."""
    both = as_json(row["input_output"], "input_output")
    if not isinstance(both, Mapping):
        raise ValueError("input_output must hold inputs and outputs")
    inputs, outputs = both.get("inputs") or [], both.get("outputs") or []
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(
            f"input_output has {len(inputs)} inputs and {len(outputs)} outputs; it must have as "
            "many, and one at least"
        )
    name = both.get("fn_name")
    problem = {
        "statement": first_text(row, STATEMENTS),
        "starter": text_at(row, "starter_code"),
        "entry_point": name,
    }
    if not name:
        pairs = zip(map(lines, inputs), map(lines, outputs), strict=True)
        return problem | {"stdin": True, "hidden_tests": list(map(list, pairs))}
    tests = []
    for given, expected in zip(inputs, outputs, strict=True):
        arguments = as_json(given, "inputs") if isinstance(given, str) else given
        if not isinstance(arguments, list):
            raise ValueError(f"the arguments of {name} must be a list, not {arguments!r:.200}")
        tests.append([arguments, expected])
    in_lists = all(isinstance(expected, list) and len(expected) == 1 for expected in outputs)
    return problem | solution_setup(problem["starter"]) | {
        "hidden_tests": tests,
        "results_in_lists": in_lists or None,
    }  # fmt: skip


def has_test_cases(row: Row) -> bool:
    return "public_test_cases" in row or "private_test_cases" in row


def read_test_cases(row: Row) -> dict[str, Any]:
    """LiveCodeBench."""
    cases = []
    for column in ("public_test_cases", "private_test_cases"):
        cases += as_json(row.get(column) or "[]", column)
    metadata = as_json(row.get("metadata") or "{}", "metadata")
    name = metadata.get("func_name")
    problem = {
        "statement": first_text(row, ("question_content", *STATEMENTS)),
        "starter": text_at(row, "starter_code"),
        "entry_point": name,
    }
    kinds = {case.get("testtype") for case in cases}
    if kinds == {"stdin"}:
        tests = [[case["input"], case["output"]] for case in cases]
        return problem | {"entry_point": None, "stdin": True, "hidden_tests": tests}
    if kinds != {"functional"} or not name:
        raise ValueError(f"its tests are of the kinds {sorted(map(str, kinds))}, with {name!r}")
    tests = []
    for case in cases:  # one argument a line
        arguments = [literal(line) for line in case["input"].split("\n") if line.strip()]
        tests.append([arguments, literal(case["output"])])
    return problem | solution_setup(problem["starter"]) | {"hidden_tests": tests}


def has_test_text(row: Row) -> bool:
    has_statement = any(is_text(row, name) for name in STATEMENTS)
    return has_statement and any(holds_asserts(row.get(name)) for name in TEST_TEXTS)


def read_test_text(row: Row) -> dict[str, Any]:
    """Tests as Python, in one text or line by line."""
    name = next(name for name in TEST_TEXTS if holds_asserts(row.get(name)))
    value = row[name]
    text = value if isinstance(value, str) else "\n".join(value)
    entry_point = row.get("entry_point")
    if isinstance(entry_point, str):
        entry_point = entry_point.removeprefix("Solution().")
    starter = text_at(row, "starter_code")
    return {
        "statement": first_text(row, STATEMENTS),
        "entry_point": entry_point,
        "starter": starter,
        "parameters": parameters_of(starter, entry_point or ""),
        "hidden_tests": split_asserts(text, entry_point),
    } | solution_setup(starter or text)


def is_our_own(row: Row) -> bool:
    return is_text(row, "task")


OF_DATA_SETS = (
    (has_check, read_check),
    (has_test_list, read_test_list),
    (has_test_cases, read_test_cases),
    (has_input_output, read_input_output),
)
SHAPES = (*OF_DATA_SETS, (is_our_own, dict), (has_test_text, read_test_text))


# ---- values


def is_text(row: Row, name: str) -> bool:
    return isinstance(row.get(name), str) and bool(row[name].strip())


def text_at(row: Row, name: str) -> str:
    return row[name] if is_text(row, name) else ""


def first_text(row: Row, names: tuple[str, ...]) -> str:
    for name in names:
        if is_text(row, name):
            return row[name]
    raise ValueError(f"it has no text in any of the columns {', '.join(names)}")


def holds_asserts(value: Any) -> bool:
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    return isinstance(value, str) and "assert" in value


def lines(value: Any) -> str:
    """A text, or a list of lines."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)


def literal(text: str) -> Any:
    """A value in JSON, or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"{text!r:.200} is no literal value")


def as_json(value: Any, column: str) -> Any:
    """The value of a column that holds JSON: as a text, or read already. LiveCodeBench packs its
    private tests: base64 of zlib of a pickled text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        packed = zlib.decompress(base64.b64decode(value, validate=True))
        return json.loads(TextUnpickler(io.BytesIO(packed)).load())
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError, TypeError) as error:
        raise ValueError(f"{column} cannot be read: {error}") from error


class TextUnpickler(pickle.Unpickler):
    """Reads pickled texts and numbers alone: nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


# ---- code


def solution_setup(starter: str) -> dict[str, str]:
    """What is imported beforehand, where programs are written as on LeetCode."""
    return {"setup": LEETCODE_SETUP} if "Solution" in starter else {}


def parameters_of(starter: str, name: str) -> list[str]:
    """The parameters of a function or method whose head is given; empty if it is not found."""
    try:
        tree = ast.parse(textwrap.dedent(starter).rstrip() + " pass")
    except (SyntaxError, ValueError):
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [each.arg for each in node.args.args if each.arg != "self"]
    return []


def without_function(head: str, name: str) -> str:
    """The imports and helpers that stand before a function which is to be written."""
    try:
        body = ast.parse(head.rstrip() + "\n").body
    except (SyntaxError, ValueError):
        return ""
    kept = [part for part in body if not (isinstance(part, ast.FunctionDef) and part.name == name)]
    return "\n".join(ast.unparse(part) for part in kept)
