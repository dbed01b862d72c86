"""check.py: rewards are tried before they are trusted; completions from elsewhere are scored."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import check
import reward_functions
import tasks
from job import config
from job.errors import CheckError, RewardError
from job.grade_file import grade_file
from job.grading import Grader
from job.reward_check import (
    check_rewards,
    first_prompts,
    rehearse_rewards,
    rows_to_try,
    steps_of_stages,
)
from sandbox import Status
from tasks import Grade, matmul, reasoning

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def job():
    return config.load_config(
        None, ["task.timing_pairs=1", "task.timing_min_size=20", "task.timing_max_size=32"]
    )


def test_the_default_rewards_hold(job, quick_sandbox):
    table, line = check_rewards(job.tasks[0], quick_sandbox)
    assert (
        len(table.splitlines())
        == 1 + 1 + len(matmul.SLOWER) + len(matmul.WRONG) + len(matmul.CHEAT) + 2
    )
    assert "honest ones earn 1" in line


def longer(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def test_a_wrong_answer_without_a_reason_is_not_called_correct(job, sandbox, monkeypatch):
    found_wrong = Grade(Status.OK, code="pass")  # a task need not say why
    monkeypatch.setattr(Grader, "grade", lambda self, texts, *others: [found_wrong] * len(texts))
    with pytest.raises(CheckError) as caught:
        check_rewards(job.tasks[0], sandbox)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("wrong ")]
    assert lines and all(line.endswith("  not correct") for line in lines)


def test_a_reward_that_pays_for_length_is_found_out(job, quick_sandbox, monkeypatch):
    monkeypatch.setattr(reward_functions, "longer", longer, raising=False)
    greedy = dataclasses.replace(job.tasks[0], rewards=["longer"])
    with pytest.raises(CheckError, match="an answer of kind 'wrong' earns"):
        check_rewards(greedy, quick_sandbox)


def test_a_weight_that_will_make_wrong_answers_pay_is_found_out_now(
    job, quick_sandbox, monkeypatch
):
    monkeypatch.setattr(reward_functions, "longer", longer, raising=False)
    rewards = {name: 1.0 for name in matmul.REWARDS} | {"longer": {0: 0.0, 500: 1.0}}
    growing = dataclasses.replace(job.tasks[0], rewards=rewards)
    with pytest.raises(CheckError, match="step 0  *step 500") as caught:
        check_rewards(growing, quick_sandbox)
    assert "at step 500 an answer of kind 'wrong' earns" in str(caught.value)
    assert "at step 0 an answer" not in str(caught.value)


def test_schedules_that_hold_are_reported_step_by_step(job, quick_sandbox):
    rewards = {name: 1.0 for name in matmul.REWARDS} | {"speed_check": {10: 0.0, 90: 1.0}}
    table, line = check_rewards(dataclasses.replace(job.tasks[0], rewards=rewards), quick_sandbox)
    assert all(f"at step {step} honest ones earn 1" in line for step in (0, 10, 90))
    reference = next(row.split() for row in table.splitlines() if row.startswith("reference"))
    assert float(reference[2]) == float(reference[3]) == 12.0 < float(reference[4])


def test_a_stage_that_cannot_grade_is_found_out_before_training(job, quick_sandbox, monkeypatch):
    options = dataclasses.replace(job.tasks[0], curriculum=[{"step": 9, "timing_pairs": 2}])
    table, line = check_rewards(options, quick_sandbox)
    assert "at step 0 honest ones earn 1" in line and "at step 9 honest ones earn 1" in line
    assert len(table.split("\n\n")) == 2

    def grade(completion, row, options, sandbox, rng):
        if options.timing_pairs == 2:
            raise MemoryError("no room")
        return matmul_grade(completion, row, options, sandbox, rng)

    matmul_grade = matmul.grade
    monkeypatch.setattr(matmul, "grade", grade)
    with pytest.raises(CheckError, match="cannot be graded from step 9 on: .*MemoryError: no room"):
        check_rewards(options, quick_sandbox)


def test_a_stage_at_which_silence_pays_is_found_out_before_training(quick_sandbox):
    rewards = {"correct_conclusion": 1.0, "length_penalty": 15.0}
    options = reasoning.Options(
        type="reasoning", rewards=rewards, curriculum=[{"step": 5, "free_characters": 1}]
    )
    with pytest.raises(
        CheckError, match="at step 5 an answer of kind 'empty' earns -2.00, an honest one -5.00"
    ):
        check_rewards(options, quick_sandbox)


def longer_later(completions, trainer_state, **kwargs):
    return [trainer_state.global_step * value for value in longer(completions)]


def test_answers_are_compared_at_every_stage(job, quick_sandbox, monkeypatch):
    monkeypatch.setattr(reward_functions, "longer_later", longer_later, raising=False)
    rewards = [*matmul.REWARDS, "longer_later"]
    later = dataclasses.replace(
        job.tasks[0], rewards=rewards, curriculum=[{"step": 5, "timing_pairs": 2}]
    )
    with pytest.raises(CheckError, match="at step 5 an answer of kind 'wrong' earns") as caught:
        check_rewards(later, quick_sandbox)
    assert "at step 0" not in str(caught.value)


def test_a_stage_at_which_honest_answers_are_not_right_is_named(job, quick_sandbox, monkeypatch):
    def grade(completion, row, options, sandbox, rng):
        grade = matmul_grade(completion, row, options, sandbox, rng)
        return dataclasses.replace(grade, correct=False) if options.timing_pairs == 2 else grade

    matmul_grade = matmul.grade
    monkeypatch.setattr(matmul, "grade", grade)
    too_hard = dataclasses.replace(job.tasks[0], curriculum=[{"step": 5, "timing_pairs": 2}])
    _, line = check_rewards(too_hard, quick_sandbox)
    assert (
        "at step 0 honest ones earn" in line and "at step 5 no honest one is judged correct" in line
    )


@pytest.mark.parametrize(
    ("begins", "corners", "expected"),
    [
        ([], [0], [[0]]),
        ([], [0, 9, 50], [[0, 9, 50]]),
        ([5, 9], [0], [[0], [5], [9]]),
        ([0, 9], [0, 4, 20], [[0, 4, 8], [9, 20]]),
        ([1], [0, 1], [[0], [1]]),
    ],
)
def test_the_steps_at_which_each_stage_is_tried(begins, corners, expected):
    options = matmul.Options(type="matmul", curriculum=[{"step": step} for step in begins])
    assert list(steps_of_stages(options, corners)) == expected


def test_completions_are_scored_as_at_a_step(job, sandbox):
    rewards, curriculum = (
        {"correctness_check": {0: 1.0, 10: 0.5}},
        [{"step": 10, "max_speedup": 0.01}],
    )
    growing = dataclasses.replace(job.tasks[0], rewards=rewards, curriculum=curriculum)
    lines = [json.dumps({"completion": matmul.REFERENCE})]
    for step, total, paid_for_speed in ((0, 10.0, True), (5, 7.5, True), (10, 5.0, False)):
        own = dataclasses.replace(job, tasks=(growing,))
        graded = json.loads(next(grade_file(lines, own, sandbox, None, step)))
        assert (
            graded["total"] == total and ("implausible" not in graded["detail"]) == paid_for_speed
        )


def takes_little(completions):
    return [0.0] * len(completions)


def takes_all(
    completions, prompts, completion_ids, trainer_state, log_metric, log_extra, grades, **kwargs
):
    log_metric("seen", 1.0)
    log_extra("length", [len(prompt[-1]["content"]) for prompt in prompts])
    return [trainer_state.global_step * len(ids) for ids in completion_ids]


def test_custom_rewards_are_called_as_in_training(job, quick_sandbox, monkeypatch):
    for function in (takes_little, takes_all):
        monkeypatch.setattr(reward_functions, function.__name__, function, raising=False)
    rewards = ["correctness_check", "takes_little", "takes_all"]
    check_rewards(dataclasses.replace(job.tasks[0], rewards=rewards), quick_sandbox)


async def refuses(completions, **kwargs):
    raise ConnectionError("no judge there")


def one_a_prompt(completions, prompts, **kwargs):
    return [0.0] * len({str(prompt) for prompt in prompts})


def one_a_pair(completions, **kwargs):
    """Fits a batch of one completion to each prompt, as a careless test would have it."""
    return [0.0] * (len(completions) // 2)


def wants_difficulty(completions, difficulty):
    return [0.0] * len(completions)


def logs_words(completions, log_metric, **kwargs):
    log_metric("mood", "good")
    return [0.0] * len(completions)


def logs_one(completions, log_extra, **kwargs):
    log_extra("length", [1])
    return [0.0] * len(completions)


BROKEN_REWARDS = [
    (refuses, "refuses raised ConnectionError: no judge there"),
    (one_a_prompt, "one_a_prompt returned 2 rewards for 4 completions"),
    (one_a_pair, "one_a_pair returned 2 rewards for 4 completions"),
    (wants_difficulty, "wants_difficulty takes difficulty, which is no column of these rows"),
    (logs_words, "logs_words raised ValueError: could not convert string to float: 'good'"),
    (logs_one, "logs_one raised ValueError"),
]


@pytest.mark.parametrize(("function", "message"), BROKEN_REWARDS)
def test_a_reward_that_training_would_refuse_is_refused_before(
    function, message, sandbox, monkeypatch
):
    monkeypatch.setattr(reward_functions, function.__name__, function, raising=False)
    # No answers are known to these rows, so nothing else would call the functions.
    options = config.load_config(None, ["task.type=jsonl", f"task.rewards=[{function.__name__}]"])
    with pytest.raises(RewardError, match=f"reward function {message}"):
        rehearse_rewards(options.tasks, rows_to_try(options.tasks), sandbox)


def test_a_dry_run_and_a_check_call_the_reward_functions(monkeypatch, run_job, capsys):
    monkeypatch.setattr(reward_functions, "one_a_prompt", one_a_prompt, raising=False)
    arguments = ["--config", "configs/tiny.yaml", "task.type=jsonl", "task.rewards=[one_a_prompt]"]
    result = run_job("--dry-run", *arguments)
    assert result.returncode == 3
    assert "one_a_prompt returned 2 rewards for 4 completions" in result.stderr
    monkeypatch.chdir(ROOT)
    assert check.main(arguments) == 3
    assert "one_a_prompt returned 2 rewards for 4 completions" in capsys.readouterr().err


def test_the_batch_has_two_prompts_of_each_task(sandbox):
    mixture = (matmul.Options(type="matmul"), reasoning.Options(type="reasoning"))
    rows = rows_to_try(mixture)
    chosen = first_prompts(mixture, rows)
    types = [tasks.type_of(row) for row in chosen]
    assert types == ["matmul", "reasoning", "reasoning"]
    assert set(chosen[0]) == set(chosen[1])  # a column that a task lacks is None in its rows
    line = rehearse_rewards(mixture, rows, sandbox)
    assert line.endswith("tried on 9 completions to 3 prompts")
    assert rehearse_rewards(mixture, rows, sandbox, with_programs=False).startswith(
        "rewards: function_works, no_cheating, correctness_check, speed_check, correct_conclusion"
    )


def test_columns_of_a_row_do_not_replace_what_reward_functions_get(job, sandbox):
    row = {
        "completion": matmul.REFERENCE,
        "grades": 1,
        "completions": 2,
        "prompts": 3,
        "prompt": 4,
        "trainer_state": 5,
    }
    assert json.loads(next(grade_file([json.dumps(row)], job, sandbox, None)))["correct"]


@pytest.mark.slow
def test_a_program_that_fails_only_in_timed_calls_is_not_correct(job, quick_sandbox):
    size = matmul.answer("if len(A) > 40 and len(B) > 40:\n    return []\n" + matmul.LOOP)
    for text in [size, *matmul.WRONG]:
        line = json.dumps({"completion": text})
        graded = json.loads(next(grade_file([line], config.load_config(), quick_sandbox, None)))
        assert not graded["correct"], text


def test_rows_are_graded_in_order_whatever_they_hold(job, sandbox):
    rows = [
        {"id": 1, "completion": matmul.REFERENCE},
        {"id": "two", "completion": matmul.CHEAT[0], "task": "matmul"},
        {"id": None, "completion": None},
        {"id": [3], "completion": {"text": 5}, "extra": [1]},
        {"completion": "prose", "id": 4},
        {"id": 5},
        {"id": 6, "completion": "x", "task": "no_such_task"},
        {"id": 7, "completion": "x", "task": ["matmul"]},
    ]
    lines = [
        *map(json.dumps, rows),
        "",
        "{cut off",
        "[1]",
        '"text"',
        "[" * 100_000,
        '{"id": 8, "completion": "\\ud800"}',
    ]
    graded = [json.loads(line) for line in grade_file(lines, job, sandbox, None)]
    assert [row["id"] for row in graded] == [
        1,
        "two",
        None,
        [3],
        4,
        5,
        6,
        7,
        None,
        None,
        None,
        None,
        None,
        8,
    ]
    for row in graded:
        assert set(row) == {"id", "status", "rewards", "total", "cheating", "correct", "detail"}
    assert graded[0]["correct"] and graded[0]["total"] == sum(graded[0]["rewards"].values()) > 12
    assert graded[1]["cheating"] and not graded[1]["correct"] and "numpy" in graded[1]["detail"]
    assert [row["status"] for row in graded[4:]] == ["no_function", *["bad_row"] * 8, "no_function"]


def test_the_command_line(tmp_path, job):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": i, "completion": ""}) + "\n" for i in range(150))
    )
    command = [sys.executable, "check.py", "grade", tmp_path / "in.jsonl", "--task", "matmul"]
    command += ["--out", tmp_path / "out", "sandbox.workers=1"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert [json.loads(line)["id"] for line in (tmp_path / "out").open()] == list(range(150))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grade"], "the following arguments are required: FILE.jsonl"),
        (["grade", "README.md", "--step", "soon"], "--step: invalid"),
        (["--task", "matmul"], "unrecognized arguments: --task"),
        (["grade", "/no/such/file"], "No such file"),
        (["grade", "README.md", "--task", "nope"], "no task 'nope'"),
        (["grade", "README.md", "--step", "-1"], "--step: must be 0 or more"),
        (["grade", "README.md", "--out", "README.md"], "--out: the same file"),
        (["grpo.bata=1"], "grpo.bata"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        code = check.main(arguments)
    except SystemExit as end:  # argparse refuses what it knows
        code = end.code
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and "Traceback" not in errors


HONEST, STOPPED = {"legit", "legit_low"}, {"crash", "timeout", "memory", "died", "bad_result"}
CORPUS = [
    json.loads(line)
    for name in ("completions.jsonl", "completions_extra.jsonl", "completions_fences.jsonl")
    for line in (ROOT / "tests" / "data" / name).open(encoding="utf-8")
]


def acceptable(row, graded, reference_total):
    """Whether the `expect` of a corpus row allows this verdict; see tests/data/README.md."""
    wrong = not graded["correct"] or graded["cheating"]
    match row["expect"]:
        case "legit":
            return graded["correct"] and not graded["cheating"]
        case "legit_low":
            return not graded["cheating"] and graded["status"] not in (
                "no_function",
                "syntax_error",
            )
        case "wrong":
            return wrong
        case "cheat":
            return graded["total"] < reference_total
        case "timeout" | "crash":  # which of the two depends on the machine's speed and memory
            return wrong and (graded["status"] in STOPPED) or row["probe"] == "flood"
        case "no_function":
            return wrong
    return True  # either, contained


@pytest.mark.slow
def test_the_corpus_gets_acceptable_verdicts_in_the_right_order(
    patient_sandbox, impatient_sandbox, tmp_path
):
    job = config.load_config(None, ["task.timing_pairs=2", "task.timing_max_size=60"])
    texts = {"@@OUT@@": str(tmp_path), "@@LEAK@@": str(tmp_path), "@@PORT@@": "9"}
    rows = [row for row in CORPUS if row["task"] == "matmul"]
    for row in rows:
        for mark, text in texts.items():
            row["completion"] = row["completion"].replace(mark, text)
    rows.sort(key=lambda row: row["expect"] in HONEST)
    hostile = sum(row["expect"] not in HONEST for row in rows)
    lines = [json.dumps({"id": row["id"], "completion": row["completion"]}) for row in rows]
    graded = [*grade_file(lines[:hostile], job, impatient_sandbox, None)]
    graded = [
        json.loads(line)
        for line in (*graded, *grade_file(lines[hostile:], job, patient_sandbox, None))
    ]
    reference = [json.dumps({"completion": matmul.REFERENCE})]
    reference = json.loads(next(grade_file(reference, job, patient_sandbox, None)))
    assert [row["id"] for row in rows] == [row["id"] for row in graded]
    refused = [
        (row["note"], got)
        for row, got in zip(rows, graded, strict=True)
        if not acceptable(row, got, reference["total"])
    ]
    assert refused == []
    assert list(tmp_path.iterdir()) == []
    assert_totals_in_order(graded)


def assert_totals_in_order(graded):
    """No function and cheating < crash and timeout < wrong < correct, by their totals."""

    def totals(test):
        return [got["total"] for got in graded if test(got)]

    order = [
        totals(lambda got: got["cheating"] or got["status"] in ("no_function", "syntax_error")),
        totals(lambda got: not got["cheating"] and got["status"] in STOPPED),
        totals(lambda got: not got["cheating"] and got["status"] == "ok" and not got["correct"]),
        totals(lambda got: not got["cheating"] and got["correct"]),
    ]
    for lower, higher in itertools.pairwise(order):
        assert lower and max(lower) < min(higher)
