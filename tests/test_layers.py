"""The order of the layers: scripts -> job -> reward_functions -> tasks -> sandbox. Nothing imports
upwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "reward_functions")
# From the bottom; scripts are all at the top
LAYERS = ["sandbox", "tasks", "reward_functions", "job", *SCRIPTS]
FILES = [
    *ROOT.glob("*.py"),
    *ROOT.glob("job/**/*.py"),
    *ROOT.glob("tasks/**/*.py"),
    *ROOT.glob("sandbox/**/*.py"),
]


def layer_of(file):
    name = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return min(LAYERS.index(name), LAYERS.index("job") + 1)


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_imports_upwards(file):
    for name in LAYERS:
        if name in imports(file):
            assert name not in SCRIPTS, "a script imports no script, and nothing else does"
            assert LAYERS.index(name) <= layer_of(file), f"{name} is above it"


def test_the_sandbox_knows_nothing_of_the_project():
    for file in ROOT.glob("sandbox/**/*.py"):
        assert not set(imports(file)) & {"tasks", "job", "reward_functions", "numpy", "torch"}
