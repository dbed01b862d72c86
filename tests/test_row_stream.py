"""job/row_stream.py: rows that are read while they are trained on."""

import json

import pytest
import torch

import reward_functions
import tasks
from job.chat import Chat
from job.config import load_config
from job.errors import ConfigError
from job.model import load_tokenizer
from job.plan import make_plan
from tasks import jsonl

TINY = ["model.name=tiny", "model.max_seq_length=300", "grpo.max_completion_length=20"]


def lines(count, start=0):
    return [
        json.dumps({"prompt": f"What is {i} + 1?", "answer": i + 1, "id": {"n": i}})
        for i in range(start, start + count)
    ]


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLED_ROWS", 10)
    monkeypatch.setattr(jsonl, "STREAMED_ROWS", 20)
    yield
    for remembered in (jsonl.read_split, jsonl.row_count, tasks.note_once):
        remembered.cache_clear()


def plan_of(path, *overrides):
    config = load_config(
        None, ["task.type=jsonl", f"task.data={path}", "task.num_rows=null", *TINY, *overrides]
    )
    chat = Chat(load_tokenizer(config.model), config.model.prompt_date)
    return make_plan(config, chat), config


def streamed(plan):
    return [row["prompt"][0]["content"] for row in plan.stream]


def test_many_rows_are_streamed_and_few_are_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(20)) + "\n")
    plan, _ = plan_of(path)
    assert plan.stream is None and len(plan.training_set()) == 20
    path.write_text("\n".join(lines(50)) + "\n")
    plan, config = plan_of(path)
    assert len(plan.rows) == 10 and streamed(plan) == [f"What is {i} + 1?" for i in range(50)]
    assert "rows are streamed" in plan.lines(config)[0]
    rows = list(plan.training_set().take(2))
    assert rows[1]["id"] == {"n": 1} and rows[1]["task"] == "jsonl" and rows[1]["answer"] == 2


@pytest.mark.parametrize("key", ["task.num_eval_rows=3", "task.eval_share=0.4"])
def test_what_is_held_out_of_a_stream_is_never_trained_on(tmp_path, key):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(30) + lines(30)) + "\n")  # all of it twice
    plan, _ = plan_of(path, key)
    held_out = {row["prompt"][0]["content"] for row in plan.eval_rows}
    trained_on = streamed(plan)
    assert held_out and not held_out & set(trained_on)
    assert len(trained_on) == 2 * len(set(trained_on))
    if "num" in key:
        assert len(set(trained_on)) == 27


def test_later_rows_that_cannot_be_used_are_left_out_and_told(tmp_path, capsys):
    later = lines(20, 100)
    later[3:6] = ["nope", '{"prompt": "x", "answer": "two words\\nand three"}', "neither"]
    later[8] = json.dumps({"prompt": "word " * 400, "answer": 1})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(10) + later) + "\n")
    plan, _ = plan_of(path)
    assert len(streamed(plan)) == 26
    said = capsys.readouterr().err
    assert said.count("not JSON") == 1 and f"{path}:14: not JSON" in said
    assert f"{path}:15: the answer cannot be read" in said and "a prompt of" in said
    summary = plan.stream.summary()
    assert "26 rows were read, 4 left out" in summary
    assert f"{path}:14: not JSON" in summary and "(2 rows: 14, 16)" in summary


def test_mistakes_in_the_first_rows_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["nope", *lines(40)]) + "\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: not JSON"):
        plan_of(path)


def test_a_stream_ends_with_num_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(40)) + "\n")
    plan, _ = plan_of(path, "task.num_rows=15")
    assert len(streamed(plan)) == 15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.max_steps=-1", "grpo.max_steps: a stream has no known end"),
        ("grpo.zero_std_groups=resample", "grpo.zero_std_groups: resample draws from all rows"),
    ],
)
def test_what_needs_all_rows_at_once_is_refused(tmp_path, override, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(40)) + "\n")
    with pytest.raises(ConfigError, match=message):
        plan_of(path, override)
    assert plan_of(path, override, "task.streaming=false")[0].stream is None


def test_a_column_of_different_kinds_is_refused_if_a_reward_reads_it(tmp_path, monkeypatch):
    def by_kind(completions, kind, **kwargs):
        return [0.0] * len(completions)

    monkeypatch.setattr(reward_functions, "by_kind", by_kind, raising=False)
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"What is {i}?", "answer": 1, "kind": kind} for i, kind in enumerate("a" * 8)
    ]
    rows[3]["kind"] = 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plan_of(path)[0].rows[3]["kind"] == "3"
    with pytest.raises(
        ConfigError, match="column kind: .*and the reward function by_kind reads it"
    ):
        plan_of(path, "task.rewards=[by_kind]")


@pytest.mark.slow  # trains the tiny model twice
def test_a_streamed_run_trains_and_resumes(tmp_path, run_job):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines(60)) + "\n")
    job = [
        "--config", "configs/tiny.yaml", "task.type=jsonl", f"task.data={path}",
        "task.num_rows=null", "task.num_eval_rows=2", "grpo.report_to=[]", "grpo.save_steps=2",
    ]  # fmt: skip
    whole = [f"grpo.output_dir={tmp_path}/whole", "grpo.max_steps=4"]
    run = run_job(*job, *whole)
    assert run.returncode == 0, run.stderr
    assert "streamed: " in run.stdout and "0 left out" in run.stdout
    # The second half of it once more
    resumed = run_job(*job, *whole[1:], f"grpo.output_dir={tmp_path}/again",
                      f"grpo.resume_from_checkpoint={tmp_path}/whole/checkpoint-2")  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    weights = []
    for name in ("whole", "again"):
        folder = tmp_path / name / "checkpoint-4"
        weights.append(torch.load(folder / "optimizer.pt", weights_only=True)["state"][0])
    assert torch.equal(weights[0]["exp_avg"], weights[1]["exp_avg"])
