"""train.sh and build.sh, with stand-ins for docker, nvidia-smi and Python: nothing is installed or
pulled."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 600  # what the scripts do takes a second; a busy machine may need much more
TOOLS = (
    "bash cat mkdir mktemp rm stat dirname basename id grep cut sha256sum flock touch sleep "
    "tar cp git"
)

# Logs its arguments, one a line, a blank line after each call. FAKE lists what is wrong with this
# machine.
DOCKER = r"""#!/usr/bin/env bash
case "$*" in *--entrypoint\ true* | "buildx version") probe=1 ;; *) probe= ;; esac
[[ -n $probe ]] || printf '%s\n' "$@" "" >>"$LOG"
case $1 in
    version)
        [[ $FAKE != *no-engine* ]] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; }
        [[ $FAKE != *new-client* ]] || { echo 28.2.2; exit; }
        echo 20.10.24 ;;
    buildx) [[ $FAKE == *buildx* ]] ;; # `buildx version` asks whether there is one
    image)
        case "$2 $3" in
            "inspect gpt-oss-grpo:cpu") [[ $FAKE == *cpu-image* ]] ;;
            inspect*) [[ $FAKE != *no-image* ]] ;;
        esac ;;
    info) [[ $FAKE != *rootless* ]] || echo "[name=seccomp name=rootless]" ;;
    import) cat >/dev/null ;;
    build)
        for word; do
            case $word in id=pip,src=*) cat "${word#id=pip,src=}" >"$LOG.pip.conf" ;; esac
        done ;;
    run)
        if [[ -n $probe ]]; then
            case $FAKE in
                *no-runtime*) echo 'could not select device driver "" with capabilities: [[gpu]]' ;;
                *no-driver*) echo 'nvidia-container-cli: libnvidia-ml.so.1: not found' ;;
                *odd-failure*) echo 'no space left on device' ;;
                *) exit 0 ;;
            esac >&2
            exit 125
        fi
        echo "pid $$"
        [[ $FAKE != *exit-3* ]] || exit 3 ;;
esac
"""

NVIDIA_SMI = r"""#!/usr/bin/env bash
case $1 in -L) echo "GPU 0: NVIDIA H200" ;; *) printf '%s\n' "$DRIVER" "$DRIVER" ;; esac
"""

# Tells its age, makes a .venv that holds itself, logs what pip is to install, and echoes how a
# script is run.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
    "-c import sys"*) [[ $FAKE != *old-python* ]] ;;
    "-c import ensurepip"*) [[ $FAKE != *no-venv* ]] ;;
    "-c import pip") ;;
    -V) echo "Python 3.12.0" ;;
    "-m venv --clear .venv")
        echo venv >>"$LOG"
        rm -rf .venv
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python ;;
    "-m pip freeze") [[ $FAKE != *cpu-torch* ]] || echo "torch==2.13.0+cpu" ;;
    "-m pip uninstall"*) echo "$*" >>"$LOG" ;;
    "-m pip install"*)
        echo "$*" >>"$LOG"
        case $FAKE in
            *pip-fails*) exit 1 ;;
            *pip-hangs*) exec sleep 600 ;;
            *pip-waits*) until [[ -e $LOG.go ]]; do sleep 0.05; done ;;
        esac ;;
    *) echo "ran $* in $PWD cuda=${CUDA_VISIBLE_DEVICES-unset}" ;;
esac
"""


class Machine:
    """A checkout and a home with spaces in their paths; a PATH with nothing but stand-ins and basic
    tools."""

    def __init__(self, folder: Path):
        self.repo, self.bin, self.home = folder / "the repo", folder / "bin", folder / "a home"
        for directory in (self.repo / "configs", self.bin, self.home):
            directory.mkdir(parents=True)
        for pattern in ("*.sh", "requirements*.txt"):
            for file in ROOT.glob(pattern):
                shutil.copy(file, self.repo)
        for name in ("train.py", "check.py", "config.yaml", "configs/tiny.yaml"):
            (self.repo / name).touch()
        for tool in TOOLS.split():
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.add("docker", DOCKER)
        self.add("python3", PYTHON)
        self.log = folder / "log"
        self.log.touch()
        self.env = {"PATH": str(self.bin), "HOME": str(self.home), "LOG": str(self.log)}
        self.env |= {"FAKE": "", "DRIVER": "580.65.06", "MIN_FREE_GB": "0"}

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *command: str, cwd: Path = Path("/"), **env: str) -> subprocess.Popen[str]:
        script, *arguments = command
        return subprocess.Popen(
            ["bash", str(self.repo / script), *arguments],
            cwd=cwd,
            env=self.env | env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, *command: str, cwd: Path = Path("/"), **env: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, cwd=cwd, **env)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def calls(self) -> list[list[str]]:
        return [call.split("\n") for call in self.log.read_text().split("\n\n") if call]

    def docker_call(self, verb: str, *command: str, **env: str) -> list[str]:
        """The arguments of the one `docker VERB` that a successful command comes to."""
        done = self.run(*command, **env)
        assert done.returncode == 0, done.stderr
        (call,) = [call for call in self.calls() if call[0] == verb]
        return call

    def pip_calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "pip install" in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def options(call: list[str], name: str) -> list[str]:
    return [value for option, value in zip(call, call[1:], strict=False) if option == name]


def bind(source: object, target: object, mode: str = "") -> str:
    return f'type=bind,"source={source}","target={target}"{mode}'


@pytest.mark.parametrize(
    ("data", "mounted"), [("mine/a.csv", "mine/a.csv"), ("mine/*.csv", "mine")]
)
def test_data_is_sought_where_the_user_stands(machine: Machine, tmp_path: Path, data, mounted):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.csv").touch()
    done = machine.run("train.sh", "--cpu", f"task.data={data}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = [call for call in machine.calls() if call[0] == "run" and "train.py" in call]
    assert f"task.data={tmp_path / data}" in call
    place = tmp_path / mounted
    assert bind(place, place, ",readonly") in options(call, "--mount")
    # What is not here is left as it is: it may be in the repository, or on the Hub
    machine.log.write_text("")
    machine.run("train.sh", "--cpu", "task.data=openai/gsm8k", cwd=tmp_path)
    assert "task.data=openai/gsm8k" in machine.calls()[-1]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train.sh", "build.sh"])
def test_help_names_every_setting_that_the_script_reads(machine: Machine, script: str):
    done = machine.run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    settings = set(re.findall(r"\$\{([A-Z_]+):-", (ROOT / script).read_text())) - {
        "HOME",
        "XDG_CACHE_HOME",
    }
    assert {name for name in settings if name not in done.stdout} == set()


REFUSALS = {
    "no engine": ({"FAKE": "no-engine"}, 2, "no Docker engine answers: Cannot connect"),
    "no image": (
        {"FAKE": "no-image"},
        2,
        "there is no image gpt-oss-grpo.\ntrain.sh: Build it: bash build.sh",
    ),
    "no client": ({"DOCKER": "podmann"}, 2, "there is no Docker client (podmann)"),
    "no runtime": ({"FAKE": "no-runtime"}, 2, "Docker has no NVIDIA runtime"),
    "no driver": (
        {"FAKE": "no-driver"},
        2,
        "no usable driver or GPU (GPUS=all): nvidia-container-cli",
    ),
    "odd failure": (
        {"FAKE": "odd-failure"},
        2,
        "a container on the GPU did not start: no space left",
    ),
    "old driver": (
        {"DRIVER": "550.54.15"},
        2,
        "driver here is 550.54.15, and torch for CUDA 13 needs 580",
    ),
    "output": ({"OUTPUT_DIR": "/dev/null/out"}, 4, "cannot write to the folder /dev/null/out.\n"),
    "cache": ({"CACHE_DIR": "/dev/null/cache"}, 4, "cannot write to the folder /dev/null/cache.\n"),
    "hub cache": ({"HF_HOME": "/dev/null/hub"}, 4, "or use HF_HOME=/path"),
    "disk": ({"MIN_FREE_GB": "99999999"}, 4, "and this needs about 99999999 GB"),
    "token": (
        {"HF_TOKEN_PATH": "/dev/null/token"},
        2,
        "cannot read the file that HF_TOKEN_PATH names",
    ),
}


@pytest.mark.parametrize("env, status, text", REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_is_missing_and_how_else_it_can_be_tried(
    machine: Machine, env, status, text
):
    machine.add("nvidia-smi", NVIDIA_SMI)
    done = machine.run("train.sh", **env)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr and "bash train.sh --smoke" in done.stderr
    assert all(call[0] != "run" for call in machine.calls())


def test_no_docker_at_all(machine: Machine):
    (machine.bin / "docker").unlink()
    for script in ("train.sh", "build.sh"):
        done = machine.run(script)
        assert done.returncode == 2 and "there is no Docker client (docker)" in done.stderr
        assert "bash train.sh --smoke" in done.stderr


USAGE = {
    "unknown option": (["--smok"], "there is no option --smok"),
    "two modes": (["--smoke", "--cpu"], "--smoke and --cpu exclude each other"),
    "config without a name": (["--config"], "--config needs a file name"),
    "no such config": (
        ["--config", "nowhere.yaml"],
        "there is no config file nowhere.yaml (sought in /",
    ),
    "override without =": (["grpo.max_steps"], "'grpo.max_steps' is neither"),
    "no such script": (["chekc.py"], "there is no script chekc.py"),
    "dry run of another script": (["--dry-run", "check.py"], "--dry-run goes with train.py only"),
    "dev without --setup": (["dev"], "'dev' goes with --setup only"),
}


@pytest.mark.parametrize("arguments, text", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_asks_nobody(machine: Machine, arguments, text):
    done = machine.run("train.sh", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert text in done.stderr and not machine.calls()


# --- the container --------------------------------------------------------------------------------


def test_the_container_gets_the_arguments_as_they_were_written(machine: Machine):
    words = ["grpo.max_steps=1", "task.prompt=two  words; $HOME `id` \"'", "a=*"]
    call = machine.docker_call("run", "train.sh", *words)
    assert call[call.index("gpt-oss-grpo") :] == ["gpt-oss-grpo", "train.py", *words]
    assert {"--rm", "--init"} < set(call) and "--tty" not in call
    assert options(call, "--gpus") == ["all"]
    assert options(call, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    cache = machine.home / ".cache"
    assert options(call, "--mount") == [
        bind(machine.repo, "/app", ",readonly"),
        bind(machine.repo / "gpt-oss-grpo", "/app/gpt-oss-grpo"),
        bind(cache / "gpt-oss-grpo", "/cache"),
        bind(cache / "huggingface", "/cache/huggingface"),
    ]
    assert (
        cache / "gpt-oss-grpo" / "huggingface"
    ).is_dir()  # else Docker makes the mount point, as root


def test_a_dry_run_is_handed_to_the_job(machine: Machine):
    call = machine.docker_call("run", "train.sh", "grpo.max_steps=1", "--dry-run")
    assert call[call.index("gpt-oss-grpo") :] == [
        "gpt-oss-grpo",
        "train.py",
        "--dry-run",
        "grpo.max_steps=1",
    ]


def test_another_script_gets_everything_behind_its_name(machine: Machine):
    call = machine.docker_call(
        "run", "train.sh", "--cpu", "check.py", "grade", "--help", "rows.jsonl"
    )
    assert call[call.index("check.py") :] == ["check.py", "grade", "--help", "rows.jsonl"]


def test_cpu_container(machine: Machine):
    call = machine.docker_call("run", "train.sh", "--cpu", FAKE="cpu-image")
    assert not options(call, "--gpus") and "CUDA_VISIBLE_DEVICES=" in options(call, "--env")
    assert "gpt-oss-grpo:cpu" in call


def test_settings_of_the_container(machine: Machine, tmp_path: Path):
    places = {
        name: str(tmp_path / "far, away" / name) for name in ("OUTPUT_DIR", "CACHE_DIR", "HF_HOME")
    }
    env = {"GPUS": "0,1", "IMAGE": "mine:1", "DOCKER_ARGS": "--network none", "FAKE": "rootless"}
    call = machine.docker_call("run", "train.sh", **places, **env)
    assert options(call, "--gpus") == ['"device=0,1"']
    assert options(call, "--network") == ["none"] and "mine:1" in call
    assert options(call, "--user") == ["0:0"]
    assert set(options(call, "--mount")) > {
        bind(places["OUTPUT_DIR"], "/app/gpt-oss-grpo"),
        bind(places["CACHE_DIR"], "/cache"),
        bind(places["HF_HOME"], "/cache/huggingface"),
    }


def test_config_files_and_paths_reach_the_container(machine: Machine, tmp_path: Path):
    outside, model, out = tmp_path / "my config.yaml", tmp_path / "a model", tmp_path / "out"
    outside.touch()
    model.mkdir()
    words = [
        "--config",
        "my config.yaml",
        f"model.name={model}",
        f"again={model}",
        "b=/no/such/path",
    ]
    call = machine.docker_call("run", "train.sh", *words, f"grpo.output_dir={out}", cwd=tmp_path)
    assert options(call, "--mount")[4:] == [
        bind(out, out),
        bind(outside, outside, ",readonly"),
        bind(model, model, ",readonly"),
    ]
    assert options(call, "--config") == [str(outside)] and out.is_dir()


@pytest.mark.parametrize(
    "cwd, name", [("/", "configs/tiny.yaml"), ("the repo/configs", "tiny.yaml")]
)
def test_a_config_of_the_repository_is_named_from_its_root(
    machine: Machine, tmp_path: Path, cwd, name
):
    call = machine.docker_call("run", "train.sh", f"--config={name}", cwd=tmp_path / cwd)
    assert options(call, "--config") == ["configs/tiny.yaml"] and len(options(call, "--mount")) == 4


def test_outputs_that_the_container_could_not_write_are_refused(machine: Machine):
    done = machine.run("train.sh", "--cpu", "grpo.output_dir=runs/1")
    assert done.returncode == 2 and "absolute path or one below gpt-oss-grpo/" in done.stderr


def test_secrets_go_by_name_and_are_never_shown(machine: Machine, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("hf_secret")
    secrets = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "hf_secret", "HF_TOKEN_PATH": str(token)}
    done = machine.run("train.sh", **secrets, HF_HUB_OFFLINE="1", WANDB_DIR="/x", MY_KEY="1")
    (call,) = [call for call in machine.calls() if call[0] == "run"]
    names = {"HF_TOKEN", "WANDB_API_KEY", "HF_HUB_OFFLINE", "HF_TOKEN_PATH=/run/hf_token"}
    names.add("START_COMMAND=bash train.sh")
    assert set(options(call, "--env")) == names
    assert bind(token, "/run/hf_token", ",readonly") in call
    assert "hf_secret" not in done.stdout + done.stderr + machine.log.read_text()


def test_docker_takes_the_place_of_the_script_and_its_exit_status(machine: Machine):
    process = machine.start("train.sh", FAKE="exit-3")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == (f"pid {process.pid}\n", 3)


# --- without Docker -------------------------------------------------------------------------------


def test_smoke_trains_the_tiny_model_in_a_fresh_environment(machine: Machine):
    done = machine.run("train.sh", "--smoke", "grpo.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"ran train.py --config configs/tiny.yaml grpo.max_steps=1 in {machine.repo} cuda="
    )
    assert machine.pip_calls() == ["-m pip install --disable-pip-version-check -r requirements.txt"]

    done = machine.run("train.sh", "--smoke", "--config", "config.yaml", cwd=machine.home)
    merged = "--config configs/tiny.yaml --config config.yaml"
    assert done.stdout == f"ran train.py {merged} in {machine.repo} cuda=\n"
    assert len(machine.pip_calls()) == 1
    two = ["--config", "config.yaml", "--config=configs/tiny.yaml"]
    done = machine.run("train.sh", "--smoke", *two, cwd=machine.home)
    assert (
        done.stdout == f"ran train.py {merged} --config configs/tiny.yaml in {machine.repo} cuda=\n"
    )
    done = machine.run("train.sh", "--smoke", "check.py", "x", cwd=machine.home)
    # Its files are the user's
    assert done.stdout == f"ran {machine.repo}/check.py x in {machine.home} cuda=\n"


def test_local_uses_the_gpu_set_where_there_is_a_gpu(machine: Machine):
    assert "cuda=unset" in machine.run("train.sh", "--local").stdout
    machine.add("nvidia-smi", NVIDIA_SMI)
    assert machine.run("train.sh", "--local", DRIVER="570.1").returncode == 2
    assert "cuda=unset" in machine.run("train.sh", "--local", FAKE="cpu-torch").stdout
    assert machine.log.read_text().splitlines()[-2:] == [
        "-m pip uninstall --yes torch",
        "-m pip install --disable-pip-version-check --no-deps -r requirements-gpu.txt",
    ]


@pytest.mark.parametrize("env, status, text", [
    (
        {"FAKE": "old-python", "PYTHON": "python3"}, 2,
        "found no Python 3.11 or newer (tried: python3)",
    ),
    ({"FAKE": "no-venv"}, 2, "sudo apt-get install python3-venv"),
    ({"FAKE": "pip-fails"}, 1, "the installation of requirements.txt failed"),
    ({"MIN_FREE_GB": "99999999"}, 4, "this needs about 99999999 GB"),
])  # fmt: skip
def test_an_installation_that_cannot_be(machine: Machine, env, status, text):
    for command in (["--setup"], ["--smoke"]):
        done = machine.run("train.sh", *command, **env)
        assert (
            done.returncode == status and text in done.stderr and "ran train.py" not in done.stdout
        )


def test_smoke_checks_the_output_folder_before_it_installs(machine: Machine):
    done = machine.run("train.sh", "--smoke", "grpo.output_dir=/dev/null/out")
    assert done.returncode == 4 and "cannot write to the folder /dev/null/out" in done.stderr
    assert not machine.pip_calls()


def test_a_finished_set_is_not_installed_again_until_it_changes(machine: Machine):
    index = "https://example.org/cpu"
    for kind in ([], ["dev"], [], ["dev"]):
        assert machine.run("train.sh", "--setup", *kind, TORCH_CPU_INDEX=index).returncode == 0
    pip = f"-m pip install --disable-pip-version-check --extra-index-url {index}"
    assert machine.pip_calls() == [f"{pip} -r requirements.txt", f"{pip} -r requirements-dev.txt"]
    with (machine.repo / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    for kind in ([], ["dev"], []):
        machine.run("train.sh", "--setup", *kind)
    assert len(machine.pip_calls()) == 4
    assert machine.log.read_text().count("venv\n") == 1


@pytest.mark.parametrize("how", ["pip-fails", "pip-hangs"])
def test_half_an_installation_is_made_anew(machine: Machine, how: str):
    process = machine.start("train.sh", "--setup", FAKE=how)
    if how == "pip-hangs":
        while not machine.pip_calls():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert machine.run("train.sh", "--setup").returncode == 0
    assert machine.log.read_text().count("venv\n") == 2 and len(machine.pip_calls()) == 2
    assert machine.run("train.sh", "--setup").returncode == 0 and len(machine.pip_calls()) == 2


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine):
    machine.run("train.sh", "--setup")
    (machine.repo / ".venv/bin/python").unlink()
    assert machine.run("train.sh", "--setup").returncode == 0
    assert machine.log.read_text().count("venv\n") == 2


def test_two_at_once_install_once(machine: Machine):
    first = machine.start("train.sh", "--setup", FAKE="pip-waits")
    while not machine.pip_calls():
        time.sleep(0.01)
    second = machine.start("train.sh", "--setup")
    assert "Waiting for the installation" in second.stdout.readline()
    Path(f"{machine.log}.go").touch()
    for process in (first, second):
        process.communicate(timeout=PATIENCE_S)
    assert [first.returncode, second.returncode] == [0, 0] and len(machine.pip_calls()) == 1


# --- the image ------------------------------------------------------------------------------------


def test_build_for_gpus(machine: Machine):
    call = machine.docker_call("build", "build.sh", "--pull")
    assert "REQUIREMENTS=requirements-gpu.txt" in options(call, "--build-arg")
    assert call[-5:] == ["--pull", "--tag", "gpt-oss-grpo", "--", str(machine.repo)]
    assert call[0] == "build" and not options(call, "--secret")[1:]


def test_build_for_cpus_behind_a_mirror(machine: Machine, tmp_path: Path):
    wheels, bundle = tmp_path / "wheels", tmp_path / "ca.crt"
    wheels.mkdir()
    bundle.write_text("certificate")
    call = machine.docker_call(
        "build",
        "build.sh",
        "--cpu",
        PIP_INDEX_URL="https://user:password@mirror.example.org/simple",
        PIP_FIND_LINKS=str(wheels),
        PIP_CERT=str(bundle),
        TORCH_CPU_INDEX="https://example.org/cpu",
        HTTPS_PROXY="http://user:password@proxy.example.org",
        BASE_IMAGE="debian:12",
    )
    arguments = options(call, "--build-arg")
    assert {"REQUIREMENTS=requirements.txt", "BASE_IMAGE=debian:12", "HTTPS_PROXY"} < set(arguments)
    assert any(argument.startswith("WHEELS_IMAGE=gpt-oss-grpo:wheels") for argument in arguments)
    assert options(call, "--tag") == ["gpt-oss-grpo:cpu"] and f"id=ca,src={bundle}" in call
    assert "password" not in machine.log.read_text()
    pip_conf = Path(f"{machine.log}.pip.conf").read_text()
    assert pip_conf.splitlines() == [
        "[global]",
        "index-url = https://user:password@mirror.example.org/simple",
        "extra-index-url =  https://example.org/cpu",
        "cert = /run/secrets/ca",
    ]
    secret = next(word for word in call if word.startswith("id=pip,src=")).removeprefix(
        "id=pip,src="
    )
    assert not Path(secret).exists()


def test_build_refusals(machine: Machine):
    for env, text in (
        ({"FAKE": "no-engine"}, "no Docker engine answers"),
        ({"FAKE": "new-client"}, "this Docker client has no BuildKit"),
    ):
        done = machine.run("build.sh", **env)
        assert (
            done.returncode == 2 and text in done.stderr and "bash train.sh --smoke" in done.stderr
        )
    assert all(call[0] != "build" for call in machine.calls())


def test_build_with_buildx(machine: Machine):
    call = machine.docker_call("buildx", "build.sh", FAKE="new-client buildx")
    assert call[:3] == ["buildx", "build", "--load"]


# --- the pins -------------------------------------------------------------------------------------


def test_every_requirement_is_pinned_once():
    names: list[str] = []
    for file in ("requirements.txt", "requirements-gpu.txt", "requirements-dev.txt"):
        lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
        for line in filter(None, lines):
            if line != "-r requirements.txt":
                assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), f"{file}: {line}"
                names.append(line.partition("==")[0])
    assert len(names) == len(set(names))
