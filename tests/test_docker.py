"""The container itself, in a real engine, on the CPU.

These tests are skipped where there is no engine or no image.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKER = os.environ.get("DOCKER", "docker")
# A client without buildx builds with BuildKit only up to version 20
DOCKER_WITH_BUILDKIT = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else DOCKER


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
    name = re.sub(r"[^a-z0-9-]+", "-", f"{request.node.name}-{os.getpid()}")
    yield name
    docker("rm", "--force", name)


def train_command(as_user: list[str], folder: Path, max_steps: int) -> list[str]:
    arguments = ["--cpu", "--config", "configs/tiny.yaml", f"grpo.max_steps={max_steps}"]
    return [*as_user, "bash", f"{folder}/repo/train.sh", *arguments]


def has_a_step(metrics: Path) -> bool:
    """Whether a step is done; the first line may be an evaluation before it."""
    return metrics.exists() and '"loss"' in metrics.read_text()


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


@pytest.mark.parametrize("signal_name, status", [("stop", 143), ("HUP", 129)])
def test_a_stopped_container_saves_a_checkpoint(someone, container: str, signal_name, status):
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
        while not has_a_step(metrics) and training.poll() is None:
            time.sleep(0.5)
        if signal_name == "stop":
            # Docker kills it after the --stop-timeout of train.sh, and the status is 137 then
            docker("stop", container)
        else:
            training.send_signal(signal.SIGHUP)  # a lost terminal tells the client
        ended = training.wait()
    assert ended == status, (folder / "log").read_text()
    assert list(metrics.parent.glob("checkpoint-*/trainer_state.json"))


@pytest.mark.parametrize("network", [False, True])
def test_nobody_sees_a_secret_and_only_a_job_with_the_network_has_it(
    someone, container: str, network
):
    folder, _, as_user = someone
    secrets = {"HF_TOKEN": "hf_s3cret", "WANDB_API_KEY": "hf_s3cret", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | secrets | {"DOCKER_ARGS": f"--name {container}"}
    training = subprocess.Popen(
        train_command(as_user, folder, 1000) + ["--network"] * network,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = folder / "repo/gpt-oss-grpo/tiny/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and training.poll() is None:
        time.sleep(0.5)
    inspected = docker("inspect", container).stdout
    processes = docker("top", container, "-eo", "pid,args").stdout
    inside = docker("exec", container, "sh", "-c", "cat /proc/*/environ").stdout
    networks = docker("exec", container, "ls", "/sys/class/net").stdout
    docker("stop", container)
    said = training.communicate()[0]
    (settings,) = json.loads(inspected)
    host = settings["HostConfig"]
    assert (host["NetworkMode"] == "none") != network
    assert host["ReadonlyRootfs"] and host["PidsLimit"] == 8192
    assert host["Memory"] > 10**9 and host["CapDrop"] == ["ALL"]
    assert (networks.split() == ["lo"]) != network and "HF_HUB_OFFLINE=1" in inside
    assert ("s3cret" in inside) == network
    written = "".join(
        path.read_bytes().decode("latin-1")
        for path in (folder / "repo/gpt-oss-grpo").rglob("*")
        if path.is_file()
    )
    assert metrics.exists() and "train.py" in processes
    for text in (inspected, processes, said, written):
        assert "s3cret" not in text


def test_out_of_memory_is_told_with_the_limit(someone):
    folder, _, as_user = someone
    done = subprocess.run(
        train_command(as_user, folder, 2),
        env=os.environ | {"MEMORY": "150m", "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 137, done.stdout + done.stderr
    assert "out of main memory: the container has a limit of 157 MB" in done.stderr


def test_a_read_only_root_and_two_mounts_are_enough(someone, container: str):
    folder, uid, _ = someone
    for name in ("out", "cache"):
        (folder / name).mkdir()
        os.chown(folder / name, uid, uid)
    words = "--config configs/tiny.yaml grpo.max_steps=1 evaluate.before=false evaluate.after=false"
    mounts = []
    for name, target in (("out", "/app/gpt-oss-grpo"), ("cache", "/cache")):
        mounts += ["--mount", f'type=bind,"source={folder / name}",target={target}']
    done = docker(
        *f"run --rm --init --name {container} --network none --user {uid}:{uid}".split(),
        *["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
        *mounts,
        *f"--env CUDA_VISIBLE_DEVICES= {IMAGE} train.py {words}".split(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out/tiny/final_model").is_dir()


def test_nothing_of_ones_own_goes_into_the_image(someone, tmp_path: Path):
    folder, _, _ = someone
    repo = folder / "repo"
    shutil.copy(ROOT / ".dockerignore", repo)
    for name in ("hf_token.txt", "data/rows.jsonl", "configs/token", "tasks/my/data.csv", ".env"):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("mine")
    subprocess.run(
        [
            DOCKER_WITH_BUILDKIT,
            "build",
            "--output",
            str(tmp_path / "out"),
            "--file",
            "-",
            str(repo),
        ],
        input="FROM scratch\nCOPY . /\n",
        text=True,
        check=True,
        capture_output=True,
        env=os.environ | {"DOCKER_BUILDKIT": "1"},
    )
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {
        name for name in found if (tmp_path / "out" / name).read_text("latin-1") == "mine"
    } == set()
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "job", "sandbox", "tasks", "configs", "tiny_model", "*.lock"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    ).stdout.split("\n")
    outside = ("tests/", "benchmarks/", "cluster/", "docs/")
    needed = {
        name
        for name in filter(None, tracked)
        if not name.startswith(outside)
        and not name.endswith(".md")
        and not (name.startswith("tiny_model") and name.endswith(".py"))
    }
    assert needed - found == set()


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
