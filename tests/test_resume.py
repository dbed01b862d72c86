"""A run that was interrupted and resumed is the run that was never interrupted.

Jobs of the task `code` on the tiny model and a CPU: what they measure is repeated bit for bit.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch

import reward_functions
import train
from job import checkpoints, interruption
from tests import kills

ROOT = Path(__file__).parent.parent
PATIENCE_S = 1200  # a run takes seconds; a busy machine may need much more
JOB = [
    "--config",
    "configs/tiny.yaml",
    "task.type=code",
    "task.check=false",
    "grpo.per_device_train_batch_size=4",
    "grpo.num_generations=4",
    "grpo.max_completion_length=48",
    "grpo.report_to=[]",
    "sandbox.workers=1",
]
AUTO = "grpo.resume_from_checkpoint=auto"
# Batches that are trained on twice, and a metric that is a mean over two steps
UNEVEN = ["grpo.max_steps=6", "grpo.num_iterations=2", "grpo.logging_steps=3"]


@pytest.fixture
def run_here(run_job):
    return lambda output, *overrides: run_job(*JOB, f"grpo.output_dir={output}", *overrides)


@pytest.fixture
def scripted(monkeypatch):
    """A reward function `scripted`, which calls what a test puts into the list before it pays."""
    calls = []

    def scripted(completions, trainer_state, **kwargs):
        if hasattr(trainer_state, "log_history"):  # in training, not in the rehearsal before it
            for call in calls:
                call(trainer_state.global_step)
        return [float(len(completion[0]["content"]) % 7) for completion in completions]

    monkeypatch.setattr(reward_functions, "scripted", scripted, raising=False)
    return calls


def same(whole, other):
    return kills.differences(whole, other)


@pytest.mark.slow
def test_a_signal_in_the_midst_of_a_step_costs_nothing(tmp_path, run_here, scripted, monkeypatch):
    monkeypatch.setattr(interruption, "MARGIN_S", 0.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job = [*UNEVEN, "task.rewards=[scripted]"]
    assert run_here(whole, *job).returncode == 0

    def hang(step):
        if step == 4:  # a batch is generated; half a mean is measured
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(PATIENCE_S)

    scripted.append(hang)
    result = run_here(stopped, *job, "train.requeue=true", "train.grace_s=0.1")
    assert result.returncode == 75, result.stderr
    assert "SIGUSR1: this step is finished" in result.stderr
    assert "stopped after step 4; grpo.resume_from_checkpoint=auto continues" in result.stdout
    assert (stopped / "exit_code").read_text() == "75\n"
    assert not (stopped / "final_model").exists()

    scripted.clear()
    result = run_here(stopped, *job, AUTO)
    assert result.returncode == 0, result.stderr
    assert "resuming from " in result.stdout and "checkpoint-4, after step 4" in result.stdout
    assert same(whole, stopped) == [] and (stopped / "exit_code").read_text() == "0\n"


def test_a_signal_in_the_first_step_says_that_nothing_is_lost(tmp_path, run_here, scripted):
    scripted.append(lambda step: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(PATIENCE_S))
    result = run_here(tmp_path, "grpo.max_steps=2", "task.rewards=[scripted]")
    assert result.returncode == 143, result.stderr
    assert "before the first step was done: nothing was learned" in result.stdout
    assert not list(tmp_path.glob("checkpoint-*")) and "Traceback" not in result.stderr


def test_a_deadline_that_is_near_ends_the_run_after_its_step(
    tmp_path, run_here, scripted, monkeypatch
):
    running = []

    class Known(interruption.Interruption):
        def __init__(self, *args):
            super().__init__(*args)
            running.append(self)

    def come_near(step):
        if step == 2:
            running[0].deadline_s = time.monotonic()

    monkeypatch.setattr(train, "Interruption", Known)
    scripted.append(come_near)
    result = run_here(tmp_path, "grpo.max_steps=9", "task.rewards=[scripted]")
    assert result.returncode == 143 and "the deadline is near" in result.stderr
    assert "stopped after step 3" in result.stdout
    assert checkpoints.fault(tmp_path / "checkpoint-3") is None
    assert (tmp_path / "exit_code").read_text() == "143\n"


def test_a_reward_that_hangs_ends_the_run_with_a_checkpoint(tmp_path, run_here, scripted):
    scripted.append(lambda step: time.sleep(PATIENCE_S) if step == 2 else None)
    result = run_here(
        tmp_path, "grpo.max_steps=4", "task.rewards=[scripted]", "train.reward_timeout_s=2"
    )
    assert result.returncode == 3
    assert "error: reward function scripted took more than 2 s" in result.stderr
    assert checkpoints.fault(tmp_path / "checkpoint-2") is None


def test_a_full_disk_in_the_last_save_leaves_no_half_model(
    tmp_path, run_here, scripted, monkeypatch
):
    from transformers import PreTrainedTokenizerBase

    whole = PreTrainedTokenizerBase.save_pretrained

    def fails(self, folder, *args, **kwargs):
        if "final_model" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, folder, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fails)
    job = ["grpo.max_steps=1", "grpo.save_steps=1", "task.rewards=[scripted]"]
    result = run_here(tmp_path, *job)
    assert result.returncode == 4 and "No space left on device" in result.stderr
    assert not list(tmp_path.glob("*final_model*"))
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", whole)
    assert run_here(tmp_path, *job, AUTO).returncode == 0
    assert (tmp_path / "final_model" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_too_little_memory_names_the_keys_to_lower(tmp_path, run_here, scripted, monkeypatch):
    def fill(step):
        if step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    from job.trainer import Trainer

    compute_loss = Trainer.compute_loss
    monkeypatch.setattr(
        Trainer,
        "compute_loss",
        lambda self, *args, **kwargs: (
            fill(self.state.global_step) or compute_loss(self, *args, **kwargs)
        ),
    )
    result = run_here(tmp_path, "grpo.max_steps=3", "task.rewards=[scripted]")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    keys = ("per_device_train_batch_size", "max_completion_length", "num_generations")
    assert "step 2: the GPU is out of memory" in said
    assert [said.index(f"grpo.{key}") for key in keys] == sorted(
        said.index(key) - 5 for key in keys
    )
    assert checkpoints.fault(tmp_path / "checkpoint-1") is None


@pytest.mark.slow
def test_the_last_and_the_best_checkpoints_are_kept(tmp_path, run_here, scripted, monkeypatch):
    best = {1: 9.0, 2: 1.0, 3: 5.0, 4: 2.0, 5: 3.0}
    monkeypatch.setattr(
        reward_functions,
        "scripted",
        lambda completions, trainer_state, **_: (
            [best.get(trainer_state.global_step + 1, 0.0)] * len(completions)
        ),
    )
    result = run_here(
        tmp_path, "grpo.max_steps=5", "grpo.save_steps=1", "grpo.save_total_limit=1",
        "train.keep_best=2", "task.rewards=[scripted]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [step for step, _ in checkpoints.numbered(tmp_path)] == [5, 3, 1]


# ---- The Hub and its cache


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The tiny model as the Hub's cache holds it, and a Hub that does not answer."""
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--some--tiny" / "snapshots" / commit
    shutil.copytree(ROOT / "tiny_model", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    return snapshot


def start_with_hub(cached, *overrides):
    environment = os.environ | {
        "HF_HOME": str(cached.parents[3]),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nothing listens
        "HF_HUB_OFFLINE": "",
    }
    return subprocess.run(
        [sys.executable, "train.py", *JOB, "model.name=some/tiny", "grpo.max_steps=1", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_not_needed_for_a_model_in_the_cache(cached, tmp_path):
    result = start_with_hub(cached, f"grpo.output_dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert "the Hub is not asked for it" in result.stdout
    assert (tmp_path / "run" / "final_model" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_damaged_cache_is_one_clear_line(cached, tmp_path):
    weights = cached / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    result = start_with_hub(cached, f"grpo.output_dir={tmp_path / 'run'}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: model.name: some/tiny cannot be loaded" in result.stderr


# ---- In processes of their own


def start(output, *overrides):
    return subprocess.Popen(
        [sys.executable, "train.py", *JOB, f"grpo.output_dir={output}", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process, beginning):
    """Read until a line begins so."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(beginning):
            return
    pytest.fail(f"no line began with {beginning!r}: {''.join(said)}")


@pytest.mark.slow
@pytest.mark.parametrize("number", interruption.STOP_SIGNALS)
def test_a_signal_before_training_ends_in_one_line(tmp_path, number):
    process = start(tmp_path / "run", "grpo.max_steps=1000")
    wait_for(process, "sandbox: ")  # the model is loaded now
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 128 + number, said
    assert "nothing was learned, so nothing is lost" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_signal_to_the_whole_group_with_workers_of_the_data_loader(tmp_path):
    process = start(tmp_path, "grpo.max_steps=1000", "grpo.dataloader_num_workers=2")
    wait_for(process, "step    2")
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 143, said
    assert "Traceback" not in said and "exited unexpectedly" not in said
    (step, newest), *_ = checkpoints.numbered(tmp_path)
    assert step >= 2 and checkpoints.fault(newest) is None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child survives


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    script = [sys.executable, "tests/kills.py", tmp_path / "runs", "5"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "differences: []" in result.stdout


def test_the_comparison_of_runs_sees_a_difference(tmp_path):
    """The test of the test above."""
    for name in ("whole", "killed"):
        (tmp_path / name / "final_model").mkdir(parents=True)
        (tmp_path / name / "completions").mkdir()
        (tmp_path / name / "final_model" / "adapter_model.safetensors").write_bytes(b"weights")
        lines = [{"step": step, "loss": 0.5, "step_time": step} for step in (1, 2)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        pandas.DataFrame({"completion": ["a"]}).to_parquet(
            tmp_path / name / "completions" / "completions_00001.parquet"
        )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert kills.differences(whole, killed) == []
    file = killed / "metrics.jsonl"
    for damaged in (file.read_text() * 2, file.read_text().replace("0.5", "0.6", 1), ""):
        shutil.copy(whole / "metrics.jsonl", file)
        file.write_text(damaged)
        assert kills.differences(whole, killed) != [], damaged
