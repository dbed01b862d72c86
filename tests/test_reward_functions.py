"""reward_functions.py: grades to numbers, and the user's own functions kept honest."""

import asyncio
import contextlib
import importlib
import inspect
import itertools
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import is_async_callable

import reward_functions
import tasks
from job import rewards
from job.errors import RewardError
from job.grading import Grader, shares
from job.rewards import checked, named, resolve
from reward_functions import speed_score
from sandbox import Status
from tasks import Grade, game_2048, matmul

ROOT = Path(__file__).parent.parent


def completion(text):
    return [{"role": "assistant", "content": text}]


def total(grade):
    functions = [resolve(name) for name in matmul.REWARDS]
    return sum(function([completion("")], grades=[grade])[0] for function in functions)


@pytest.mark.parametrize(
    ("grade", "expected"),
    [
        (Grade(Status.NO_FUNCTION), (-2.0, -1.0, -2.0, 0.0)),
        (Grade(Status.SYNTAX_ERROR), (-2.0, -1.0, -2.0, 0.0)),
        (Grade(Status.CRASH), (-0.5, 1.0, -2.0, 0.0)),
        (Grade(Status.TIMEOUT), (-0.5, 1.0, -2.0, 0.0)),
        (Grade(Status.OK), (1.0, 1.0, -2.0, 0.0)),
        (Grade(Status.OK, correct=True, speedup=1.0), (1.0, 1.0, 10.0, 4.0)),
        (Grade(Status.OK, correct=True, speedup=None), (1.0, 1.0, 10.0, 0.0)),
        (
            Grade(Status.OK, correct=True, speedup=8.0, cheating=("import numpy",)),
            (1.0, -20.0, -2.0, 0.0),
        ),
        (Grade(Status.SYNTAX_ERROR, cheating=("import numpy",)), (-2.0, -20.0, -2.0, 0.0)),
    ],
)
def test_score_tables(grade, expected):
    functions = [resolve(name) for name in matmul.REWARDS]
    assert (
        tuple(function([completion("")], grades=[grade])[0] for function in functions) == expected
    )


def test_order_of_totals():
    order = [
        Grade(Status.OK, correct=True, speedup=4.0, cheating=("x",)),
        Grade(Status.NO_FUNCTION),
        Grade(Status.CRASH),
        Grade(Status.OK),
        Grade(Status.OK, correct=True, speedup=0.1),
        Grade(Status.OK, correct=True, speedup=2.0),
    ]
    totals = [total(grade) for grade in order]
    assert totals == sorted(totals) and len(set(totals)) == len(totals)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_speed_score_is_monotone_and_bounded(one, other):
    low, high = sorted((one, other))
    assert 0.0 <= speed_score(low) <= speed_score(high) <= 10.0


def test_speed_score_formula():
    assert [speed_score(value) for value in (None, 0.0, 1.0, 8.5, 0.2)] == [
        0.0,
        0.0,
        4.0,
        10.0,
        0.0,
    ]
    assert speed_score(2.0) - speed_score(1.0) == pytest.approx(2.0, abs=0.2)
    assert speed_score(1.02) == speed_score(1.0)  # equal programs, unequal measurements


def test_shares_add_up():
    metrics = shares(
        [
            Grade(Status.OK, correct=True),
            Grade(Status.OK),
            Grade(Status.CRASH, cheating=("x",)),
            Grade(Status.OK),
        ]
    )
    assert metrics["grades/correct"] == 0.25 and metrics["grades/cheating"] == 0.25
    assert sum(value for name, value in metrics.items() if name.startswith("grades/status/")) == 1.0
    assert set(metrics) == {
        "grades/correct",
        "grades/cheating",
        "grades/unclosed",
        *(f"grades/status/{status}" for status in Status),
    }


class CountingSandbox:
    workers = 2


@pytest.fixture
def grader(monkeypatch):
    """A Grader on a task that counts how often each completion is graded."""
    calls = itertools.count()
    monkeypatch.setattr(
        matmul,
        "grade",
        lambda text, *rest: Grade(Status.OK, correct=text == "good", detail=str(next(calls))),
    )
    options = matmul.Options(type="matmul", rewards=["function_works", "correctness_check"])
    result = Grader([options], CountingSandbox(), seed=1)
    result.count = lambda: next(calls)
    return result


def test_a_batch_is_graded_once_and_duplicates_once(grader):
    batch = [completion(text) for text in ("good", "bad", "good", None)]
    metrics, extra = {}, {}
    kwargs = dict(
        prompts=[[]] * 4,
        completion_ids=[[]] * 4,
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    works, correct = grader.reward_functions()
    assert works(completions=batch, **kwargs) == [1.0] * 4
    assert correct(completions=batch, **kwargs) == [10.0, -2.0, 10.0, -2.0]
    assert metrics["grades/correct"] == 0.5 and extra["status"] == ["ok"] * 4
    assert grader.count() == 3
    # A new batch of equal texts is run afresh
    assert works(completions=list(batch), **kwargs) == [1.0] * 4
    assert grader.count() == 7


def test_equal_texts_of_different_rows_are_both_graded(grader):
    works = grader.reward_functions()[0]
    works(completions=[completion("good")] * 2, prompts=[[]] * 2, answer=[1, 2])
    assert grader.count() == 2


def test_in_a_mixture_each_function_judges_its_own_tasks_rows(monkeypatch, tmp_path):
    (tmp_path / "echo_task.py").write_text(
        "from sandbox import Status\nfrom tasks import Grade\nREWARDS = ['function_works']\n"
        "def grade(text, row, *rest):\n"
        "    return Grade(Status.OK if row['wanted'] == text else Status.CRASH)\n"
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setattr(
        matmul, "grade", lambda text, row, *rest: Grade(Status.OK, correct="wanted" not in row)
    )
    echo = tasks.Options(type="echo_task")
    matrices = matmul.Options(
        type="matmul", rewards={"function_works": 1.0, "correctness_check": 2.0}
    )
    mixture = Grader([matrices, echo], CountingSandbox(), seed=0)
    assert mixture.weights.at(0) == {"function_works": 1.0, "correctness_check": 2.0}
    works, correct = mixture.reward_functions()
    metrics = {}
    batch = dict(
        completions=[completion(text) for text in "abc"], prompts=[[]] * 3,
        log_metric=metrics.__setitem__, task=["matmul", "echo_task", "echo_task"],
        wanted=[None, "b", "x"],
    )  # fmt: skip
    assert works(**batch) == [1.0, 1.0, -0.5]
    assert correct(**batch) == [10.0, None, None]
    assert metrics["grades/status/ok"] == pytest.approx(2 / 3)
    assert (metrics["grades/matmul/correct"], metrics["grades/echo_task/status/crash"]) == (
        1.0,
        0.5,
    )


def test_in_a_mixture_a_column_of_one_tasks_function_has_a_value_for_each_completion(
    monkeypatch, grader
):
    def noting(completions, grades, log_extra):
        log_extra("text", [completion[0]["content"] for completion in completions])
        return [0.0] * len(completions)

    table = {}
    batch = dict(
        completions=[completion(text) for text in "abc"], task=["matmul", "code", "matmul"]
    )
    grader.bind(noting, {"matmul"})(**batch | {"task": ["matmul"] * 3}, log_extra=table.__setitem__)
    assert table["text"] == ["a", "b", "c"]
    monkeypatch.setattr(
        grader, "_grades_of", lambda completions, **rest: [Grade(Status.OK)] * len(completions)
    )
    grader.bind(noting, {"matmul"})(**batch, log_extra=table.__setitem__)
    assert table["text"] == ["a", None, "c"]


def test_weights_follow_the_step_and_are_logged(monkeypatch):
    monkeypatch.setattr(matmul, "grade", lambda *rest: Grade(Status.OK))
    rewards = {
        "function_works": 2,
        "reward_functions:no_cheating": {"0": 1.0, 4: 0.0},
        "style": {2: -1.0},
    }
    grader = Grader([matmul.Options(type="matmul", rewards=rewards)], CountingSandbox(), seed=0)
    assert [list(grader.weights.at(step).values()) for step in (0, 1, 4, 9)] == [
        [2.0, 1.0, -1.0],
        [2.0, 0.75, -1.0],
        [2.0, 0.0, -1.0],
        [2.0, 0.0, -1.0],
    ]
    assert grader.weights.steps() == [0, 2, 4]
    metrics = {}
    grader.reward_functions()[0](
        completions=[completion("x")], prompts=[[]],
        trainer_state=SimpleNamespace(global_step=3), log_metric=metrics.__setitem__,
    )  # fmt: skip
    weights = {name: value for name, value in metrics.items() if name.startswith("reward_weights/")}
    assert weights == {
        "reward_weights/function_works": 2.0,
        "reward_weights/no_cheating": 0.25,
        "reward_weights/style": -1.0,
    }


def test_a_weight_without_a_schedule_is_the_same_at_each_step(grader):
    assert grader.weights.steps() == [0]
    assert list(grader.weights.at(5).values()) == list(grader.weights.at(0).values()) == [1.0, 1.0]


def test_the_table_of_completions_says_what_is_correct_and_why_one_is_cheating(monkeypatch):
    grades = {
        "right": Grade(Status.OK, correct=True),
        "wrong": Grade(Status.OK, detail="off by one"),
        "sly": Grade(Status.OK, correct=True, cheating=("reads the answer", "patches time")),
    }
    monkeypatch.setattr(matmul, "grade", lambda text, *rest: grades[text])
    grader = Grader([matmul.Options(type="matmul")], CountingSandbox(), seed=0)
    table = {}
    grader.reward_functions()[0](
        completions=[completion(text) for text in grades],
        prompts=[[]] * 3,
        log_extra=table.__setitem__,
    )
    assert table["correct"] == [True, False, False]
    assert table["cheating"] == ["", "", "reads the answer; patches time"]


def test_each_task_is_graded_as_its_own_curriculum_has_it_at_the_step(monkeypatch):
    for task in (matmul, game_2048):
        monkeypatch.setattr(
            task,
            "grade",
            lambda text, row, options, *rest: Grade(Status.OK, data={"seen": options}),
        )
    own = matmul.Options(type="matmul", curriculum=[{"step": 2, "timing_pairs": 9}])
    other = game_2048.Options(type="game_2048", curriculum=[{"step": 1, "size": 4}, {"step": 3}])
    mixture = Grader([own, other], CountingSandbox(), seed=0)
    seen = []
    for step in range(4):
        grades = mixture.grade(["x", "x"], [{"task": "matmul"}, {"task": "game_2048"}], step)
        pairs, size = grades[0].data["seen"].timing_pairs, grades[1].data["seen"].size
        seen.append((pairs, size))
    assert seen == [(5, 6), (5, 4), (9, 4), (9, 6)]


def test_names_reach_the_logs(grader):
    assert [function.__name__ for function in grader.reward_functions()] == [
        "function_works",
        "correctness_check",
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completions: [1.0], "returned 1 rewards for 2 completions"),
        (
            lambda completions: [1.0, "high"],
            r"returned 'high' \(str\), not a finite float, for 'two'",
        ),
        (
            lambda completions: [float("nan"), 1.0],
            r"returned nan \(float\), not a finite float, for 'one'",
        ),
        (lambda completions: [10**400, 1.0], "returned 1000"),
        (lambda completions: {0: 1.0, 1: 0.0}, "returned {0: 1.0, 1: 0.0}, not a list"),
        (lambda completions: "12", "returned '12', not a list"),
        (lambda completions: 5, "returned 5, not a list with a number for each completion"),
        (
            lambda completions, answer: [0.0],
            "takes answer, which is no column of these rows; there are completions",
        ),
        (
            lambda completions: [1 / (c[0]["content"] != "two") for c in completions],
            r"raised ZeroDivisionError.*\n.*completion 1 of 2: 'two'",
        ),
    ],
)
def test_a_faulty_reward_function_is_named(function, message):
    function.__name__ = "my_reward"
    with pytest.raises(RewardError, match=f"reward function my_reward {message}"):
        checked(function, {"completions": [completion("one"), completion("two")]})


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([None, 3], [None, 3.0]),
        ([True, False], [1.0, 0.0]),
        (np.array([0.5, 1]), [0.5, 1.0]),
        (np.array([True, False]), [1.0, 0.0]),
        (torch.tensor([0.5, 1]), [0.5, 1.0]),
        ((number for number in (1, 2)), [1.0, 2.0]),
    ],
)
def test_numbers_of_any_kind_are_rewards(rewards, expected):
    assert checked(lambda completions: rewards, {"completions": [[], []]}) == expected


ASYNC_REWARDS = """
import asyncio, functools

together = asyncio.Event()
loops = set()

async def first(completions, **kwargs):
    loops.add(asyncio.get_running_loop())
    await asyncio.wait_for(together.wait(), 30)  # second sets it: they must run at the same time
    return [1.0] * len(completions)

async def second(completions, **kwargs):
    together.set()
    return [2.0] * len(completions)

def scaled(completions, factor, **kwargs):
    return [factor] * len(completions)

half = functools.partial(scaled, factor=0.5)

class Fixed:
    def __init__(self, reward):
        self.reward = reward

    def __call__(self, completions, **kwargs):
        return [self.reward] * len(completions)

class AsyncFixed(Fixed):
    async def __call__(self, completions, **kwargs):
        return [self.reward] * len(completions)

three, four = Fixed(3.0), AsyncFixed(4.0)
five = functools.partial(second)
short = lambda completions: [6.0] * len(completions)

async def broken(completions, **kwargs):
    return [1 / (completion[0]["content"] != "two") for completion in completions]

async def too_few(completions, **kwargs):
    return [1.0]

def number(completions, **kwargs): ...
number = 5
"""


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """A module with reward functions of every kind."""
    (tmp_path / "kinds.py").write_text(ASYNC_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kinds", raising=False)
    return importlib.import_module("kinds")


def test_any_callable_is_a_reward_function_and_async_ones_run_together(kinds, sandbox):
    names = ["first", "second", "half", "three", "four", "five", "short"]
    options = matmul.Options(type="matmul", rewards=[f"kinds:{name}" for name in names])
    grader = Grader([options], sandbox)
    assert [function.__name__ for function in grader.reward_functions()] == names
    for _ in range(2):  # a second batch finds the loop of the first
        for scored in grader.score(["", "x"], [{}, {}]):
            assert list(scored.rewards.values()) == [1.0, 2.0, 0.5, 3.0, 4.0, 2.0, 6.0]
    assert len(kinds.loops) == 1


def test_threads_that_ask_at_once_get_one_event_loop(monkeypatch):
    makes_loop = asyncio.new_event_loop

    def slow_loop():
        time.sleep(0.05)  # so that the other threads ask before it is there
        return makes_loop()

    monkeypatch.setattr(asyncio, "new_event_loop", slow_loop)
    rewards._start_event_loop.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        loops = {id(loop) for loop in threads.map(lambda _: rewards.event_loop(), range(8))}
    assert len(loops) == 1


def test_trl_runs_async_functions_as_such(kinds):
    bound = Grader([matmul.Options(type="matmul")], CountingSandbox()).bind
    assert is_async_callable(bound(resolve("kinds:first"), {"matmul"}))
    assert is_async_callable(bound(resolve("kinds:four"), {"matmul"}))
    assert not is_async_callable(bound(resolve("kinds:three"), {"matmul"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"broken raised ZeroDivisionError.*\(kinds.py:\d+\)\n.*1 of 2: 'two'"),
        ("too_few", "too_few returned 1 rewards for 2 completions"),
    ],
)
def test_a_faulty_async_function_is_named(name, message, kinds):
    with pytest.raises(RewardError, match=f"reward function {message}"):
        checked(resolve(f"kinds:{name}"), {"completions": [completion("one"), completion("two")]})


def test_an_async_function_that_hangs_is_named_and_left():
    cancelled = threading.Event()

    async def judge(completions):
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    async def impatient(completions):
        raise TimeoutError("no reply")

    arguments = {"completions": [completion("one")]}
    with pytest.raises(RewardError, match=r"^reward function judge took more than 0.05 s"):
        checked(judge, arguments, timeout_s=0.05)
    assert cancelled.wait(60)
    with pytest.raises(RewardError, match="impatient raised TimeoutError: no reply"):
        checked(impatient, arguments, timeout_s=600)


def test_a_plain_function_that_hangs_is_named():
    def judge(completions):
        time.sleep(600)

    with pytest.raises(RewardError, match=r"judge took more than 0.05 s .*test_reward_functions"):
        checked(judge, {"completions": [completion("one")]}, timeout_s=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kinds:Fixed", "kinds:Fixed is a class; make an object of it in kinds"),
        ("kinds:number", "kinds:number is 5, which cannot be called"),
        ("kinds:brokn", "no function 'brokn' in kinds; did you mean broken"),
    ],
)
def test_what_cannot_be_a_reward_function_is_refused(name, message, kinds):
    with pytest.raises(ValueError, match=message):
        resolve(name)


# ---- the judge of docs/rewards.md


class JudgeHandler(BaseHTTPRequestHandler):
    """Marks an answer by its length. `script` holds the statuses of the first replies; `late` makes
    every reply come too late."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(self.headers["Authorization"])
            server.running += 1
            server.most = max(server.most, server.running)
            status = server.script.pop(0) if server.script else 200
        time.sleep(server.takes_s)
        with server.lock:
            server.running -= 1
        answer = body["messages"][0]["content"].split("Answer: ")[1].split("\n")[0]
        said = f"I give it {len(answer)}." if answer else "No."
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        if server.says is not None:
            reply = server.says
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(reply)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def judge_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler)
    server.lock, server.seen, server.script = threading.Lock(), [], []
    server.running = server.most = 0
    server.says = None  # in place of a completion
    server.takes_s = 0.02
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_judge(judge_server, monkeypatch):
    """Makes the judge that docs/rewards.md shows, which asks the local server."""
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page.split("## A judge by HTTP")[1], re.DOTALL)[1]
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    namespace = {"__name__": "judge"}
    exec(code, namespace)

    def make_judge(**options):
        address = f"http://127.0.0.1:{judge_server.server_port}/v1/chat/completions"
        return named(namespace["Judge"](address, "m", wait_s=0.01, **options), "judge")

    return make_judge


def asked(answers):
    return {
        "completions": [completion(answer) for answer in answers],
        "prompts": [[{"role": "user", "content": "Why?"}] for _ in answers],
    }


def test_the_judge_marks_each_answer_and_bounds_how_many_it_asks_for(make_judge, judge_server):
    judge = make_judge(at_once=3)
    answers = ["a" * (i % 8 + 1) for i in range(20)] + [""]
    marks = checked(judge, asked(answers))
    assert marks == [*((i % 8 + 1) / 10 for i in range(20)), None]
    assert 1 < judge_server.most <= 3 and set(judge_server.seen) == {"Bearer secret"}
    assert checked(judge, asked(["aaaa"])) == [0.4]  # the same connections serve the next batch


def test_the_judge_tries_again_where_that_may_help(make_judge, judge_server):
    judge_server.script = [503, 429]
    assert checked(make_judge(tries=3), asked(["aa"])) == [0.2]
    assert len(judge_server.seen) == 3


@pytest.mark.parametrize("says", [b"<html>Hello</html>", b"[]", b'{"choices": []}', b""])
def test_a_server_that_is_no_judge_is_named(make_judge, judge_server, says):
    judge_server.says = says
    with pytest.raises(RewardError, match="RuntimeError: http.* is no judge: it replied"):
        checked(make_judge(), asked(["aa"]))


@pytest.mark.parametrize(
    ("script", "takes_s", "message", "requests"),
    [
        ([503] * 99, 0, "status 503", 4),
        ([401] * 99, 0, "status 401", 2),  # the same key would be refused again
        ([], 0.6, "ReadTimeout", 4),
    ],
)
def test_the_judge_says_why_there_is_no_mark(
    make_judge, judge_server, script, takes_s, message, requests
):
    judge_server.script, judge_server.takes_s = script, takes_s
    judge = make_judge(tries=2, timeout_s=0.3)
    with pytest.raises(
        RewardError, match=f"RuntimeError: the judge at http.* gives no mark: {message}"
    ):
        checked(judge, asked(["aa"]))
    assert len(judge_server.seen) == requests  # once more to find the completion


def test_a_function_gets_only_what_it_takes(grader, monkeypatch):
    def answer_matches(completions, answer):
        return [
            float(c[0]["content"] == wanted) for c, wanted in zip(completions, answer, strict=True)
        ]

    monkeypatch.setattr(reward_functions, "answer_matches", answer_matches, raising=False)
    bound = grader.bind(resolve("answer_matches"), {"matmul"})
    assert bound(
        completions=[completion("4"), completion("5")], prompts=[[]] * 2, answer=["4", "4"]
    ) == [
        1.0,
        0.0,
    ]


def test_resolve_finds_functions_elsewhere_and_refuses_the_rest(tmp_path, monkeypatch):
    (tmp_path / "mine_rewards.py").write_text(
        "def good(completions, **kw): return []\ndef bad(texts): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("mine_rewards:good").__name__ == "good"
    with pytest.raises(ValueError, match="must take `completions`"):
        resolve("mine_rewards:bad")
    with pytest.raises(ValueError, match="no function 'nothing'"):
        resolve("mine_rewards:nothing")


def test_what_reward_functions_read_of_a_grade_is_documented():
    """A misspelt name of `Grade.data` would score 0 for every completion."""
    source = inspect.getsource(reward_functions)
    read = set(re.findall(r'data(?:\.get\(|\[)"(\w+)"', source))
    assert len(read) >= 10
    documented = set(re.findall(r"\w+", Grade.__doc__))
    assert read <= documented


@pytest.mark.parametrize(
    ("status", "paid"),
    [(Status.OK, 4.0), (Status.OUT_OF_CALLS, 4.0), (Status.OUT_OF_TOKENS, 4.0), (Status.CRASH, 0)],
)
def test_a_game_that_has_spent_its_budget_is_paid_for_its_tiles(status, paid):
    grade = Grade(status, data={"target": 64.0, "mean_best_tile": 32.0})
    assert reward_functions.best_tile(None, [grade]) == [paid]
    cheat = Grade(status, cheating=("x",), data=grade.data)
    assert reward_functions.best_tile(None, [cheat]) == [0.0]
