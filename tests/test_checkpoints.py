"""checkpoints.py, run_folder.py: which checkpoint is taken, which are skipped, which are kept."""

import json
import os
import shutil
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job import checkpoints, run_folder
from job.config import load_config
from job.errors import ConfigError
from job.run_folder import RunFolder

FILES = (
    "trainer_state.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole checkpoint of step 5, with files as the libraries write them."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("run")
    written = checkpoints.begin_saving(folder) / "checkpoint-5"
    written.mkdir()
    state = {"global_step": 5, "max_steps": 9, "log_history": [{"loss": 0.5, "step": 5}]}
    (written / "trainer_state.json").write_text(json.dumps(state))
    (written / "adapter_config.json").write_text('{"r": 8}')
    save_file({"weight": torch.arange(1000.0)}, written / "adapter_model.safetensors")
    for name in FILES[3:]:
        torch.save({"state": torch.arange(1000.0)}, written / name)
    (written / "adapter_model.safetensors").chmod(0o600)
    return checkpoints.finish_saving(folder, 5)


@pytest.fixture
def run(whole, tmp_path):
    """A folder with the whole checkpoints 3 and 5."""
    for step in (3, 5):
        copy = tmp_path / f"checkpoint-{step}"
        shutil.copytree(whole, copy)
        state = json.loads((copy / "trainer_state.json").read_text()) | {"global_step": step}
        (copy / "trainer_state.json").write_text(json.dumps(state))
        (copy / checkpoints.CHECKSUMS).unlink()  # as versions before this one wrote it
    return tmp_path


def config(folder, wanted="auto"):
    keys = ["model.name=tiny", f"grpo.output_dir={folder}"]
    return load_config(None, [*keys, f"grpo.resume_from_checkpoint={wanted}"])


def taken(folder):
    job = config(folder)
    return RunFolder(job).checkpoint_to_resume(job)


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def noise(file):
    file.write_bytes(os.urandom(file.stat().st_size))


def one_byte(file):
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)


def folder_instead(file):
    file.unlink()
    file.mkdir()


DAMAGE = {"missing": os.unlink, "half": half, "empty": empty, "noise": noise}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [*DAMAGE.values(), folder_instead], ids=[*DAMAGE, "folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run, name, damage, capsys):
    assert taken(run) == str(run / "checkpoint-5")
    damage(run / "checkpoint-5" / name)
    assert taken(run) == str(run / "checkpoint-3")
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("checkpoint-5, after step 5")
    (skipped,) = [line for line in said if "is skipped" in line]
    assert f"checkpoint-5 is skipped: {name}" in skipped
    with pytest.raises(
        ConfigError, match=f"checkpoint-5 (cannot be resumed from: {name}|is neith)"
    ):
        job = config(run, run / "checkpoint-5")
        RunFolder(job).checkpoint_to_resume(job)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_changed_on_the_disk_is_found(whole, tmp_path, name):
    copy = tmp_path / "checkpoint-5"
    shutil.copytree(whole, copy)
    assert checkpoints.fault(copy) is None
    one_byte(copy / name)
    assert name in checkpoints.fault(copy)


def test_a_generated_batch_that_was_cut_off_is_found_without_checksums(run):
    batch = run / "checkpoint-5" / "rollout_0.pt"
    shutil.copy(run / "checkpoint-5" / "optimizer.pt", batch)
    assert checkpoints.fault(batch.parent) is None
    half(batch)
    assert "rollout_0.pt is damaged" in checkpoints.fault(batch.parent)


@pytest.mark.parametrize("key", checkpoints.STATE_KEYS)
def test_a_short_state_is_not_whole(run, key):
    file = run / "checkpoint-5" / "trainer_state.json"
    state = json.loads(file.read_text())
    for value in (None, "5", [3]):
        file.write_text(json.dumps(state | {key: value}))
        assert "trainer_state.json" in checkpoints.fault(file.parent), value
    del state[key]
    file.write_text(json.dumps(state))
    assert f"it has no {key}" in checkpoints.fault(file.parent)


def test_only_numbered_folders_are_checkpoints(run):
    (run / "checkpoint-5").rename(run / "checkpoint-5.bak")
    (run / "checkpoint-9").write_text("")
    (run / "checkpoint-x").mkdir()
    assert [step for step, _ in checkpoints.numbered(run)] == [3]
    assert taken(run) == str(run / "checkpoint-3")


def test_a_checkpoint_without_its_optimizer_says_why_and_can_be_exported(run, capsys):
    for step in (3, 5):
        for name in FILES[3:]:
            (run / f"checkpoint-{step}" / name).unlink()
    assert taken(run) is None
    said = capsys.readouterr().out
    assert "optimizer.pt is missing; grpo.save_only_model saves none" in said
    assert "no whole checkpoint" in said and "starting from the model" in said
    assert run_folder.find_adapter(run) == run / "checkpoint-5"


def test_resuming_and_save_only_model_exclude_each_other(tmp_path):
    for key in ("grpo.resume_from_checkpoint=auto", "train.requeue=true"):
        with pytest.raises(ConfigError, match="grpo.save_only_model: .* optimizer"):
            load_config(None, ["grpo.save_only_model=true", key])


def test_a_checkpoint_of_more_processes_is_told(run, capsys):
    own = run / "checkpoint-5" / "rng_state.pth"
    for process in range(2):
        shutil.copy(own, own.with_name(f"rng_state_{process}.pth"))
    own.unlink()
    assert taken(run) == str(run / "checkpoint-5")
    assert "was written by 2 processes, and now there are 1" in capsys.readouterr().err


def test_everyone_whom_the_umask_allows_may_read_what_was_saved(whole):
    umask = os.umask(0)
    os.umask(umask)
    for name in FILES:
        assert stat.S_IMODE((whole / name).stat().st_mode) == 0o666 & ~umask, name


def test_a_save_that_was_cut_off_leaves_no_checkpoint(run):
    written = checkpoints.begin_saving(run) / "checkpoint-7"
    written.mkdir()
    (written / "adapter_model.safetensors").write_bytes(b"half")
    assert [step for step, _ in checkpoints.numbered(run)] == [5, 3]
    checkpoints.begin_saving(run)  # the next save starts with an empty folder
    assert not written.exists()


def test_what_lies_after_the_checkpoint_is_put_aside(run, capsys):
    for step in (3, 5):
        (run / "completions").mkdir(exist_ok=True)
        (run / "completions" / f"completions_{step:05d}.parquet").write_text("")
    job = config(run, run / "checkpoint-3")
    RunFolder(job).begin(job, str(run / "checkpoint-3"))
    (aside,) = run.glob("previous-*")
    assert [path.name for path in aside.iterdir()] == ["checkpoint-5"]
    assert [path.name for path in run.glob("completions/*")] == ["completions_00003.parquet"]
    assert taken(run) == str(run / "checkpoint-3"), "not one of a branch that was left"


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    final = tmp_path / "final_model"
    for content in ("one", "two"):
        with checkpoints.written_whole(final) as beside:
            (beside / "weights").write_text(content)
        assert (final / "weights").read_text() == content
    with pytest.raises(OSError), checkpoints.written_whole(final) as beside:
        (beside / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    assert (final / "weights").read_text() == "two" and list(tmp_path.iterdir()) == [final]


@given(
    steps=st.sets(st.integers(1, 99)),
    last=st.integers(0, 9),
    best=st.integers(0, 9),
    scores=st.dictionaries(st.integers(1, 99), st.floats(allow_nan=False)),
)
def test_the_last_and_the_best_stay(steps, last, best, scores):
    leaving = checkpoints.superfluous(steps, last, best, scores)
    staying = steps - leaving
    newest = sorted(steps)[-max(last, 1) :]
    assert staying >= set(newest) and len(staying) <= len(newest) + best
    scored = steps & scores.keys()
    by_score = staying & scored
    if best and scored:
        assert max(scores[step] for step in by_score) == max(scores[step] for step in scored)
    assert len(by_score) >= min(best, len(scored))


def test_the_score_of_a_checkpoint_is_that_of_the_steps_that_lead_to_it():
    entries = [{"step": step, "reward": float(step)} for step in range(1, 7)]
    entries += [{"step": 4, "eval_reward": 9.0}, {"step": 5, "reward": None}]
    assert checkpoints.scores_of([2, 4, 6], entries, "reward", 2) == {2: 1.5, 4: 3.5, 6: 5.5}
    assert checkpoints.scores_of([2, 4, 6], entries, "eval_reward", 2) == {4: 9.0}


def test_deleting_leaves_no_half_checkpoint(run):
    checkpoints.delete(run, [3])
    assert [path.name for path in run.iterdir()] == ["checkpoint-5"]


def test_keeping_the_best_needs_a_limit():
    with pytest.raises(ConfigError, match="train.keep_best: .* grpo.save_total_limit"):
        load_config(None, ["train.keep_best=2"])
    load_config(None, ["train.keep_best=2", "grpo.save_total_limit=3"])


# ---- The file exit_code


def test_the_first_word_of_a_job_about_its_end_counts(tmp_path):
    folder = RunFolder(config(tmp_path / "run"))
    folder.mark_exit_code(2)
    assert not (tmp_path / "run").exists(), "a mistake in the config leaves nothing behind"
    (tmp_path / "run").mkdir()
    folder.mark_exit_code(3)
    folder.mark_exit_code(143)  # of a process that the launcher ended then
    assert folder.exit_code.read_text() == "3\n"
    folder.forget_exit_code()
    assert not folder.exit_code.exists()


def test_a_run_that_finds_another_in_its_folder_does_not_speak_for_it(tmp_path):
    first, second = RunFolder(config(tmp_path)), RunFolder(config(tmp_path))
    with first:
        with pytest.raises(run_folder.OutputError), second:
            pass
        second.mark_exit_code(4)
    assert not first.exit_code.exists()
