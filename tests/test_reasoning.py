"""tasks/reasoning.py and verifier.py: conclusions are compared by value and no comparison hangs;
layout is bounded."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reward_functions
import tasks
from job import config
from job.grading import resolve
from job.reward_check import check_rewards
from sandbox import Status, verifier
from tasks import Grade, reasoning
from tasks.reasoning import Options, clarity, judge, split, step_by_step

ROOT = Path(__file__).parent.parent
SQRT, HALF = r"$\sqrt{2}$", r"\frac{1}{2}"


@pytest.fixture(scope="module")
def pool():
    pool = verifier.Verifier(1, timeout_s=1.0)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("expected", "text", "agree"),
    [
        ("42", "42", True), ("42", "The answer is 42.", True), ("42", "x = 42", True), ("42", "43", False),
        ("42", "", False), ("42", "$42", True), ("42", r"\$42", True), ("12", "12 apples", True),
        ("12 apples", "12", True), ("12", "twelve", False), ("7", "-7", False), ("-7", "−7", True), ("-7", "7", False),
        ("1,000", "1000", True), ("1e-3", "0.001", True), ("0.001", "1e-3", True), ("50%", "0.5", True),
        ("0", "0.0", True), ("3.5", "7/2", True), ("345", "15 × 23 = 345", True), ("10000000000", "10^{10}", True),
        ("1/2", r"\boxed{0.5}", True), ("1/2", r"\frac12", True), (HALF, "0.5", True), (f"${HALF}$", "1/2", True),
        ("1/3", "0.333333", True), ("1/3", "0.33", False), (SQRT, "1.41421356", True), (SQRT, "1.4", False),
        ("2x", "$2x$", True), ("2x", "2", False), ("2x", "x + x", True), ("x^2/2", r"\frac{x^2}{2}", True),
        ("(1,2)", "(1, 2)", True), ("(1,2)", "2", False), ("x>3", "$x > 3$", True), ("3", "x>3", False),
        ("no", "No", True), ("no", "**No.**", True), ("no", r"\boxed{\text{no}}", True), ("no", "yes", False),
        ("no", "yes or no", False), ("no", "I do not know", False), ("no", "No, we cannot conclude that.", True),
        ("yes", "true", True), ("yes", "", False), ("yes", "42", False), ("B", "The answer is (B)", True),
        ("B", "(C)", False), ("B", "b", True), ("Paris", "paris.", True), ("Paris", "London", False),
        ("Paris 2024", "London 2024", False), ("3", r"\frac{" * 40, False), ("42", "\0\ud800\n", False),
    ],
)  # fmt: skip
def test_answers_are_compared_by_value(pool, expected, text, agree):
    assert pool.agree(expected, text) is agree


@pytest.mark.parametrize(
    ("expected", "text"), [("3", "9^9^9^9^9"), ("9^9^9^9^9", "3"), ("9" * 490, "9!!^9!!^9^9^9^9")]
)
def test_a_comparison_that_hangs_is_stopped_and_the_next_one_works(pool, expected, text):
    assert pool.agree(expected, text) is not True
    assert pool.agree("2", "2.0") is True


def test_a_stopped_worker_is_replaced(pool):
    assert pool.agree("2", "2") is True
    worker = pool._workers.get()
    os.kill(worker.process.pid, signal.SIGSTOP)
    pool._workers.put(worker)
    assert pool.agree("2", "2") is None
    assert worker.process.poll() is not None
    assert pool.agree("2", "2") is True


def test_a_worker_killed_while_idle_costs_no_verdict(pool):
    assert pool.agree("2", "2") is True
    worker = pool._workers.get()
    worker.process.kill()
    worker.process.wait()
    pool._workers.put(worker)
    assert pool.agree("2", "2") is True


def test_threads_share_the_workers():
    pool = verifier.Verifier(2)
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(pool.agree("2", "2"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert verdicts == [True] * 8


def test_a_worker_ends_with_its_owner():
    code = "import os, verifier; print(verifier.Worker(1.0).process.pid, flush=True); os._exit(0)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    process = Path(f"/proc/{run.stdout.strip()}/cmdline")
    deadline = time.monotonic() + 120.0
    while (
        process.exists() and process.read_bytes()
    ):  # empty: dead, and nobody has waited for it yet
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_math_verify_is_told(monkeypatch):
    monkeypatch.setattr(verifier.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="is it installed"):
        verifier.Verifier(1).agree("1", "1")


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("1. a\nAnswer: 42", "42"), ("**Answer:** 42", "42"), ("### Final answer\n42", "42"),
        ("The answer is 42.", "42."), ("So the final answer is: no", "no"),
        ("Conclusion: No, it does not.", "No, it does not."), ("345", "345"),
        ("x = 1\nso \\boxed{5}", "\\boxed{5}"), ("Answer: 1\nAnswer: 2", "2"), ("Answer:", ""), ("one\ntwo", ""),
        ("", ""), ("\\boxed{1}\nAnswer: 2\nThat is all.", "2"), ("Answers vary.\nMore.", ""),
    ],
)  # fmt: skip
def test_the_conclusion_is_found(text, conclusion):
    assert split(text)[1] == conclusion


@given(st.text(alphabet="Answer: 1.\n*\\boxed{}=-Step the is", max_size=300))
def test_layout_is_bounded_and_deterministic(text):
    one, other = (judge(text, None, 100) for _ in range(2))
    assert one == other and not one.correct
    assert all(0.0 <= one.data[name] <= 1.0 for name in ("step_by_step", "consistency", "clarity"))
    assert -1.0 <= one.data["length_penalty"] <= 0.0


def test_more_steps_than_three_earn_nothing_more_and_repeated_ones_nothing():
    steps = [
        f"{i}. This is what step {word} does"
        for i, word in enumerate(("one", "two", "three", "four"), 1)
    ]
    assert [step_by_step(steps[:n]) for n in range(5)] == [0.0, 0.333, 0.667, 1.0, 1.0]
    assert step_by_step(["1. Think about it again", "2. Think about it again"]) == 0.333
    assert step_by_step(["1.", "- so", "First"]) == 0.0
    assert step_by_step(["plain prose without any mark"] * 5) == 0.0
    assert step_by_step(["First, x = 2", "- Then we double it here", "Step 3: y = 4"]) == 1.0


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("1. 2 + 3 = 5\nAnswer: 5", None, 1.0), ("1. 2 + 3 = 5\nAnswer: 5", "5", 1.0),
        ("1. 2 + 3 = 5\nAnswer: 6", None, 0.0), ("1. 2 + 3 = 6\nAnswer: 6", "5", 0.0), ("Answer: 5", "5", 0.0),
        ("1. half\n2. that is 1/2\nAnswer: 0.5", None, 1.0), ("So it is no.\nAnswer: No, it is not", "no", 1.0),
        ("x = 5\n\\boxed{5}", "5", 1.0), ("\\boxed{5}", "5", 0.0),
    ],
)  # fmt: skip
def test_consistency(text, answer, value):
    assert judge(text, answer, 100).data["consistency"] == value


def test_clarity():
    clear = "1. Split 23 into 20 and 3.\n2. Then 300 + 45 = 345\nAnswer: 345"
    assert clarity(clear, "345") == 1.0
    assert clarity(clear, "") == clarity(clear, "x" * 101) == 0.667
    assert clarity("word " * 50, "") == 0.0
    assert clarity("", "") == 0.0


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (100, 0.0), (150, -0.5), (200, -1.0), (10_000, -1.0)]
)
def test_length_penalty(length, penalty):
    assert judge("x" * length, None, 100).data["length_penalty"] == penalty


def test_no_wrong_conclusion_earns_what_a_right_one_does():
    data = [
        {"answered": True, "step_by_step": s, "consistency": c, "clarity": k, "length_penalty": p}
        for s, c, k, p in itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, -1.0))
    ]

    def total(correct, data):
        grade = Grade(Status.OK, correct=correct, data=data)
        return sum(resolve(name)([None], grades=[grade])[0] for name in reasoning.REWARDS)

    assert max(total(False, item) for item in data) < min(total(True, item) for item in data)


def test_without_an_answer_nothing_is_claimed(capsys):
    tasks.note_once.cache_clear()
    grade = judge("1. Roses are flowers.\nAnswer: no", None, 100)
    assert not grade.correct and grade.status is Status.OK
    for _ in range(2):
        assert reward_functions.correct_conclusion([None], grades=[grade]) == [None]
    assert capsys.readouterr().err.count("without an answer is not scored") == 1


def test_the_seed_configuration(sandbox, tmp_path):
    question = "If all roses are flowers and some flowers fade quickly, can we conclude that some roses fade quickly?"
    (tmp_path / "seed.yaml").write_text(
        "task:\n  type: reasoning\n  prompt_template: |\n    Think step-by-step to answer: {question}\n"
        f'  problems:\n    - "{question}"\n'
    )
    job = config.load_config(tmp_path / "seed.yaml")
    row = reasoning.rows(job.tasks[0])[0]
    assert (
        row["prompt"][0]["content"] == f"Think step-by-step to answer: {question}"
        and row["answer"] is None
    )
    assert "unverified" in check_rewards(job.tasks[0], sandbox)[0]


def test_the_configuration(tmp_path, sandbox):
    job = config.load_config(ROOT / "configs" / "reasoning.yaml")
    answers = [row["answer"] for row in reasoning.rows(job.tasks[0])[: len(job.tasks[0].problems)]]
    assert {"no", "345", "$x^2 - 2$"} <= set(answers) and None not in answers
    assert [row["answer"] for row in reasoning.eval_rows(job.tasks[0])] == ["408", "yes", "5/6"]
    assert all(judge(f"Answer: {answer}", answer, 100).correct for answer in answers)
    config.save(job, tmp_path / "saved.yaml")
    assert config.load_config(tmp_path / "saved.yaml") == job
    assert check_rewards(job.tasks[0], sandbox)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "Answer!"}, "{question} must stand in it"),
        ({"problems": []}, "problems: must be a list"),
        ({"problems": "Why?"}, "problems: must be a list"),
        ({"problems": ["Why?", {"answer": 3}]}, r"problems\[1\]: must be a question"),
        ({"problems": [{"question": "Why?", "answer": [1]}]}, "answer must be a number or text"),
        ({"problems": [{"question": "Why?", "anwser": 1}]}, "unknown keys"),
        ({"eval_problems": [4]}, r"eval_problems\[0\]"),
        ({"free_characters": 0}, "free_characters: must be above 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        Options(type="reasoning", **options)


def test_a_broken_row_of_a_file_is_told():
    grade = reasoning.grade(
        "Answer: 1", {"answer": [1]}, Options(type="reasoning"), None, np.random.default_rng(0)
    )
    assert grade.status is Status.BAD_ROW


def test_a_conclusion_that_cannot_be_compared_in_time_is_not_right():
    grade = judge("Answer: 9^9^9^9^9^9", "3", 100)
    assert (grade.status, grade.correct) in {(Status.TIMEOUT, False), (Status.OK, False)}


def test_a_worker_finds_packages_where_the_trainer_does(tmp_path, monkeypatch):
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text("raise SystemExit('found on PYTHONPATH')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="math-verify cannot be started"):
        verifier.Verifier(1).agree("1", "1")
    monkeypatch.undo()
    pool = verifier.Verifier(1)
    assert pool.agree("1/2", "0.5")
    pool.close()
