"""reward_functions.py: grades to numbers, and the user's own functions kept honest."""

import inspect
import itertools
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reward_functions
import tasks
from job.errors import RewardError
from job.grading import Grader, checked, resolve, shares
from reward_functions import speed_score
from sandbox import Status
from tasks import Grade, game_2048, matmul


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
        (lambda completions: [True, 1.0], "returned True"),
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


def test_none_and_integers_are_rewards():
    assert checked(lambda completions: [None, 3], {"completions": [[], []]}) == [None, 3]


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
