"""Evaluation inside a run: how much it may cost, when it happens, and what it leaves."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from job.batches import batch_plan
from job.chat import Chat
from job.config import ROOT, TINY_MODEL, EvaluateOptions, load_config
from job.errors import ConfigError
from job.evaluation import evaluation, run_evaluation
from job.evaluation.run_evaluation import RunEvaluation, plan_evaluation
from job.plan import Plan
from job.rows import mixed_rows
from tasks import matmul, reasoning

TINY = str(ROOT / "configs" / "tiny.yaml")
# Graded without any chance, so that runs can be compared
JOB = """
grpo:
  max_steps: 4
  save_steps: 2
  per_device_train_batch_size: 4
  num_generations: 4
task:
  type: reasoning
  check: false
  problems: [What is 1 + 1?, What is 2 * 3?, What is 15 * 23?]
  eval_problems: [{question: What is 3 * 4?, answer: 12}, {question: What is 7 + 7?, answer: 14}]
  rewards: [correct_conclusion, step_by_step]
evaluate: {every: 2, completions: 2, share: 0.6}
"""


@pytest.fixture(scope="module")
def job_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text(JOB)
    return file


@pytest.fixture(scope="module")
def run_here(run_job, job_file):
    return lambda output, *overrides: run_job(
        "--config",
        TINY,
        "--config",
        job_file,
        f"grpo.output_dir={output}",
        *overrides,
        evaluate=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_here):
    output = tmp_path_factory.mktemp("run")
    return output, run_here(output)


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def training(output):
    """The metrics of the steps, without their times."""
    steps = [line for line in lines(output) if "loss" in line]
    for step in steps:
        for name in [name for name in step if name.startswith(("step_time", "time/"))]:
            del step[name]
    return steps


# ---- when, and how much


def small_plan(held_out, steps):
    rows = [{"task": "reasoning", "prompt": [{"role": "user", "content": "x"}]}] * held_out
    return Plan([], rows, 1, 1, 0, batch_plan({"per_device_train_batch_size": 8}, 1))


@given(
    held_out=st.integers(1, 100),
    steps=st.integers(1, 50),
    share=st.floats(0.01, 0.9),
    completions=st.integers(1, 8),
    every=st.none() | st.integers(1, 20),
    before=st.booleans(),
    after=st.booleans(),
)
def test_an_evaluation_never_costs_more_than_its_share(
    held_out, steps, share, completions, every, before, after
):
    wanted = SimpleNamespace(
        before=before, after=after, every=every, rows=64, completions=completions, share=share
    )
    fixed = (reasoning.Options(type="reasoning"),)
    config = SimpleNamespace(evaluate=wanted, grpo={"max_steps": steps}, tasks=fixed)
    plan, words = plan_evaluation(config, small_plan(held_out, steps))
    assert words.startswith("evaluation")
    if plan is None:
        return
    assert 1 <= len(plan.rows) <= min(64, held_out) and plan.share <= share + 1e-9
    assert ("evaluate.share" in words) == (len(plan.rows) < min(64, held_out))
    due = 0
    for step in range(steps + 1):
        is_every = every is not None and step > 0 and step % every == 0
        due += is_every or (step == 0 and before) or (step == steps and after)
    assert plan.times == due and plan.trained_on == 8 * steps


@pytest.mark.parametrize(("task", "is_fresh"), [(matmul, True), (reasoning, False)])
def test_only_a_task_with_one_prompt_has_fresh_inputs(task, is_fresh):
    wanted = EvaluateOptions(before=True, after=True, rows=1, completions=4, share=0.9)
    options = task.Options(type=task.__name__.rpartition(".")[2], num_rows=8, num_eval_rows=2)
    config = SimpleNamespace(evaluate=wanted, grpo={"max_steps": 5}, tasks=(options,))
    rows, held_out = mixed_rows([options])
    batches = batch_plan({"per_device_train_batch_size": 8}, 1)
    plan, _ = plan_evaluation(config, Plan(rows, held_out, 1, 1, 0, batches))
    assert len(plan.rows) == 1 and plan.has_fresh_inputs == is_fresh


def test_without_held_out_rows_there_is_none():
    config = SimpleNamespace(evaluate=None, grpo={"max_steps": 5})
    assert plan_evaluation(config, small_plan(0, 5)) == (
        None,
        "evaluation: none, because no row is held out (task.num_eval_rows)",
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["grpo.eval_strategy=steps"], "evaluate.every: 2 and grpo.eval_strategy both say"),
        (["grpo.eval_steps=3"], "evaluate.every: 2 and grpo.eval_steps both say"),
        (["evaluate.every=0"], "evaluate.every: must be above 0, not 0"),
        (["evaluate.share=1"], "evaluate.share: must be above 0 and below 1, not 1"),
        (["evaluate.rows=-1", "evaluate.completions=0"], "evaluate.completions: must be above 0"),
        (["evaluate.step=3"], "evaluate.step: no such key"),
    ],
)
def test_what_cannot_be_is_refused(job_file, overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_config([TINY, job_file], overrides)


def test_every_without_held_out_rows_is_refused():
    with pytest.raises(ConfigError, match="evaluate.every: there is nothing to evaluate on"):
        load_config(overrides=["evaluate.every=2"])


def test_another_type_of_task_has_other_held_out_rows():
    assert load_config(TINY).tasks[0].num_eval_rows > 0
    assert load_config(TINY, ["task.type=reasoning"]).tasks[0].num_eval_rows == 0


# ---- what it leaves


def test_a_run_ends_with_before_and_after(finished):
    output, result = finished
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("before and after: ") and last.endswith(" 2 problems")
    assert "evaluation before, every 2 steps, after: 2 of 2 held-out rows" in result.stdout
    assert [line.count("python ") for line in result.stdout.splitlines()].count(1) == 3
    order = [(line["step"], "eval_reward" in line) for line in lines(output)]
    assert order == [
        (0, True),
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (4, False),
        (4, True),
    ]
    assert {"eval_grades/correct", "eval_pass@2", "eval_rewards/step_by_step/mean"} <= set(
        lines(output)[0]
    )
    written = json.loads((output / "evaluation.json").read_text())
    assert [entry["step"] for entry in written["evaluations"]] == [0, 2, 4]
    assert f"before and after: {written['comparison']['sentence']}" == last
    table = pandas.read_parquet(output / "evaluation" / "step-4" / "completions.parquet")
    assert len(table) == 4


@pytest.mark.slow
def test_training_is_the_same_without_evaluation(finished, tmp_path, run_here):
    output, _ = finished
    off = ["evaluate.before=false", "evaluate.after=false", "evaluate.every=null"]
    assert run_here(tmp_path, *off).returncode == 0
    assert training(tmp_path) == training(output)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.slow
def test_a_resumed_run_does_not_repeat_what_was_evaluated(finished, tmp_path, run_here):
    output, _ = finished
    resumed = tmp_path / "run"
    shutil.copytree(output, resumed, ignore=shutil.ignore_patterns("checkpoint-4", "final_model"))
    done = [resumed / "evaluation" / f"step-{step}" / "completions.parquet" for step in (0, 2, 4)]
    times = [file.stat().st_mtime_ns for file in done]
    # The process was killed when the second evaluation was finished, before its line was written.
    kept = [line for line in lines(resumed) if line["step"] != 2 or "loss" in line]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (resumed / "metrics.jsonl").write_text(text)
    result = run_here(resumed, "grpo.resume_from_checkpoint=auto")
    assert result.returncode == 0, result.stderr
    assert [file.stat().st_mtime_ns == time for file, time in zip(done, times, strict=True)] == [
        True,
        True,
        False,  # of weights that are gone
    ]
    columns = ["problem", "answer", "reward"]
    for file in done:
        first = output / file.relative_to(resumed)
        assert pandas.read_parquet(file)[columns].equals(pandas.read_parquet(first)[columns])
    assert [line["step"] for line in lines(resumed)] == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.slow
def test_a_run_that_was_put_aside_brings_its_evaluations_along(finished, tmp_path, run_here):
    output, _ = finished
    checkpoint = f"grpo.resume_from_checkpoint={output / 'checkpoint-4'}"
    result = run_here(tmp_path, checkpoint)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("before and after: ")
    assert {path.name for path in tmp_path.glob("evaluation/*")} == {"step-0", "step-2", "step-4"}


def test_a_resumed_run_keeps_the_rows_of_its_first_evaluation(finished, tmp_path, capsys):
    output, _ = finished
    shutil.copytree(output, tmp_path / "run")
    options = load_config([TINY, output / "config.yaml"]).tasks[0]
    held_out = mixed_rows([options])[1]
    more = [{"question": f"What is {i} + 9?", "answer": i + 9} for i in range(4)]
    chat = Chat(AutoTokenizer.from_pretrained(TINY_MODEL), "2025-08-05")

    def resumed(rows, chosen):
        found = object.__new__(RunEvaluation)
        found.folder = SimpleNamespace(
            path=tmp_path / "run",
            evaluation=lambda step: tmp_path / "run" / "evaluation" / f"step-{step}",
        )
        found.chat = chat
        found.plan = SimpleNamespace(held_out=rows, has_fresh_inputs=False)
        found.problems = evaluation.make_problems(chosen, chat)
        found._keep_problems(found._first_problems())
        return found

    # The plan has one row now, and the first evaluation had both
    found = resumed(held_out, held_out[:1])
    assert len(found.problems) == 2
    assert "2 held-out rows, those of the first evaluation" in capsys.readouterr().out
    others = mixed_rows([replace(options, eval_problems=more)])[1]
    assert len(resumed(others, others).problems) == 4
    assert "other rows are held out" in capsys.readouterr().err

    # What has other problems stands in no table with the last one
    file = tmp_path / "run" / "evaluation" / "step-0" / "evaluation.json"
    result = json.loads(file.read_text())
    result["settings"]["problems"] = "8 (another)"
    file.write_text(json.dumps(result))
    title = found.report().splitlines()[1].split()
    assert title == ["step", "2", "step", "4"]


def test_processes_share_the_problems(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(run_evaluation.own_share(list(range(7))))
    assert {len(share) for share in shares} == {3}
    assert {problem for share in shares for problem in share} == set(range(7))
    twice = [{"problem": i, "number": 0} for share in shares for i in share]
    assert [record["problem"] for record in run_evaluation.distinct(twice)] == list(range(7))
