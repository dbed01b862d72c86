"""verifier.py: math-verify answers in processes that can be killed; nothing hangs, and a busy
machine costs no verdict."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandbox import verifier
from sandbox.conclusions import Ask

ROOT = Path(__file__).parent.parent
SIMPLE = (Ask("equal", "2", "2.0"),)
SQRT, HALF = r"$\sqrt{2}$", r"\frac{1}{2}"


@pytest.fixture(scope="module")
def pool():
    pool = verifier.Verifier(1, timeout_s=1.0)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("expected", "text", "agree"),
    [
        ("42", "42", True), ("42", "The answer is 42.", True), ("42", "x = 42", True),
        ("42", "43", False), ("42", "", False), ("42", "$42", True), ("42", r"\$42", True),
        ("12", "12 apples", True), ("12 apples", "12", True), ("12", "twelve", False),
        ("7", "-7", False), ("-7", "−7", True), ("-7", "7", False), ("1,000", "1000", True),
        ("1e-3", "0.001", True), ("0.001", "1e-3", True), ("50%", "0.5", True), ("0", "0.0", True),
        ("3.5", "7/2", True), ("345", "15 × 23 = 345", True), ("1024", "2^{10}", False),
        ("2^{10}", "1024", True), ("1/2", r"\boxed{0.5}", True), ("1/2", r"\frac12", True),
        (HALF, "0.5", True), (f"${HALF}$", "1/2", True), ("1/3", "0.333333", True),
        ("1/3", "0.33", False), (SQRT, "1.41421356", True), (SQRT, "1.4", False),
        ("2x", "$2x$", True), ("2x", "2", False), ("2x", "x + x", False),
        ("x^2/2", r"\frac{x^2}{2}", True), ("(1,2)", "(1, 2)", True), ("(1,2)", "2", False),
        ("x>3", "$x > 3$", True), ("3", "x>3", False), ("no", "No", True), ("no", "**No.**", True),
        ("no", r"\text{no}", True), ("no", "yes", False), ("no", "yes or no", False),
        ("no", "I do not know", False), ("yes", "true", True),
        ("no", "No, we cannot conclude that.", True), ("yes", "", False), ("yes", "42", False),
        ("B", "The answer is (B)", True), ("B", "(C)", False), ("B", "b", True),
        ("Paris", "paris.", True), ("Paris", "London", False), ("Paris 2024", "London 2024", False),
        ("3", r"\frac{" * 40, False), ("42", "\0\ud800\n", False), (SQRT, "\ud800", False),
    ],
)  # fmt: skip
def test_answers_are_compared_by_value_and_form(pool, expected, text, agree):
    assert pool.agree(expected, text) is agree


@pytest.mark.parametrize(
    ("ask", "holds"),
    [
        (Ask("equal", "15 × 23", "345"), True), (Ask("equal", "15 × 23", "346"), False),
        (Ask("equal", "√2", r"\sqrt{2}"), True), (Ask("equal", "x²", "x**2"), True),
        (Ask("equal", "(3, \\infty)", "x > 3"), True),
        (Ask("equal", "(3, \\infty)", "x \\ge 3"), False),
        (Ask("rounds", r"\sqrt{2}", "1414/1000;1/2000"), True),
        (Ask("rounds", r"\sqrt{2}", "142/100;1/200"), False), (Ask("rounds", "x", "1;1/2"), False),
        (Ask("equal", r"\frac{", r"\frac{"), False),
    ],
)  # fmt: skip
def test_questions_are_put_to_math_verify(pool, ask, holds):
    assert pool.all_hold((ask,)) is holds


def test_every_question_must_hold(pool):
    right, wrong = Ask("equal", "1 + 1", "2"), Ask("equal", "1 + 1", "3")
    assert pool.all_hold((right, right)) is True
    assert pool.all_hold((right, wrong)) is False


@pytest.mark.parametrize(("expected", "text"), [("3", "9^9^9^9^9 = 3"), ("9^9^9^9^9", "3")])
def test_a_comparison_that_hangs_is_stopped_and_the_next_one_works(pool, expected, text):
    assert pool.agree(expected, text) is not True
    assert pool.all_hold(SIMPLE) is True


def test_a_stopped_worker_is_replaced(pool):
    assert pool.all_hold(SIMPLE) is True
    worker = pool._workers.get()
    os.kill(worker.process.pid, signal.SIGSTOP)
    pool._workers.put(worker)
    assert pool.all_hold(SIMPLE) is None
    assert worker.process.poll() is not None
    assert pool.all_hold(SIMPLE) is True


def test_a_worker_killed_while_idle_costs_no_verdict(pool):
    assert pool.all_hold(SIMPLE) is True
    worker = pool._workers.get()
    worker.process.kill()
    worker.process.wait()
    pool._workers.put(worker)
    assert pool.all_hold(SIMPLE) is True


def test_threads_share_the_workers():
    pool = verifier.Verifier(2)
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(pool.all_hold(SIMPLE))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert verdicts == [True] * 8


def test_a_worker_ends_with_its_owner():
    code = (
        "import os; from sandbox import verifier; "
        "print(verifier.Worker(1.0).process.pid, flush=True); os._exit(0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    process = Path(f"/proc/{run.stdout.strip()}/cmdline")
    deadline = time.monotonic() + 120.0
    # Empty: dead, and nobody has waited for it yet
    while process.exists() and process.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setattr(verifier.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="math-verify cannot be started"):
        verifier.Verifier(1).all_hold(SIMPLE)


def test_what_literals_decide_needs_no_worker(monkeypatch):
    monkeypatch.setattr(verifier.sys, "executable", "/bin/false")
    assert verifier.Verifier(1).agree("1/2", "0.5") is True
    assert verifier.Verifier(1).agree("345", "15 * 23") is False


def test_packages_on_pythonpath_reach_the_worker(tmp_path):
    (tmp_path / "math_verify.py").write_text(
        "def parse(text, **kwargs): return [42]\ndef verify(one, other, **kwargs): return True\n"
    )
    code = (
        "from sandbox import verifier; "
        "print(verifier.Verifier(1).all_hold((verifier.Ask('equal', '1', '2'),)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.stdout == "True\n"
