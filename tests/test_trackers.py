"""trackers.py: where trackers write, how a run is called there, what they are told."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from fake_run import completion, write_completions

from job import trackers
from job.callbacks import TrackerExtras
from job.config import load_config
from job.errors import ConfigError

ROOT = Path(__file__).parent.parent
PATIENCE_S = 1200
OTHERS = ["wandb", "trackio", "mlflow"]  # that requirements.txt does not pin


@pytest.fixture
def installed(monkeypatch):
    """Stands in for the trackers: {name: mock of the module}."""
    modules = {name: mock.MagicMock() for name in OTHERS}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("job.rules.is_installed", lambda name: True)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    return modules


def config_with(*names, **more):
    overrides = [f"grpo.{key}={value}" for key, value in more.items()]
    return load_config(None, [f"grpo.report_to=[{','.join(names)}]", *overrides])


def step(number, process_zero=True):
    return SimpleNamespace(global_step=number, is_world_process_zero=process_zero)


def test_every_tracker_writes_into_the_output_folder(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "no such file"))
    variables = trackers.variables(config_with(*OTHERS, "tensorboard"), tmp_path)
    named = {name: value for name, value in variables.items() if str(tmp_path) in value}
    assert {name.split("_")[0] for name in named} == {"WANDB", "TRACKIO", "MLFLOW"}
    assert variables["WANDB_MODE"] == "offline"
    assert trackers.variables(config_with("tensorboard"), tmp_path) == {}
    assert trackers.variables(load_config(None, ["grpo.report_to=none"]), tmp_path) == {}


def test_wandb_is_online_where_there_is_a_key(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not trackers.has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret")
    assert trackers.has_wandb_key()
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert "WANDB_MODE" not in trackers.variables(config_with("wandb"), tmp_path)


def test_what_the_user_has_set_stays_and_the_rest_is_taken_back(
    installed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_DIR", "/mine")
    monkeypatch.setenv("NETRC", str(tmp_path / "no such file"))
    before = dict(os.environ)
    with trackers.files_in(config_with("wandb", "trackio"), tmp_path):
        assert os.environ["WANDB_DIR"] == "/mine"
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio")
    assert dict(os.environ) == before
    assert "wandb sync" in capsys.readouterr().out


def test_a_run_is_named_after_its_tasks_and_folder(tmp_path):
    config = load_config(None, ["task.type=code"])
    assert trackers.names(config, tmp_path / "run") == {
        "run_name": "code-run",
        "project": "gpt-oss-grpo",
    }


def test_each_tracker_gets_the_config_without_secrets(installed, tmp_path):
    config = config_with("tensorboard", *OTHERS)
    config = dataclasses.replace(config, grpo=config.grpo | {"hub_token": "hf_secret"})
    writer = mock.MagicMock()
    others = [SimpleNamespace(), SimpleNamespace(tb_writer=writer)]
    extras = TrackerExtras(config, tmp_path, others)
    extras.on_train_begin(None, step(0, process_zero=False), None)
    assert not installed["wandb"].config.update.called
    extras.on_train_begin(None, step(0), None)
    for name in ("wandb", "trackio"):
        (sent,) = installed[name].config.update.call_args.args
        assert sent["job"]["task"]["type"] == "matmul"
        assert "hf_secret" not in str(sent)
    assert installed["mlflow"].log_dict.call_args.args[1] == "config.yaml"
    assert "type: matmul" in writer.add_text.call_args.args[1]
    assert "hf_secret" not in str(writer.add_text.call_args)


def test_mlflow_gets_the_completions_of_each_step_once(installed, tmp_path):
    extras = TrackerExtras(config_with("mlflow"), tmp_path, [])
    log_table = installed["mlflow"].log_table
    extras.on_step_begin(None, step(1), None)
    assert not log_table.called
    write_completions(tmp_path, 1, [completion(), completion(status="crash")])
    extras.on_step_begin(None, step(1, process_zero=False), None)
    assert not log_table.called
    extras.on_step_begin(None, step(1), None)
    extras.on_save(None, step(1), None)
    ((table, name),) = [call.args for call in log_table.call_args_list]
    assert list(table["status"]) == ["ok", "crash"] and "weights" not in table
    assert name == "completions/completions_00001.json"


def test_mlflows_files_lie_beside_its_database(installed, tmp_path, monkeypatch):
    config, mlflow = config_with("mlflow"), installed["mlflow"]
    mlflow.get_experiment_by_name.return_value = None
    monkeypatch.setenv("NETRC", str(tmp_path / "no such file"))
    with trackers.files_in(config, tmp_path):
        trackers.make_mlflow_experiment(config, tmp_path)
    place = mlflow.create_experiment.call_args.kwargs["artifact_location"]
    assert place == (tmp_path / "mlflow" / "artifacts").as_uri()
    # Where the user names another server, its files are left to it
    mlflow.reset_mock()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    with trackers.files_in(config, tmp_path):
        trackers.make_mlflow_experiment(config, tmp_path)
    trackers.make_mlflow_experiment(config_with("wandb"), tmp_path)
    assert not mlflow.create_experiment.called


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_reports_to_the_real_tracker_without_a_network(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    output = tmp_path / "run"
    overrides = [f"grpo.output_dir={output}", "grpo.max_steps=2", f"grpo.report_to={name}"]
    job = ["--config", "configs/tiny.yaml", "task.check=false", *overrides]
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("WANDB_", "TRACKIO_", "MLFLOW_"))
    }
    result = subprocess.run(
        [sys.executable, "train.py", *job],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stderr
    written = [path.name for path in (output / name).rglob("*") if path.is_file()]
    wanted = {"wandb": ".wandb", "trackio": ".db", "mlflow": "completions_00002.json"}
    assert any(file.endswith(wanted[name]) for file in written), written


@pytest.mark.parametrize("name, variable, value", [
    ("wandb", "WANDB_DIR", "/dev/null/x"),
    ("trackio", "TRACKIO_DIR", "/dev/null/x"),
    ("mlflow", "MLFLOW_TRACKING_URI", "/dev/null/x"),
    ("mlflow", "MLFLOW_TRACKING_URI", "file:///dev/null/x"),
    ("mlflow", "MLFLOW_TRACKING_URI", "sqlite:////dev/null/x.db"),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused(
    installed, monkeypatch, tmp_path, name, variable, value
):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/dev/null"))
    with (
        pytest.raises(ConfigError, match=f"{name} cannot write to /dev/null/x.*{variable} names"),
        trackers.files_in(config_with(name), tmp_path),
    ):
        pass
    with trackers.files_in(config_with("tensorboard"), tmp_path):
        pass


def test_a_place_that_can_be_written_and_a_server_are_not(installed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in ("https://mlflow.example", "databricks", "sqlite:///mlflow.db", "mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        with trackers.files_in(config_with("mlflow"), tmp_path):
            pass
