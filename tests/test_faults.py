"""docs/faults.md: the tests that it names exist, and each fault names one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (.+) \| (.+) \| `(test_\w+\.py)::(test_\w+)` \|$", re.MULTILINE)


def page():
    return (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_every_fault_names_a_test_that_exists():
    rows = ROW.findall(page())
    lines = [line for line in page().splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith(("| fault |", "| --- |"))]
    assert len(rows) == len(lines) - len(heads) > 25
    for _, _, file, name in rows:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_no_fault_is_there_twice():
    faults = [(what, file, name) for _, what, file, name in ROW.findall(page())]
    names = [name for _, _, name in faults]
    assert len(set(names)) == len(names)
