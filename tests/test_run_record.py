"""run_record.py and environment.py: what a run has left, whatever state it is in."""

import fcntl
import json

import pytest
from fake_run import metrics_of, write_run
from hypothesis import given
from hypothesis import strategies as st

from job.environment import begin_session, end_session, outcome, read_sessions
from job.errors import ConfigError
from job.report.run_record import curve_of, is_finite_number, read_line, read_run


def test_a_whole_run_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert run.name == "run" and run.state == "finished" and run.problems == []
    assert run.curve("reward") == (list(range(1, 21)), [float(step) for step in range(1, 21)])
    assert run.names("rewards/", "/mean") == ["function_works"]
    assert run.config["grpo.max_steps"] == 20 and run.last_step == 20
    assert run.config["grpo.hub_token"] == "(not shown)"
    assert run.training_s == 20 * 8.0 and run.gpus == 2


def test_the_time_of_steps_that_were_not_logged_counts(tmp_path):
    run = read_run(write_run(tmp_path / "run", steps=[5, 10]))
    assert run.training_s == 10 * 8.0


def test_a_file_of_a_run_that_is_cut_off_or_random_costs_its_own_content_alone(tmp_path):
    folder = write_run(tmp_path / "run", steps=[1, 2])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\x00garbage\n[1]\n{"step": "x"}\n{"step": 3, "loss": 0.')
    run = read_run(folder)
    assert [entry["step"] for entry in run.steps] == [1, 2]
    assert run.problems == ["metrics.jsonl: 4 of its lines cannot be read"]
    for name in ("config.yaml", "evaluation.json", "environment.json"):
        (folder / name).write_bytes(b"\x00\xff{[")
    run = read_run(folder)
    assert (run.config, run.evaluation, run.sessions) == ({}, {}, [])
    assert len(run.problems) == 3


def test_a_run_without_metrics_is_a_run(tmp_path):
    folder = write_run(tmp_path / "run", steps=[], rows=[])
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert run.last_step == 0 and run.training_s == 0
    assert run.problems == ["metrics.jsonl is missing: no step has been logged"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name):
        read_run(tmp_path / name)


def lines_of_json():
    """Lines as a broken program may write them: the right names with values of any kind."""
    names = st.sampled_from(["step", "loss", "watchdog", "diagnoses"])
    plain = st.none() | st.floats() | st.text() | st.integers()
    values = plain | st.lists(plain) | st.dictionaries(names, plain)
    return st.dictionaries(names, values).map(json.dumps)


@given(st.binary() | st.text() | lines_of_json())
def test_a_line_gives_finite_numbers_or_nothing(line):
    if isinstance(line, bytes):
        line = line.decode("utf-8", errors="replace")
    entry = read_line(line)
    if entry is not None:
        assert isinstance(entry.pop("step"), int)
        words, paragraphs = entry.pop("watchdog", []), entry.pop("diagnoses", {})
        assert all(isinstance(word, str) for word in [*words, *paragraphs.values()])
        assert all(is_finite_number(value) for value in entry.values())


def test_numbers_that_no_curve_can_show_are_left_out():
    line = '{"step": 1, "kl": NaN, "loss": 1e999, "a": null, "b": true, "c": [1], "reward": 2}'
    assert read_line(line) == {"step": 1, "reward": 2.0}
    assert read_line("[" * 100000) is None and read_line('{"step": -1}') is None
    assert read_line('{"step": 1, "x": 1%s}' % ("0" * 400)) == {"step": 1}


def test_evaluations_are_kept_apart_and_a_repeated_step_counts_once(tmp_path):
    folder = write_run(tmp_path / "run", steps=[1, 2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval_loss": 0.0, "eval_reward": 7.0}\n')
        file.write(json.dumps(metrics_of(2) | {"reward": 9.0}) + "\n")
    run = read_run(folder)
    assert curve_of(run.evals, "reward") == ([2], [7.0])
    assert run.curve("reward") == ([1, 2], [1.0, 9.0])


def test_the_words_of_the_watchdog_stand_at_their_step(tmp_path):
    folder = write_run(tmp_path / "run", steps=[])
    with (folder / "metrics.jsonl").open("a") as file:
        for step, more in (
            (1, {"watchdog": ["echo"]}),  # as older versions noted it, without its paragraph
            (2, {"watchdog": ["echo", "nan"], "diagnoses": {"nan": "step 2: the loss"}}),
            (3, {"watchdog": ["nan"]}),
        ):
            file.write(json.dumps(metrics_of(step) | more) + "\n")
    assert read_run(folder).diagnoses == [(1, "echo", ""), (2, "nan", "step 2: the loss")]


def test_a_run_is_running_while_it_holds_its_lock(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "environment.json").write_text('[{"began": "now"}]')
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).state == "running"
    assert read_run(folder).state.startswith("ended without a word")
    (folder / "final_model").mkdir()
    assert read_run(folder).state == "finished"


def test_each_start_of_a_run_has_an_entry(tmp_path):
    path = tmp_path / "environment.json"
    end_session(path, "finished")
    assert not path.exists()
    begin_session(path)
    end_session(path, "stopped by SIGTERM")
    begin_session(path)
    first, second = read_sessions(path)
    assert first["outcome"] == "stopped by SIGTERM" and "outcome" not in second
    assert set(first["versions"]) >= {"python", "torch", "trl"}
    assert first["hardware"]["cores"] >= 1
    assert [file.name for file in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        (0, None, "finished"),
        (7, None, "stopped by the watchdog, or its weights are not finite"),
        (143, None, "stopped by SIGTERM"),
        (75, None, "stopped, to be started again"),
        (None, SystemExit(143), "stopped by SIGTERM"),
        (None, ValueError("two\nlines"), "failed: ValueError: two lines"),
        (None, None, "ended with exit code None"),
    ],
)
def test_how_a_run_ended_in_words(code, error, expected):
    assert outcome(code, error) == expected
