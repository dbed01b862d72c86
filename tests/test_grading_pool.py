"""Grading in processes that can be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tasks
from job import grading_pool
from job.errors import GradeError
from job.grading import Grader
from job.grading_pool import GradingPool
from sandbox import Limits, SandboxError, Status

ROOT = Path(__file__).parent.parent

# What it grades says what the grade does.
TASK = """
import os, re, signal, sys, time
from sandbox import Status
from tasks import Grade
REWARDS = ["function_works"]
def grade(completion, row, options, sandbox, rng):
    if completion == "backtrack":  # holds Python's lock: no thread could stop it
        re.match(r"(a*)*b", "a" * 60)
    if completion == "sleep":
        time.sleep(600)
    if completion == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "killed once" and not os.path.exists(row["mark"]):
        open(row["mark"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "print":
        print("printed by the task")
    if completion == "raise":
        raise KeyError("no such thing")
    if completion == "number":
        return 0.5
    if completion == "word":
        return Grade("ok")
    if completion == "percent":
        return Grade(Status.OK, passed=50)
    if completion == "one cheat":
        return Grade(Status.OK, cheating="looked at the answer")
    if completion == "function in data":
        return Grade(Status.OK, data={"score": lambda: 1})
    if completion == "program":
        with sandbox.open("def f(x): return x + 1", "f") as program:
            return Grade(Status.OK, correct=program.call([1]).value == 2)
    return Grade(Status.OK, correct=True, data={"pid": os.getpid(), "number": float(rng.random())})
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The options of a task that does what its completions say."""
    (tmp_path / "hostile_task.py").write_text(TASK)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    return tasks.Options(type="hostile_task")


@pytest.fixture
def pool(hostile):
    with GradingPool(2, Limits(), timeout_s=2.0) as pool:
        yield pool


def test_a_hanging_grade_costs_its_own_completion_alone(hostile, pool, capfd):
    tasks.note_once.cache_clear()
    texts = ["fine", "backtrack", "program", "sleep", "fine too"]
    graded = Grader([hostile], pool).grade(texts, [{}] * 5)
    assert [grade.status for grade in graded] == ["ok", "timeout", "ok", "timeout", "ok"]
    assert [grade.correct for grade in graded] == [True, False, True, False, True]
    assert "2 s" in graded[1].detail
    assert "note: task hostile_task: grading took more than 2 s" in capfd.readouterr().err


def test_a_killed_worker_is_replaced_and_a_deadly_completion_is_named(hostile, pool, tmp_path):
    rows = [{"mark": str(tmp_path / "mark")}] * 3
    graded = Grader([hostile], pool).grade(["killed once", "killed", "fine"], rows)
    assert [grade.status for grade in graded] == ["ok", "died", "ok"]


def test_a_worker_that_died_between_two_batches_is_not_missed(hostile, pool):
    grader = Grader([hostile], pool)
    for grade in grader.grade(["one", "two"], [{}] * 2):
        os.kill(grade.data["pid"], signal.SIGKILL)
    assert [g.correct for g in grader.grade(["three", "four"], [{}] * 2)] == [True, True]


def test_what_a_task_prints_is_shown(hostile, capfd):
    with GradingPool(1, Limits()) as pool:
        assert Grader([hostile], pool).grade(["print"], [{}])[0].correct
    assert "printed by the task" in capfd.readouterr().out


def test_what_a_task_raises_is_told(hostile, pool):
    grader = Grader([hostile], pool)
    with pytest.raises(
        GradeError, match=r"grade raised KeyError: .* \(hostile_task.py:\d+\)\non the .*'raise'"
    ):
        grader.grade(["raise"], [{}])
    assert grader.grade(["fine"], [{}])[0].correct


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("number", r"grade returned 0.5 \(float\), not a tasks.Grade"),
        ("word", "grade returned a Grade whose status is 'ok', not one of sandbox.Status"),
        ("percent", "grade returned a Grade whose `passed` is 50, not from 0 to 1"),
        ("one cheat", "grade returned a Grade whose `cheating` is 'looked at the answer', not a"),
        ("function in data", "grade returned a Grade that cannot be sent to another process: "),
    ],
)
def test_a_grade_that_is_none_is_the_tasks_fault(hostile, pool, completion, message):
    grader = Grader([hostile], pool)
    with pytest.raises(GradeError, match=f"^task hostile_task: {message}.*\non the completion"):
        grader.score([completion], [{}])
    assert grader.grade(["fine"], [{}])[0].correct


def test_the_inputs_of_a_task_depend_on_the_seed_alone(hostile, pool, sandbox):
    numbers = [
        [
            grade.data["number"]
            for grade in Grader([hostile], where, seed=5).grade(["a", "b"], [{}] * 2)
        ]
        for where in (pool, sandbox)
    ]
    assert numbers[0] == numbers[1] and numbers[0][0] != numbers[0][1]


def test_a_sandbox_that_cannot_start_is_the_sandboxes_fault():
    with pytest.raises(SandboxError, match="no_such_layer"):
        GradingPool(1, Limits(), ["no_such_layer"])


def test_the_bound_on_a_batch_is_the_pools_deadline(hostile, pool):
    assert Grader([hostile], pool).longest_batch_s(5) == 3 * 2.0


SCRIPT = """
import sys, threading, time
sys.path.insert(0, {root!r})
import tasks
from job.grading import Grader
from job.grading_pool import GradingPool
from sandbox import Limits
tasks.__path__.append({folder!r})
with GradingPool(1, Limits(), timeout_s=300.0) as pool:
    grader = Grader([tasks.Options(type="hostile_task")], pool)
    print(grader.grade(["fine"], [{{}}])[0].data["pid"], flush=True)
    grader.grade(["backtrack"], [{{}}])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_trainer_that_is_killed_while_grading(tmp_path, number):
    (tmp_path / "hostile_task.py").write_text(TASK)
    script = SCRIPT.format(root=str(ROOT), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as trainer:
        worker = int(trainer.stdout.readline())
        children = [worker, *map(int, children_of(worker))]
        assert len(children) == 2  # the worker and its fork server
        trainer.send_signal(number)
    for _ in range(600):
        if not any(is_running(pid) for pid in children):
            return
        time.sleep(0.1)
    pytest.fail("a process is left")


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HOSTILE_PIECES = [
    "-", "`", "```\n", "> ", "(", "[", "{", "\\boxed{", "<answer>", "Answer: ", "####", "1/", "9^",
    "a b", "1,", "=", "\\frac{", "\x00", "\ud800", " \n", "\t", "**", "do not tell ",
    "please ", "A.",
]  # fmt: skip


@pytest.mark.parametrize("name", tasks.names())
def test_hostile_text_stalls_no_task(name):
    """The bound that the documentation promises: every completion comes back graded."""
    options = tasks.load(name).Options(type=name, num_rows=1)
    row = tasks.labelled(tasks.load(name).rows(options)[0], options)
    texts = [piece * (20_000 // len(piece)) for piece in HOSTILE_PIECES]
    texts += [f"```python\n{text}\n```" for text in texts[:8]] + [None, "", "\n".join(texts)]
    with GradingPool(2, Limits(), timeout_s=120.0) as pool:
        grades = Grader([options], pool).grade(texts, [row] * len(texts))
    assert len(grades) == len(texts)
    assert not any(grade.correct for grade in grades)
    assert Status.TIMEOUT not in {grade.status for grade in grades}


def test_a_signal_to_every_process_leaves_the_graders_to_the_trainer(hostile, pool):
    def graders():
        answers = Grader([hostile], pool).grade(["a", "b", "program"], [{}, {}, {}])
        assert answers[2].correct  # its sandbox lives as well
        return {answer.data["pid"] for answer in answers[:2]}

    before = graders()
    for child in psutil.Process().children():
        if str(grading_pool.WORKER) in child.cmdline():
            for process in (child, *child.children(recursive=True)):
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                    process.send_signal(number)
    assert graders() & before
