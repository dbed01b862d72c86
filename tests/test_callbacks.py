"""callbacks.py: metrics.jsonl, the step line, the closing table."""

import json
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from job.callbacks import MetricsFile, Progress, step_line, summary
from job.metrics_file import two_ends

LOGS = {"loss": 0.5, "reward": 2.0, "reward_std": 1.0, "grades/correct": 0.25, "kl": float("nan")}


def state(step=0, process_zero=True):
    return SimpleNamespace(
        global_step=step, max_steps=9, is_world_process_zero=process_zero, log_history=[]
    )


def test_one_json_object_a_logged_step(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.on_train_begin(None, state(), None)
    metrics.on_log(None, state(1), None, logs=LOGS)
    metrics.on_log(None, state(1), None, logs={"train_runtime": 3.0, "train_loss": 0.5})
    metrics.on_log(None, state(2, process_zero=False), None, logs=LOGS)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, **LOGS, "kl": None}
    ]


def test_a_resumed_run_drops_the_steps_that_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 5, "cut of'
    )
    MetricsFile(path).on_train_begin(None, state(3), None)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    MetricsFile(path).on_train_begin(None, state(0), None)
    assert path.read_text() == ""


def test_a_step_whose_completions_no_function_judged_is_shown(capsys):
    progress = Progress()
    progress.on_train_begin(None, state(), None)
    progress.on_log(None, state(1), None, logs=LOGS | {"reward": None, "reward_std": None})
    progress.on_train_end(None, state(1), None)
    assert "reward -" in capsys.readouterr().out


def test_step_line_and_summary():
    line = step_line(3, 60, LOGS)
    assert "step  3/60" in line and "2.00 ± 1.00" in line and "25%" in line
    history = [
        {"loss": 0.0, "reward": float(step), "grades/correct": step / 100} for step in range(30)
    ]
    table = summary([*history, {"train_loss": 1.0}])
    assert "first 10 steps" in table and "last 10 steps" in table
    assert "4.50" in table and "24.50" in table
    assert "cheating" in table and "-" in table
    # No step counts twice
    assert "first 2 steps" in summary(history[:5]) and "3.50" in summary(history[:5])
    assert "first step" in summary(history[:2]) and "the only step" in summary(history[:1])
    assert "first 0 steps" in summary([])


@given(st.lists(st.integers(), max_size=30), st.integers(1, 12))
def test_no_step_is_in_both_ends(steps, most):
    ends = two_ends(steps, most)
    assert sum(map(len, ends)) <= len(steps) and len({len(end) for end in ends}) == 1
    assert len(ends[0]) == min(most, max(len(steps) // 2, len(steps) == 1))
    assert ends[0] == steps[: len(ends[0])] and ends[-1] == steps[len(steps) - len(ends[0]) :]


def test_progress_prints_one_line_a_step(capsys):
    progress = Progress()
    progress.on_train_begin(None, state(), None)
    progress.on_log(None, state(1), None, logs=LOGS)
    progress.on_step_end(None, state(1), None)
    progress.on_train_end(None, state(1), None)
    assert len(capsys.readouterr().out.splitlines()) == 1
