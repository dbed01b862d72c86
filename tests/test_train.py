"""train.py: the real job on the embedded model, and how it ends when things go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import reward_functions
import tasks
import train
from job import checkpoints, config, model, run_folder
from job.errors import ConfigError, OutputError
from job.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
PATIENCE_S = 1200  # a run takes seconds; a busy machine may need much more
TIMES = {"step_time", "time/rollout", "time/grading", "time/scoring", "time/backward"}
FAST = [
    "grpo.per_device_train_batch_size=4",
    "grpo.num_generations=4",
    "task.timing_pairs=1",
    "task.check=false",
    "evaluate.before=false",
    "evaluate.after=false",
]


def command(output, *overrides, fast=FAST):
    script = [
        sys.executable,
        "train.py",
        "--config",
        "configs/tiny.yaml",
        f"grpo.output_dir={output}",
    ]
    return [*script, *fast, *overrides]


@pytest.fixture(scope="module")
def run_here(run_job):
    return lambda output, *overrides, fast=FAST: run_job(
        *command(output, *overrides, fast=fast)[2:]
    )


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_here):
    output = tmp_path_factory.mktemp("out puts") / "run"  # a space in the path
    return output, run_here(output, "grpo.max_steps=4", "grpo.save_steps=2", "task.check=true")


def test_the_whole_job(finished):
    output, result = finished
    assert result.returncode == 0, result.stderr
    assert [entry["step"] for entry in metrics(output)] == [1, 2, 3, 4]
    for name in ("function_works", "no_cheating", "correctness_check", "speed_check"):
        assert all(f"rewards/{name}/mean" in entry for entry in metrics(output))
    assert {"grades/correct", "grades/cheating", "kl", "grad_norm", "learning_rate"} <= set(
        metrics(output)[0]
    )
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    ):
        assert (output / "final_model" / name).is_file()
    assert not (output / "final_model" / "ref").exists()
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert list((output / "runs").rglob("events.out.tfevents.*"))
    assert config.load_config(output / "config.yaml").grpo["max_steps"] == 4
    assert "first 2 steps" in result.stdout and "final_model" in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("step ")]) == 4


def test_completions_are_kept_with_every_reward(finished):
    output, _ = finished
    table = pandas.read_parquet(output / "completions")
    assert len(table) == 4 * 4
    columns = {
        "step",
        "prompt",
        "completion",
        "function_works",
        "no_cheating",
        "correctness_check",
        "speed_check",
    }
    columns |= {"group", "total", "weights", "correct", "cheating"}
    assert columns | {"status", "detail", "advantage"} <= set(table.columns)


def test_the_parts_of_a_step_add_up_to_its_time(finished):
    output, _ = finished
    for entry in metrics(output):
        parts = [entry[name] for name in TIMES - {"step_time"}]
        assert min(parts) > 0 and sum(parts) == pytest.approx(entry["step_time"], rel=0.05)


def test_the_final_model_is_the_trained_adapter(finished):
    from safetensors.torch import load_file

    output, _ = finished
    final, last, first = (
        load_file(output / folder / "adapter_model.safetensors")
        for folder in ("final_model", "checkpoint-4", "checkpoint-2")
    )
    assert all(final[name].equal(last[name]) for name in final)
    assert any(not final[name].equal(first[name]) for name in final)


def test_resuming_repeats_the_run(finished, tmp_path, run_here):
    output, _ = finished
    resumed = tmp_path / "run"
    shutil.copytree(output, resumed, ignore=shutil.ignore_patterns("final_model"))
    state = resumed / "checkpoint-4" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])  # a save that was killed
    result = run_here(
        resumed,
        "grpo.max_steps=4",
        "grpo.save_steps=2",
        "grpo.resume_from_checkpoint=auto",
        "task.rewards=[function_works]",
    )
    assert result.returncode == 0, result.stderr
    assert [entry["step"] for entry in metrics(resumed)] == [1, 2, 3, 4]
    lengths = "completions/mean_length"  # what was sampled, hence weights and seeds
    assert metrics(resumed)[2][lengths] == metrics(output)[2][lengths]
    assert (
        metrics(resumed)[2]["kl"] == pytest.approx(metrics(output)[2]["kl"], rel=1e-3)
        and metrics(output)[2]["kl"] > 0
    )


# Graded without any chance: nothing is run, so nothing is drawn or timed.
SCHEDULED = """
grpo:
  max_steps: 4
  save_steps: 2
  shuffle_dataset: false
task:
  type: reasoning
  check: false
  problems: [What is 1 + 1?, What is 2 * 3?, What is 15 * 23?, What is 15 * 23 - 40?]
  rewards: {step_by_step: 1.0, length_penalty: {0: 0.0, 4: 2.0}}
  curriculum:
    - {step: 2, free_characters: 1}
"""


@pytest.mark.slow
def test_schedules_curriculum_and_order_of_rows_survive_resuming(tmp_path, run_here):
    (tmp_path / "job.yaml").write_text(SCHEDULED)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    job = ["--config", str(tmp_path / "job.yaml")]
    assert (first := run_here(whole, *job, fast=FAST[:2])).returncode == 0, first.stderr
    (resumed / "checkpoint-2").parent.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    again = run_here(resumed, *job, "grpo.resume_from_checkpoint=auto", fast=FAST[:2])
    assert again.returncode == 0, again.stderr

    steps = metrics(whole)
    assert [step["reward_weights/length_penalty"] for step in steps] == [0.0, 0.5, 1.0, 1.5]
    means = [
        (step["rewards/step_by_step/mean"], step["rewards/length_penalty/mean"]) for step in steps
    ]
    for step, (layout, length) in zip(steps, means, strict=True):
        assert step["reward"] == pytest.approx(
            layout + step["reward_weights/length_penalty"] * length
        )
    # The penalty of a stage that allows nothing
    assert [length for _, length in means] == [0.0, 0.0, -1.0, -1.0]

    assert [step["step"] for step in metrics(resumed)] == [3, 4]
    for name in [name for name in steps[0] if name.startswith(("reward", "completions/"))]:
        assert [step[name] for step in metrics(resumed)] == [step[name] for step in steps[2:]], name

    problems = config.load_config(job[1]).tasks[0].problems  # rows in their order, one a step
    for output, expected in ((whole, problems), (resumed, problems[2:])):
        table = pandas.read_parquet(output / "completions")
        asked = [step["prompt"].unique() for _, step in table.groupby("step")]
        assert [len(prompts) for prompts in asked] == [1] * len(expected)
        assert all(
            problem in str(prompts[0]) for problem, prompts in zip(expected, asked, strict=True)
        )


@pytest.mark.slow
def test_resuming_in_the_midst_of_a_generated_batch_repeats_the_run(tmp_path, run_here):
    (tmp_path / "job.yaml").write_text(SCHEDULED)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    job = ["--config", str(tmp_path / "job.yaml"), "grpo.num_iterations=2", "grpo.save_steps=1"]
    assert (first := run_here(whole, *job, fast=FAST[:2])).returncode == 0, first.stderr
    (resumed / "checkpoint-1").parent.mkdir()
    shutil.copytree(whole / "checkpoint-1", resumed / "checkpoint-1")
    again = run_here(resumed, *job, "grpo.resume_from_checkpoint=auto", fast=FAST[:2])
    assert again.returncode == 0, again.stderr
    differing = [
        {name for name in step if step[name] != other.get(name)} - TIMES
        for step, other in zip(metrics(whole)[1:], metrics(resumed), strict=True)
    ]
    assert differing == [set()] * 3
    # Generated at steps 1 and 3
    assert ["reward" in step for step in metrics(resumed)] == [False, True, False]


@pytest.mark.slow
def test_a_generated_batch_of_another_shape_is_not_taken_up(tmp_path, run_here):
    job = ["task.type=reasoning", "grpo.num_iterations=2", "grpo.save_steps=1"]
    assert run_here(tmp_path, *job, "grpo.max_steps=1", fast=FAST[:2]).returncode == 0
    assert (tmp_path / "checkpoint-1" / "rollout_0.pt").is_file()
    wider = [
        *job,
        "grpo.per_device_train_batch_size=8",
        "grpo.max_steps=2",
        "grpo.resume_from_checkpoint=auto",
    ]
    assert run_here(tmp_path, *wider, fast=FAST[1:2]).returncode == 0
    assert ["reward" in step for step in metrics(tmp_path)] == [True, True]


def test_resuming_a_finished_run_trains_no_further(finished, tmp_path, run_here):
    output, _ = finished
    again = tmp_path / "run"
    shutil.copytree(output, again, ignore=shutil.ignore_patterns("final_model"))
    result = run_here(
        again, "grpo.max_steps=4", "grpo.learning_rate=0.5", "grpo.resume_from_checkpoint=auto"
    )
    assert result.returncode == 0 and "nothing is left to train" in result.stdout
    begin = f"note: since {again / 'checkpoint-4'} was written: "
    notes = [
        line.removeprefix(begin).partition(":")[0]
        for line in result.stderr.splitlines()
        if begin in line
    ]
    assert sorted(notes) == ["grpo.learning_rate", "grpo.save_steps", "task.check"]
    assert "mean reward" not in result.stdout  # a table of no steps
    final, before = (
        folder / "final_model" / "adapter_model.safetensors" for folder in (again, output)
    )
    assert final.read_bytes() == before.read_bytes()
    assert {path.name for path in again.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_a_fresh_run_puts_an_earlier_one_aside(tmp_path):
    output = tmp_path / "run"
    (output / "checkpoint-9").mkdir(parents=True)
    (output / "metrics.jsonl").write_text("{}\n")
    (output / "notes.txt").write_text("the user's own")
    job = config.load_config(None, [f"grpo.output_dir={output}"])
    RunFolder(job).begin(job, None)
    (aside,) = output.glob("previous-*")
    assert {path.name for path in aside.iterdir()} == {"checkpoint-9", "metrics.jsonl"}
    assert {path.name for path in output.iterdir()} == {"config.yaml", "notes.txt", aside.name}


@pytest.mark.slow
def test_a_run_that_cannot_begin_leaves_an_earlier_one_alone(finished, tmp_path, run_here):
    checkpoint = tmp_path / "checkpoint-9"
    shutil.copytree(finished[0] / "checkpoint-4", checkpoint)
    (checkpoint / checkpoints.CHECKSUMS).unlink()
    (checkpoint / "adapter_config.json").write_text('{"r": 4}')
    beaten = ["task.check=true", "task.rewards=[function_works]"]
    for overrides, code in ((beaten, 6), (["lora.target_modules=[q_prj]"], 2)):
        result = run_here(tmp_path, "lora.target_parameters=null", *overrides)
        assert result.returncode == code, result.stderr
        assert checkpoint.is_dir() and not list(tmp_path.glob("previous-*"))
    assert (
        "error: lora.target_modules: the model has no q_prj; did you mean q_proj?" in result.stderr
    )
    result = run_here(tmp_path, "grpo.lr_scheduler_type=cosine_with_min_lr")
    assert (
        result.returncode == 2
        and "error: grpo.lr_scheduler_type, lr_scheduler_kwargs: " in result.stderr
    )
    # Before anything is started or loaded
    assert "sandbox:" not in result.stdout and checkpoint.is_dir()
    result = run_here(tmp_path, "grpo.resume_from_checkpoint=auto")
    assert (
        result.returncode == 2
        and f"lora.r: 8, but {checkpoint} was trained with 4" in result.stderr
    )


def test_auto_without_a_checkpoint_says_so(tmp_path, capsys):
    (tmp_path / "previous-1" / "checkpoint-5").mkdir(parents=True)
    job = config.load_config(
        None, ["grpo.resume_from_checkpoint=auto", f"grpo.output_dir={tmp_path}"]
    )
    assert RunFolder(job).checkpoint_to_resume(job) is None
    said = capsys.readouterr().out
    assert "no whole checkpoint in" in said and "previous-1/checkpoint-5" in said


def test_evaluation_rows_are_held_out(tmp_path, run_here):
    evaluation = [
        "grpo.eval_strategy=steps",
        "grpo.eval_steps=1",
        "task.num_eval_rows=4",
        "task.num_rows=12",
    ]
    result = run_here(
        tmp_path, "grpo.max_steps=1", "grpo.per_device_eval_batch_size=4", *evaluation
    )
    assert result.returncode == 0, result.stderr
    step, evaluated = metrics(tmp_path)
    assert "eval_reward" in evaluated
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    for name in tasks.load(
        "matmul"
    ).REWARDS:  # the step's own completions, not those of its evaluation
        assert table[name].mean() == pytest.approx(step[f"rewards/{name}/mean"])
        assert table[name].std() == pytest.approx(step[f"rewards/{name}/std"])


@pytest.mark.slow
def test_a_failing_reward_function_ends_the_run_with_a_checkpoint(tmp_path, run_here, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def third_time(completions, trainer_state, **kwargs):\n"
        "    return [1.0 / (2 - trainer_state.global_step) for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards = "task.rewards=[function_works, 'my_rewards:third_time']"
    result = run_here(tmp_path / "run", "grpo.max_steps=4", rewards)
    assert result.returncode == 3
    assert "error: reward function third_time raised ZeroDivisionError" in result.stderr
    assert "on completion 0 of 4: " in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "final_model").exists()


# Trains, then resumes in the midst of the first generated batch: one process group, for its start
# takes longest.
TWICE = """
import shutil, sys
import torch
import train

whole, resumed, *arguments = sys.argv[1:]
code = train.main([*arguments, f"grpo.output_dir={whole}"])
if torch.distributed.get_rank() == 0:
    shutil.copytree(f"{whole}/checkpoint-1", f"{resumed}/checkpoint-1")
torch.distributed.barrier()
resuming = [f"grpo.output_dir={resumed}", "grpo.resume_from_checkpoint=auto"]
sys.exit(code or train.main([*arguments, *resuming]))
"""


@pytest.mark.slow
def test_two_processes_train_one_model_resample_together_and_resume(tmp_path):
    whole, resumed, script = tmp_path / "whole", tmp_path / "resumed", tmp_path / "twice.py"
    script.write_text(TWICE)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    job = command(
        whole, "grpo.max_steps=3", "grpo.save_steps=1", "grpo.zero_std_groups=resample",
        "grpo.num_iterations=2", "grpo.max_resampling_tries=2", "grpo.max_completion_length=24",
        "grpo.per_device_train_batch_size=8",
    )[2:]  # fmt: skip
    result = subprocess.run(
        [*torchrun, script, whole, resumed, *job],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stderr
    said, _, said_again = result.stdout.partition("final_model")
    assert (
        "8 completions of 2 prompts, 4 each; each of 2 devices takes 4 completions of 1 prompt"
        in said
    )
    assert said.count("an optimizer step: ") == said.count("step 1/3") == 1
    assert "step 1/3" not in said_again and "step 2/3" in said_again
    steps = metrics(whole)
    assert len(steps) == 3 and all(entry.get("resampling/tries", 0) <= 2 for entry in steps)
    # Of both processes
    assert len(pandas.read_parquet(whole / "completions" / "completions_00003.parquet")) == 8

    for step, again in zip(steps[1:], metrics(resumed), strict=True):
        assert {name for name in step if step[name] != again.get(name)} <= TIMES


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint(tmp_path):
    process = subprocess.Popen(
        command(tmp_path / "run", "grpo.max_steps=1000"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 143, rest
    assert "resume_from_checkpoint=auto" in rest
    assert list((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))
    assert not (tmp_path / "run" / "final_model").exists()
    # The report is written however a run ends
    assert "| state | stopped by SIGTERM |" in (tmp_path / "run" / "report.md").read_text()
    assert "time of a step, seconds" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["grpo.max_step=3", "lora.rr=3"], 2, "grpo.max_step: no such key"),
        (["model.name=/no/such/model"], 2, "model.name: /no/such/model is not a folder"),
        (["nonsense"], 2, "override 'nonsense'"),
        (
            ["model.max_seq_length=200"],
            2,
            "model.max_seq_length 200 less grpo.max_completion_length 112 leaves 87",
        ),
        (
            ["grpo.resume_from_checkpoint=/nowhere"],
            2,
            "grpo.resume_from_checkpoint: /nowhere is neither",
        ),
        (
            ["sandbox.require=[landlok]"],
            2,
            "sandbox.require: no layer 'landlok'; did you mean landlock?",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, run_here, overrides, code, expected):
    result = run_here(tmp_path / "run", *overrides)
    assert result.returncode == code, result.stderr
    assert f"error: {expected}" in result.stderr or expected in result.stderr
    assert "Traceback" not in result.stderr


def test_two_runs_do_not_share_an_output_folder(tmp_path, run_here):
    folder = RunFolder(config.load_config(None, [f"grpo.output_dir={tmp_path}"]))
    with folder:
        result = run_here(tmp_path, "grpo.max_steps=1")
        assert result.returncode == 4
        assert f"another run is writing to {tmp_path}; name another folder" in result.stderr
    with folder:  # free again
        pass


def test_a_checkpoint_is_sought_by_its_path_and_the_nearest_is_named(finished):
    output, _ = finished
    job = config.load_config(
        None, ["grpo.resume_from_checkpoint=checkpoint-2", f"grpo.output_dir={output}"]
    )
    with pytest.raises(
        ConfigError, match=f"checkpoint-2 is neither .*; did you mean {output}/checkpoint-2?"
    ):
        RunFolder(job).checkpoint_to_resume(job)


def test_an_output_folder_that_is_a_file(tmp_path, run_here):
    (tmp_path / "run").write_text("")
    result = run_here(tmp_path / "run")
    assert result.returncode == 4 and "error: grpo.output_dir: cannot write" in result.stderr


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a tmpfs of the given size and flags; unmounted after the test."""
    mounted = []

    def mount(options):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True
        ).returncode:
            pytest.skip("this container may not mount")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@needs_root
@pytest.mark.parametrize(
    ("options", "expected"), [("size=9m", "only"), ("size=9m,ro", "Read-only file system")]
)
def test_no_room_or_read_only_is_refused_at_the_start(
    small_disk, options, expected, run_here, monkeypatch
):
    monkeypatch.setattr(model, "load_model", lambda *_: pytest.fail("the model was loaded"))
    result = run_here(small_disk(options))
    assert result.returncode == 4
    assert (
        "error: grpo.output_dir: " in result.stderr
        and expected in result.stderr
        and "Traceback" not in result.stderr
    )


@needs_root
# TensorBoard's own thread
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_during_the_run(small_disk, run_here, monkeypatch):
    disk = small_disk(f"size={run_folder.MIN_FREE_MB + 4}m")

    def fills_the_disk(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            with open(disk / "hog", "wb", buffering=0) as hog, pytest.raises(OSError):
                while True:
                    hog.write(b"0" * (1 << 20))
        return [float(i) for i in range(len(completions))]

    monkeypatch.setattr(reward_functions, "fills_the_disk", fills_the_disk, raising=False)
    steps = ["grpo.max_steps=9", "grpo.save_steps=1"]
    result = run_here(disk / "run", *steps, "task.rewards=[fills_the_disk]")
    assert result.returncode == 4, result.stderr
    assert "error: grpo.output_dir: " in result.stderr, result.stderr
    assert (disk / "run" / "checkpoint-1" / "trainer_state.json").is_file()


QUICK = ("jsonl", "reasoning", "prompt_injection")
OTHERS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in tasks.names()
    if name != "matmul"
]


@pytest.mark.parametrize("name", OTHERS)
def test_every_task_trains_on_the_tiny_model(tmp_path, run_here, name):
    overrides = [f"task.type={name}", "grpo.max_steps=1", "task.num_rows=8"]
    overrides += ["model.max_seq_length=512"]  # tools are described in the prompt
    result = run_here(tmp_path, *overrides, fast=FAST[:2])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "final_model" / "adapter_model.safetensors").is_file()
    assert set(tasks.load(name).REWARDS) <= {
        key.split("/")[1] for key in metrics(tmp_path)[0] if "rewards/" in key
    }


SORT_TASK = '''
"""Sort a list of numbers."""

from dataclasses import dataclass

from sandbox import Status
from tasks import Grade, Options as SharedOptions, extract_code, flag_unclosed

REWARDS = ["function_works", "no_cheating", "correctness_check"]
REFERENCE = "```python\\ndef sort(numbers):\\n    return sorted(numbers)\\n```"
SLOWER = []
WRONG = ["```python\\ndef sort(numbers):\\n    return numbers\\n```"]
CHEAT = ["```python\\nimport numpy\\ndef sort(x):\\n    return numpy.sort(x).tolist()\\n```"]


@dataclass(frozen=True)
class Options(SharedOptions):
    length: int = 9


def rows(options):
    prompt = [{"role": "user", "content": "Write sort(numbers)."}]
    return [{"prompt": prompt} for _ in range(options.num_rows)]


def grade(completion, row, options, sandbox, rng):
    code, unclosed = extract_code(completion, "sort")
    if code is None:
        return Grade(Status.NO_FUNCTION)
    numbers = rng.permutation(options.length).tolist()
    with sandbox.open(code, "sort") as program:
        run = program.call([numbers])
        correct = run.value == sorted(numbers)
        grade = Grade(run.status, code, correct, program.findings, detail=run.error)
    return flag_unclosed(grade) if unclosed else grade
'''


def test_a_new_task_is_one_file(tmp_path, run_here, monkeypatch):
    (tmp_path / "sort.py").write_text(SORT_TASK)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    run = tmp_path / "run"
    result = run_here(run, "task.type=sort", "task.length=8", "grpo.max_steps=1", fast=FAST[:2])
    assert result.returncode == 0, result.stderr
    assert "check: sort: 5 known answers" in result.stdout
    assert (run / "final_model" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("asked, wanted", [
    ("", 200), ("20", 200), ("0.05", 50), ("0", 0), ("a lot", 200), ("inf", 200),
])  # fmt: skip
def test_less_free_disk_can_be_asked_for(monkeypatch, asked, wanted):
    monkeypatch.setenv("MIN_FREE_GB", asked)
    assert run_folder.MIN_FREE_MB == 200 and run_folder.min_free_mb() == wanted


def test_a_disk_that_is_too_full_names_the_way_out(monkeypatch, tmp_path):
    usage = run_folder.shutil.disk_usage(tmp_path)._replace(free=60 << 20)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage)
    folder = RunFolder(config.load_config(None, [f"grpo.output_dir={tmp_path}"]))
    with pytest.raises(OutputError, match="60 MB are free.*unless MIN_FREE_GB in the environment"):
        folder.__enter__()
    monkeypatch.setenv("MIN_FREE_GB", "0.05")
    with folder:
        pass


def test_the_next_commands_are_those_that_work(tmp_path):
    folder = RunFolder(config.load_config(None, [f"grpo.output_dir={tmp_path}"]))
    assert "evaluate.py base" in train.next_commands(folder, can_evaluate=True)
    without = train.next_commands(folder, can_evaluate=False)
    assert "evaluate.py" not in without and "generate.py" in without and "check.py" in without
