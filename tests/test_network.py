"""network.py and fetch.py: what needs the network, and what is downloaded before a job."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import check
import evaluate
import generate
import reward_functions
import train
from job import fetch, network
from job.config import load_config
from job.errors import ConfigError, OutputError

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "consolidated.safetensors": b"the same again",
    "original/model.safetensors": b"and again",
    "README.md": b"words",
    "LICENSE.txt": b"terms",
}


class FakeHub(BaseHTTPRequestHandler):
    """A Hub with the one repository `me/model`."""

    def do_GET(self):
        if self.path.startswith("/api/models/me/model/tree/"):
            files = [{"type": "file", "path": name, "size": len(text), "oid": name}
                     for name, text in FILES.items()]  # fmt: skip
            self.answer(200, json.dumps(files).encode())
            return
        if self.path.startswith("/api/models/me/model"):
            siblings = [{"rfilename": name, "size": len(text)} for name, text in FILES.items()]
            body = {"id": "me/model", "sha": COMMIT, "private": False, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())
            return
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        self.server.asked.append(name)
        self.answer(200 if name in FILES else 404, FILES.get(name, b""), name)

    do_HEAD = do_GET

    def answer(self, status, body, name="a"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{name.replace("/", "-")}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A machine with an empty cache and the fake Hub; the libraries read both when imported."""
    from huggingface_hub import constants

    running = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    running.asked = []
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    yield running
    running.shutdown()
    running.server_close()


def config_of(*overrides):
    return load_config(None, ["model.backend=transformers", "model.quantization=none", *overrides])


def with_hub_data():
    """A config whose data set is on the Hub, made without asking the Hub for it."""
    data = ["task.type=jsonl", "task.data=configs/arithmetic.jsonl"]
    config = config_of("model.name=tiny", *data)
    object.__setattr__(config.tasks[0], "data", "me/data")
    return config


def test_the_model_is_downloaded_once_without_other_formats_of_it(online, tmp_path, capsys):
    config = config_of("model.name=me/model")
    fetch.fetch([config])
    (snapshot,) = (tmp_path / "hf/hub").glob("models--me--model/snapshots/*")
    wanted = {"config.json", "tokenizer_config.json", "model.safetensors", "LICENSE.txt"}
    assert {path.name for path in snapshot.rglob("*")} == wanted
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading me/model: 4 files, 0.0 MB, to" in captured.err

    online.asked.clear()
    fetch.fetch([config])
    assert online.asked == []
    assert "model: me/model is in the cache" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_found_before_the_download(online, monkeypatch):
    usage = fetch.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="set HF_HOME to a folder elsewhere"):
        fetch.fetch([config_of("model.name=me/model")])
    assert online.asked == []


def test_what_cannot_be_fetched_is_one_line(online, monkeypatch):
    with pytest.raises(ConfigError, match="model.name: me/other cannot be loaded"):
        fetch.fetch([config_of("model.name=me/other")])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="me/model is not in the cache .*HF_HUB_OFFLINE is set"):
        fetch.fetch([config_of("model.name=me/model")])


def test_only_data_that_is_not_here_is_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "mixed_rows", asked.append)
    fetch.fetch([config_of("model.name=tiny", "task.type=jsonl", "task.data=configs/*.jsonl")])
    assert not asked
    config = with_hub_data()
    fetch.fetch([config])
    assert asked == [config.tasks]


@pytest.mark.parametrize("command", [
    (train, ["--config", "configs/tiny.yaml"]),
    (check, ["--config", "configs/tiny.yaml"]),
    (generate, ["tiny"]),
    (evaluate, ["tiny"]),
])  # fmt: skip
def test_every_script_that_runs_what_a_model_wrote_can_be_fetched_for(command, capsys):
    module, words = command
    assert module.main(["--fetch", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("model: tiny is on this machine" in captured.err) == (module is not check)


# ---- What needs the network


def kinds(config):
    return [need.kind for need in network.training_needs(config) + network.reward_needs(config)]


def test_a_plain_job_needs_none(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")  # but the config does not name W&B
    assert kinds(load_config()) == []


@pytest.mark.parametrize("overrides, environment, wanted", [
    (["grpo.push_to_hub=true"], {}, ["hub"]),
    (["grpo.log_completions_hub_repo=me/data"], {}, ["hub"]),
    (["grpo.report_to=trackio", "grpo.trackio_space_id=me/space"], {}, ["hub"]),
    (["grpo.report_to=trackio"], {"TRACKIO_SPACE_ID": "me/space"}, ["hub"]),
    (["grpo.report_to=wandb"], {"WANDB_API_KEY": "x"}, ["wandb"]),
    (["grpo.report_to=wandb"], {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, []),
    (["grpo.report_to=mlflow"], {"MLFLOW_TRACKING_URI": "https://mlflow.example"}, ["mlflow"]),
    (["grpo.report_to=mlflow"], {"MLFLOW_TRACKING_URI": "sqlite:///x.db"}, []),
    (["grpo.report_to=[wandb,mlflow,tensorboard]"], {}, []),
])  # fmt: skip
def test_what_sends_something_needs_it(monkeypatch, overrides, environment, wanted):
    monkeypatch.setattr("job.rules.is_installed", lambda name: True)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/no such file")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kinds(load_config(None, overrides)) == wanted


def test_a_reward_function_says_that_it_needs_it(monkeypatch, capsys):
    def judge(completions, **kwargs):
        return [0.0 for _ in completions]

    monkeypatch.setattr(reward_functions, "judge", judge, raising=False)
    overrides = ["model.name=tiny", "task.rewards={correctness_check: 1, judge: 1}"]
    assert kinds(load_config(None, overrides)) == []
    judge.needs_network = True
    config = load_config(None, overrides)
    assert kinds(config) == ["judge"]
    fetch.fetch([config])
    assert capsys.readouterr().out == "judge\tthe reward function judge says needs_network\n"


# ---- HF_HUB_OFFLINE, which a model on this machine sets


def test_the_users_own_offline_and_an_upload_contradict_each_other(monkeypatch):
    config = load_config(None, ["grpo.push_to_hub=true"])
    with pytest.raises(ConfigError, match="push_to_hub uploads checkpoints, but HF_HUB_OFFLINE is"):
        network.prepare_hub(config)


def test_a_file_where_the_user_stands_is_no_data_of_the_hub(tmp_path, monkeypatch):
    assert network.hub_data(with_hub_data()) == ["me/data"]
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "data").write_text("")
    monkeypatch.setenv("START_FOLDER", str(tmp_path))
    assert network.hub_data(with_hub_data()) == []


def test_an_upload_keeps_the_client_online_and_asks_for_access_first(monkeypatch):
    for name in network.hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    asked = []
    monkeypatch.setattr(network.hub, "check_access", lambda *given: asked.append(given))
    keys = ["grpo.push_to_hub=true", "grpo.output_dir=runs/mine", "grpo.hub_private_repo=true"]
    config = load_config(None, ["model.name=tiny", *keys])
    network.prepare_hub(config)
    assert asked == [("mine", False, "grpo.push_to_hub")]
    from job.model import hub_is_off, stay_offline_if_complete

    stay_offline_if_complete(config.model)
    assert os.environ["HF_HUB_OFFLINE"] == "0" and not hub_is_off()


def test_data_of_the_hub_keep_the_client_online_beside_a_local_model(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    network.prepare_hub(with_hub_data())
    assert os.environ["HF_HUB_OFFLINE"] == "0"
