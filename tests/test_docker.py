"""The container itself, in a real engine, on the CPU.

These tests are skipped where there is no engine or no image.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKER = os.environ.get("DOCKER", "docker")


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DOCKER, *arguments], text=True, capture_output=True)


def image_or_reason() -> tuple[str, str]:
    if not shutil.which(DOCKER):
        return "", "no Docker client"
    if docker("version").returncode:
        return "", "no Docker engine"
    for image in ("gpt-oss-grpo:cpu", "gpt-oss-grpo"):
        if docker("image", "inspect", image).returncode == 0:
            return image, ""
    return "", "no image: bash build.sh --cpu"


IMAGE, REASON = image_or_reason()
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.skipif(not IMAGE, reason=REASON)]


@pytest.fixture
def someone() -> Iterator[tuple[Path, int, list[str]]]:
    """A folder with a copy of the repository, the uid that owns it, and what runs a command as that
    user."""
    uid, as_user = os.getuid(), []
    # Not tmp_path, which only its maker can enter
    folder = Path(tempfile.mkdtemp(prefix="a user, "))
    left_behind = shutil.ignore_patterns(".*", "__pycache__", "gpt-oss-grpo")
    shutil.copytree(ROOT, folder / "repo", ignore=left_behind)
    if uid == 0:
        uid = 2000
        engine_group = Path("/var/run/docker.sock").stat().st_gid
        as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={engine_group}"]
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, uid, uid)
    yield folder, uid, [*as_user, "env", f"HOME={folder}"]
    shutil.rmtree(folder)


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"{request.node.name.replace('_', '-')}-{os.getpid()}"
    yield name
    docker("rm", "--force", name)


def train_command(as_user: list[str], folder: Path, max_steps: int) -> list[str]:
    arguments = ["--cpu", "--config", "configs/tiny.yaml", f"grpo.max_steps={max_steps}"]
    return [*as_user, "bash", f"{folder}/repo/train.sh", *arguments]


def test_an_ordinary_user_trains_and_owns_the_outputs(someone):
    folder, uid, as_user = someone
    done = subprocess.run(train_command(as_user, folder, 2), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tiny = folder / "repo/gpt-oss-grpo/tiny"
    assert (
        len((tiny / "metrics.jsonl").read_text().splitlines()) >= 2
        and (tiny / "final_model").is_dir()
    )
    assert {path.stat().st_uid for path in folder.rglob("*")} == {uid}


def test_docker_stop_saves_a_checkpoint(someone, container: str):
    folder, _, as_user = someone
    environment = os.environ | {"DOCKER_ARGS": f"--name {container}"}
    with (folder / "log").open("w") as log:
        training = subprocess.Popen(
            train_command(as_user, folder, 1000),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        metrics = folder / "repo/gpt-oss-grpo/tiny/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()) and training.poll() is None:
            time.sleep(0.5)
        # Docker kills it after the --stop-timeout of train.sh, and the status is 137 then
        docker("stop", container)
        status = training.wait()
    assert status == 143, (folder / "log").read_text()
    assert list(metrics.parent.glob("checkpoint-*/trainer_state.json"))


def test_a_locked_down_container_of_any_uid_without_a_home(container: str):
    words = "--config configs/tiny.yaml grpo.max_steps=1 grpo.output_dir=gpt-oss-grpo/once"
    done = docker(
        *f"run --rm --init --name {container} --network none --user 2000:2000 --read-only".split(),
        *[
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--pids-limit",
            "512",
            "--tmpfs",
            "/tmp",
        ],
        *[
            "--tmpfs",
            "/cache:mode=1777",
            "--tmpfs",
            "/app/gpt-oss-grpo:mode=1777",
            "--env",
            "CUDA_VISIBLE_DEVICES=",
        ],
        *f"--entrypoint env {IMAGE} -u HOME python train.py {words}".split(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_image_is():
    (image,) = docker("image", "inspect", IMAGE, "--format", "{{.Config.User}}").stdout.split()
    assert image.partition(":")[0].isdigit() and not image.startswith("0")
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE).stdout
    assert "://" not in history  # no index, no mirror, no proxy, hence none of their passwords
