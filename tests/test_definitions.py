"""definitions.py: whether a program defines and documents a function itself."""

import subprocess
import sys

import pytest

from sandbox import definitions
from sandbox.definitions import verdict

SORT = 'def sort(xs):\n    """Sort."""\n    return sorted(xs)\n'
BARE = "def sort(xs):\n    return sorted(xs)\n"
SORTER = 'class Sorter:\n    def run(self, xs):\n        """Sort."""\n        return sorted(xs)\n'


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (SORT + "f = sort", "documented"),
        (BARE + "f = sort", "undocumented"),
        (SORT + "g = sort\nf = g", "documented"),
        (SORT.replace("sort(", "f("), "documented"),
        ("async " + SORT.replace("sort(", "f("), "documented"),
        (BARE.replace("sort(", "f("), "undocumented"),
        ("f = lambda xs: sorted(xs)", "lambda"),
        ("f = sorted", "absent"),
        ("from builtins import sorted as f", "absent"),
        ("import builtins\nf = builtins.sorted", "absent"),
        ("f = g = 3\ng = f\nf = g", "absent"),
        ("", "absent"),
        ("from functools import cache\n" + SORT + "f = cache(sort)", "documented"),
        (
            "from functools import lru_cache\n" + SORT + "f = lru_cache(maxsize=None)(sort)",
            "documented",
        ),
        ("from functools import partial\n" + BARE + "f = partial(sort)", "undocumented"),
        ('def make(n):\n    """Make one."""\n    return sorted\nf = make(3)', "documented"),
        (SORTER + "f = Sorter().run", "documented"),
        (SORTER + "f = Sorter.run", "documented"),
        (SORTER.replace("run", "__call__") + "f = Sorter()", "documented"),
        (SORTER + "f = Sorter", "undocumented"),
        (SORTER + "f = Sorter().missing", "absent"),
        ("if True:\n    " + SORT.replace("sort(", "f(").replace("\n", "\n    "), "documented"),
        ("try:\n    f = 1\nexcept ImportError:\n    f = sorted", "absent"),
        (SORT.replace("sort(", "f(") + "f = sorted", "absent"),
        (SORT.replace("sort(", "f(") + "exec('f = sorted')", "absent"),
        (SORT.replace("sort(", "f(") + "g = eval('sorted')", "absent"),
        ('def f(x):\n    """Evaluate."""\n    return eval(x)', "documented"),
        ('def f(x):\n    """..."""\n    return x', "undocumented"),
        ("class A:\n    " + SORT.replace("sort(", "f(").replace("\n", "\n    "), "absent"),
        ('text = """\ndef f(x):\n    return x\n"""', "absent"),
    ],
)
def test_what_a_program_says_of_its_function(program, said):
    assert verdict(program, "f") == said


def test_as_a_process_it_prints_its_verdict_or_dies_alone():
    def run(program):
        command = [sys.executable, "-I", "-S", definitions.__file__, "f"]
        return subprocess.run(command, input=program.encode(), capture_output=True, timeout=60)

    assert run(SORT + "f = sort").stdout == b"documented\n"
    for program in ("f = " + "(" * 100_000, "f = " + "-" * 100_000 + "1", "def f(:", "f = '\\0"):
        died = run(program)
        assert died.returncode != 0 and died.stdout == b""
