"""sandbox/session.py: an interpreter whose state survives from piece to piece, and nothing else."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Limits, Sandbox, Session, Status

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def box():
    with Sandbox(2, Limits(call_cpu_s=1.0, timeout_s=20.0)) as running:
        yield running


def run(box, *pieces):
    with Session(box) as session:
        return [session.run(piece) for piece in pieces]


def test_pieces_share_their_names_and_show_their_last_value(box):
    found = run(box, "x = 20", "def f(n):\n    return n + 1", "print('f'); f(x)", "None", "x; 0")
    assert [item.output for item in found] == ["", "", "f\n21\n", "", "0\n"]
    assert all(item.status is Status.OK and not item.is_lost for item in found)


@pytest.mark.parametrize(
    ("piece", "status", "error"),
    [
        ("1 / 0", Status.CRASH, "ZeroDivisionError: division by zero (line 1)"),
        ("for", Status.SYNTAX_ERROR, "SyntaxError: invalid syntax (line 1)"),
        ("exec('for')", Status.CRASH, "SyntaxError: invalid syntax"),
        ("x = bytearray(10**10)", Status.MEMORY, "MemoryError"),
        ("import sys\nsys.exit(3)", Status.CRASH, "SystemExit: 3"),
        ("print('a')\nexit()\nprint('b')", Status.OK, ""),
        ("class A:\n  def __repr__(self): raise KeyError('k')\nA()", Status.CRASH, "KeyError"),
        ("import sys\nsys.stdout.close()", Status.OK, ""),
        ("if __name__ == '__main__':\n  print('main')", Status.OK, ""),
    ],
)
def test_an_error_leaves_the_state_as_it_is(box, piece, status, error):
    before, found, after = run(box, "y = 5", piece, "y")
    assert found.status is status and error in found.error and not found.is_lost
    assert after.output == "5\n"
    with Session(box) as session:
        session.run(piece)
        assert session.findings == ()


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Point:
    x: int
print(Point(3))
"""


def test_library_code_that_looks_the_program_up_finds_it(box):
    (found,) = run(box, DATACLASS)
    assert found.output == "Point(x=3)\n"
    with box.open(DATACLASS, "", stdin="") as script:
        assert script.output == "Point(x=3)\n"


def test_what_was_printed_before_an_error_is_kept(box):
    (found,) = run(box, "print('so far')\nraise ValueError('no')")
    assert (found.output, found.status) == ("so far\n", Status.CRASH)


@pytest.mark.parametrize("piece", ["while True: pass", "import time\ntime.sleep(1000)"])
def test_a_piece_without_end_costs_the_interpreter(piece):
    with Sandbox(1, Limits(call_cpu_s=0.5, timeout_s=2.0)) as impatient:
        _, found, after = run(impatient, "y = 5", piece, "y")
    assert found.status is Status.TIMEOUT and found.is_lost
    assert "NameError" in after.error


def test_a_session_has_a_budget_for_its_whole_life(box):
    with Session(box, cpu_s=0.3) as session:
        assert session.run("while True: pass").status is Status.TIMEOUT
        assert session.is_spent and "no CPU time is left" in session.run("1").error


def test_the_middle_of_a_long_output_is_left_out(box):
    (found,) = run(box, "print('a' * 10**6 + 'b')")
    assert len(found.output) < 21_000 and found.output.startswith("aaa")
    assert found.output.endswith("ab\n") and "characters are left out" in found.output


def test_sessions_see_nothing_of_each_other(box):
    with Session(box) as one, Session(box) as other:
        one.run("import math\nmath.pi = 3\nx = 1")
        assert other.run("import math\nmath.pi").output.startswith("3.14")
        assert "NameError" in other.run("x").error


@pytest.mark.parametrize(
    "piece",
    [
        "open('/etc/passwd')",
        "import numpy",
        "import inspect\ninspect.stack()",
        "().__class__.__base__.__subclasses__()",
        "import gc\ngc.get_objects()",
        "import os\nos.system('true')",
        "import socket",
        "if __name__ == '__main__':\n    import ctypes",
    ],
)
def test_the_policy_holds_in_every_piece(box, piece):
    with Session(box) as session:
        session.run("x = 1")
        assert session.findings == ()
        session.run(piece)
        assert session.findings
        session.run("x")
        assert session.findings  # nothing takes them back


@given(st.lists(st.sampled_from(["x", "x = 1", "print(x)", "del x", "1/0", "\0", "(", "x += 1"])))
def test_a_session_answers_every_piece(box, pieces):
    for found in run(box, *pieces):
        assert isinstance(found.output, str) and not found.is_lost


@pytest.mark.slow  # a hundred programs that never end, one second each
def test_the_hostile_corpus_is_contained_in_sessions(tmp_path):
    """Each program of the corpus as a piece, then a call of its function as another."""
    out, leak = tmp_path / "out", tmp_path / "leak"
    out.mkdir(), leak.mkdir()
    (out / "adapter_model.safetensors").write_bytes(b"weights")
    rows = []
    for name in ("completions.jsonl", "completions_extra.jsonl"):
        rows += [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]
    assert len(rows) >= 290
    environment, folder = dict(os.environ), os.getcwd()

    def judge(row):
        text = row["completion"].replace("@@OUT@@", str(out)).replace("@@LEAK@@", str(leak))
        blocks = re.findall(r"```(?:python|py)?[ ]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
        blocks = [block for block in blocks if "def " in block or "lambda" in block] or blocks
        code = blocks[0] if blocks else text
        name = {"matmul": "matmul", "game_2048": "strategy"}.get(row["task"]) or row["entry_point"]
        arguments = [[[1.0, 2.0]], [[3.0], [4.0]]]
        if row["task"] == "game_2048":
            arguments = [[[2, 4], [0, 2]]]
        elif row["task"] != "matmul":
            arguments = row["tests"][0][0]
        with Session(box, cpu_s=3.0) as session:
            session.run(code)
            called = session.run(f"{name}(*{arguments!r})")
            again = session.run("print('still here')")
            findings = session.findings
        # What stands behind that guard runs in a session
        honest = row["expect"] in ("legit", "legit_low") and "__main__" not in code
        if honest and (findings or called.status is not Status.OK):
            return f"{row['id']}: honest, but {called} {findings}"
        is_cheat = row["category"] in ("import_cheat", "introspection") and row["expect"] == "cheat"
        if is_cheat and called.status is Status.OK and not findings:
            return f"{row['id']}: nobody noticed"
        return again.status not in Status and f"{row['id']}: {again}"

    limits = Limits(call_cpu_s=1.0, timeout_s=3.0, memory_mb=256)
    with Sandbox(2, limits) as box, ThreadPoolExecutor(6) as threads:
        problems = [problem for problem in threads.map(judge, rows) if problem]
    assert not problems, "\n".join(problems)
    assert sorted(path.name for path in out.iterdir()) == ["adapter_model.safetensors"]
    assert (out / "adapter_model.safetensors").read_bytes() == b"weights"
    assert list(leak.iterdir()) == []
    assert dict(os.environ) == environment and os.getcwd() == folder


# What is run on a frame of the sandbox's own would see its names
SILENCE = "global report, scan\nreport = print\nscan = lambda *a: []"
DYING = f"""
import functools, operator, sys, weakref
class D: pass
D.__del__ = functools.partial(exec, {SILENCE!r})
class R(weakref.ref): pass
def watch(it):
    global r
    r = R(it, operator.methodcaller("m"))
    r.m = functools.partial(exec, {SILENCE!r})
"""


@pytest.mark.parametrize(
    "piece",
    [
        "D()",
        "sys.stdout = D()",
        "sys.stderr = sys.stdout = D()",
        "watch(sys.stdout.buffer)",
        "watch(sys.stdout)",
        "raise type('E', (Exception,), {'__str__': lambda self: 'x', 'd': D()})",
        "raise Exception(D())",
        "watch(sys.modules['completion'])\nsys.modules.clear()",
    ],
)
def test_what_dies_does_so_on_no_frame_of_the_sandbox(box, piece):
    with Session(box) as session:
        session.run(DYING)
        session.run(piece)
        session.run("1")
        session.run("open('/etc/passwd')")
        assert any("open" in finding for finding in session.findings)


DYING_IN_A_FUNCTION = f"""
class T(str): pass
T.__del__ = functools.partial(exec, {SILENCE!r})
class F(str):
    def __new__(cls, *a): return "x"
    @staticmethod
    def __str__(x): return T("boo")
places = [v for k, v in globals().items() if k.startswith("__b")][0]
real = str
def f(number):
    places["str"] = F if number == 0 else real
    if number == 0:
        raise ValueError("a")
    try:
        open("/etc/passwd")
    except Exception:
        pass
    return number
"""


def test_the_text_of_an_exception_dies_on_no_frame_of_the_sandbox(box):
    code = DYING + DYING_IN_A_FUNCTION
    with box.open(code, "f") as program:
        assert program.call([0]).status is Status.CRASH
        assert program.call([1]).value == 1
        assert any("open" in finding for finding in program.findings)


def test_the_stream_of_a_script_dies_on_no_frame_of_the_sandbox(box):
    forge = "global frame, real\nreal = frame\nframe = lambda *_: real('ok', '', 'no')"
    code = DYING.replace(repr(SILENCE), repr(forge))
    code += "print('said')\nwatch(sys.stdout.buffer)\nsys.stdout = None\n"
    with box.open(code, "", stdin="") as program:
        assert program.output != "no"
