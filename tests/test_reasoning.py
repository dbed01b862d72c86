"""tasks/reasoning.py: a right conclusion is paid and nothing else; layout is bounded."""

import itertools
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
from tasks import Grade, jsonl, reasoning
from tasks.reasoning import Options, clarity, judge, step_by_step

ROOT = Path(__file__).parent.parent


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
        ("1. 2 + 3 = 5\nAnswer: 6", None, 0.0), ("1. 2 + 3 = 6\nAnswer: 6", "5", 0.0),
        ("Answer: 5", "5", 0.0), ("1. half\n2. that is 1/2\nAnswer: 0.5", None, 1.0),
        ("So it is no.\nAnswer: No, it is not", "no", 1.0), ("x = 5\n\\boxed{5}", "5", 1.0),
        ("\\boxed{5}", "5", 0.0),
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
    assert capsys.readouterr().err.count("without an answer gets no reward") == 1


def test_the_seed_configuration(sandbox, tmp_path):
    question = (
        "If all roses are flowers and some flowers fade quickly, "
        "can we conclude that some roses fade quickly?"
    )
    (tmp_path / "seed.yaml").write_text(
        "task:\n  type: reasoning\n"
        "  prompt_template: |\n    Think step-by-step to answer: {question}\n"
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
        (
            {"problems": ["Why?", {"question": "x", "answer": "a\nb"}]},
            r"problems\[1\]: the answer cannot be read",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        Options(type="reasoning", **options)


def test_problems_whose_answer_cannot_be_read_can_be_dropped():
    problems = [
        {"question": "x", "answer": "one line\nand another"},
        {"question": "y", "answer": "so\n#### 7"},
    ]
    options = Options(type="reasoning", problems=problems, unreadable_answers="drop", num_rows=2)
    assert [row["question"] for row in reasoning.rows(options)] == ["y", "y"]
    with pytest.raises(ValueError, match="none has an answer that can be read"):
        Options(type="reasoning", problems=problems[:1], unreadable_answers="drop")


def test_a_missing_math_verify_is_told_where_answers_are_compared(monkeypatch):
    monkeypatch.setattr(verifier, "installed", lambda: False)
    with pytest.raises(ValueError, match="math-verify is not installed"):
        Options(type="reasoning")
    assert Options(type="reasoning", problems=["Why?"])


def test_two_conclusions_that_differ_are_none():
    assert judge("\\boxed{345}\nAnswer: 345.0", "345", 100).correct
    grade = judge("\\boxed{345}\nAnswer: 346", "345", 100)
    assert not grade.correct and grade.detail == "two conclusions that differ"


def test_an_answer_that_is_a_worked_solution_is_read():
    assert judge("Answer: 72", "48 + 24 = 72 clips.\n#### 72", 100).correct
    assert judge("Answer: 72", "no conclusion\nat all", 100).status is Status.BAD_ROW


@pytest.mark.parametrize(
    "kind", ["345", "1/2", "yes", "B", "Paris", "$x^2 - 2$", "(3, 4)", "15 cm", "so\n#### 72"]
)
def test_the_known_answers_are_judged_as_named(kind):
    row = {"question": "What is 15 * 23?", "answer": kind}
    for name, text in reasoning.known_answers(row, Options(type="reasoning")):
        correct = judge(text, kind, 2000, row["question"]).correct
        assert correct is (name in ("reference", "slower")), text


def test_the_constants_are_judged_as_named():
    for task, marked in ((reasoning, True), (jsonl, False)):
        for text in [task.REFERENCE, *task.SLOWER]:
            assert judge(text, "345", 2000, "What is 15 * 23?", marked).correct, text
        for text in [*task.WRONG, *task.CHEAT]:
            assert not judge(text, "345", 2000, "What is 15 * 23?", marked).correct, text


def test_a_broken_row_of_a_file_is_told():
    grade = reasoning.grade(
        "Answer: 1", {"answer": [1]}, Options(type="reasoning"), None, np.random.default_rng(0)
    )
    assert grade.status is Status.BAD_ROW


def test_a_conclusion_that_cannot_be_compared_in_time_is_not_right():
    grade = judge("Answer: 9^9^9^9^9^9", "3", 100)
    assert (grade.status, grade.correct) in {(Status.TIMEOUT, False), (Status.OK, False)}


@pytest.mark.parametrize("answer", ["He has 5 apples.", "Washington, D.C.", "It scatters; see 1."])
def test_known_answers_to_a_sentence_are_paid_as_they_should(sandbox, answer):
    row = {"question": "Why?", "answer": answer, "prompt": [{"role": "user", "content": "Why?"}]}
    options = reasoning.Options(type="reasoning")
    rng = np.random.default_rng(0)
    for kind, text in reasoning.known_answers(row, options):
        grade = reasoning.grade(text, row, options, sandbox, rng)
        assert grade.correct == (kind in ("reference", "slower")), (kind, text)
