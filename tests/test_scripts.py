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
    "tar cp mv git sort wc du awk"
)

# Logs its arguments, one a line, a blank line after each call. FAKE lists what is wrong with this
# machine.
DOCKER = r"""#!/usr/bin/env bash
case "$*" in
    --version)
        case $FAKE in *podman*) echo "podman version 4.3.1" ;; *) echo "Docker version 28" ;; esac
        exit ;;
    *--entrypoint\ true* | "buildx version") probe=1 ;;
    *) probe= ;;
esac
# What watches a job is called at the same time as the job
case $1 in events | inspect) ;; *) [[ -n $probe ]] || printf '%s\n' "$@" "" >>"$LOG" ;; esac
case $1 in
    version)
        [[ $FAKE != *no-engine* ]] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; }
        [[ $FAKE != *new-client* ]] || { echo 28.2.2; exit; }
        echo 20.10.24 ;;
    buildx) [[ $FAKE == *buildx* ]] ;; # `buildx version` asks whether there is one
    image)
        if [[ $* == *--format* ]]; then echo "$VERSIONS"; exit; fi
        case "$2 $3" in
            "inspect gpt-oss-grpo:cpu") [[ $FAKE == *cpu-image* ]] ;;
            inspect*) [[ $FAKE != *no-image* ]] ;;
        esac ;;
    info)
        case $* in
            *Rootless*) if [[ $FAKE == *rootless* ]]; then echo true; else echo false; fi ;;
            *MemTotal*) echo 100000000000 ;;
            *CgroupControllers*) echo "[cpu memory pids]" ;;
            *) [[ $FAKE != *rootless* ]] || echo "[name=seccomp name=rootless]" ;;
        esac ;;
    inspect) echo 50000000 ;;
    events)
        # Until the job has begun, which is when its files are mounted
        until [[ -e $LOG.begun ]]; do sleep 0.02; done
        echo "start id <no value>"
        case $FAKE in
            *memory-out*) printf '%s\n' "oom id <no value>" "die id 137" ;;
            *killed*) echo "die id 137" ;;
            *) echo "die id 0" ;;
        esac ;;
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
        for word; do
            case $word in
                *,\"target=/run/environment\"*)
                    file=${word#*source=}
                    cat "${file%%\",*}" >"$LOG.environment" ;;
            esac
        done
        if [[ $* == *--fetch* ]]; then
            if [[ -e $LOG.environment ]]; then mv "$LOG.environment" "$LOG.fetch.environment"; fi
            [[ $FAKE != *fetch-fails* ]] || exit 2
            printf '%b' "$NEEDS"
            exit
        fi
        touch "$LOG.begun"
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
    "-m pip config list")
        [[ $FAKE != *pip-config* ]] ||
            printf '%s\n' "global.find-links='/wheels'" "global.extra-index-url='a b'" ;;
    "-m pip uninstall"*) echo "$*" >>"$LOG" ;;
    "-m pip install"*)
        words="$*"
        for file; do
            if [[ $file == */tmp.* ]]; then words+=" with $(grep -c == "$file") packages"; fi
        done
        echo "$words" >>"$LOG"
        case $FAKE in
            *pip-fails*) exit 1 ;;
            *pip-hangs*) exec sleep 600 ;;
            *pip-waits*) until [[ -e $LOG.go ]]; do sleep 0.05; done ;;
        esac ;;
    *) echo "ran $* in $PWD cuda=${CUDA_VISIBLE_DEVICES-unset}" ;;
esac
"""


def packages_of(*files: str) -> int:
    """The number of packages in locks, without torch, which is installed apart from CUDA builds."""
    text = "".join((ROOT / file).read_text() for file in files)
    return len(re.findall(r"(?m)^[a-z0-9-]+==", text))


SETS = {
    packages_of("requirements.lock") - 1: "requirements.txt",
    packages_of("requirements.lock", "requirements-dev.lock") - 1: "requirements-dev.txt",
    packages_of("requirements.lock", "requirements-gpu.lock"): "requirements-gpu.txt",
}


class Machine:
    """A checkout and a home with spaces in their paths; a PATH with nothing but stand-ins and basic
    tools."""

    def __init__(self, folder: Path):
        self.repo, self.bin, self.home = folder / "the repo", folder / "bin", folder / "a home"
        for directory in (self.repo / "configs", self.bin, self.home):
            directory.mkdir(parents=True)
        for pattern in ("*.sh", "requirements*.txt", "requirements*.lock"):
            for file in ROOT.glob(pattern):
                shutil.copy(file, self.repo)
        for name in ("report.py", "export.py", "config.yaml", "configs/tiny.yaml"):
            (self.repo / name).touch()
        for name in ("train.py", "check.py"):
            (self.repo / name).write_text("takes --fetch")
        for tool in TOOLS.split():
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.add("docker", DOCKER)
        self.add("python3", PYTHON)
        self.log = folder / "log"
        self.log.touch()
        self.env = {"PATH": str(self.bin), "HOME": str(self.home), "LOG": str(self.log)}
        self.env |= {"NEEDS": "", "VERSIONS": "", "XDG_RUNTIME_DIR": str(folder)}
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
        (call,) = [call for call in self.calls() if call[0] == verb and "--fetch" not in call]
        return call

    def installed(self) -> list[str]:
        """What pip was to install: the requirements file whose lock it got, or other words."""
        found = []
        for line in self.log.read_text().splitlines():
            _, is_pip, words = line.partition(" pip install --disable-pip-version-check ")
            if not is_pip:
                continue
            lock = re.fullmatch(r"--no-deps --require-hashes -r (\S+) with (\d+) packages", words)
            found.append(SETS[int(lock[2])] if lock else words)
        return found


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
    call = [call for call in machine.calls() if call[0] == "run" and "train.py" in call][-1]
    assert f"task.data={tmp_path / data}" in call
    place = tmp_path / mounted
    assert bind(place, place, ",readonly") in options(call, "--mount")
    # What is not here is left as it is: it may be in the repository, or on the Hub
    machine.log.write_text("")
    machine.run("train.sh", "--cpu", "task.data=openai/gsm8k", cwd=tmp_path)
    assert "task.data=openai/gsm8k" in machine.calls()[-1]


@pytest.mark.parametrize(
    "written", ["mine/my_task.py", "{}/mine/my_task.py", "../{.name}/mine/my_task.py"]
)
def test_a_task_is_sought_where_the_user_stands(machine: Machine, tmp_path: Path, written):
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine/my_task.py"
    file.touch()
    written = f"task.type={written.format(tmp_path)}"
    done = machine.run("train.sh", "--cpu", written, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    call = [call for call in machine.calls() if call[0] == "run" and "train.py" in call][-1]
    assert f"task.type={file}" in call
    assert bind(file, file, ",readonly") in options(call, "--mount")


def test_a_task_of_the_repository_is_named_from_its_root(machine: Machine):
    (machine.repo / "tasks").mkdir(exist_ok=True)
    (machine.repo / "tasks/sort.py").touch()
    for written in ("sort.py", f"{machine.repo}/tasks/sort.py"):
        machine.run("train.sh", "--cpu", f"task.type={written}", cwd=machine.repo / "tasks")
        assert "task.type=tasks/sort.py" in machine.calls()[-1]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train.sh", "build.sh"])
def test_help_names_every_setting_that_the_script_reads(machine: Machine, script: str):
    done = machine.run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    read = (ROOT / script).read_text()
    if script == "train.sh":
        read += (ROOT / "container.sh").read_text()
    settings = set(re.findall(r"\$\{([A-Z_]+):-", read))
    settings -= {"SLURM_STEP_NUM_NODES", "PET_NNODES"}  # set by schedulers
    settings -= {"HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"}
    assert {name for name in settings if name not in done.stdout} == set()


REFUSALS = {
    "no engine": (
        {"FAKE": "no-engine"},
        2,
        "no container engine answers (docker): Cannot connect",
    ),
    "no image": (
        {"FAKE": "no-image"},
        2,
        "there is no image gpt-oss-grpo.\ntrain.sh: Build it: bash build.sh",
    ),
    "no client": ({"DOCKER": "podmann"}, 2, "there is no container client (sought: podmann)"),
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
        assert done.returncode == 2
        assert "there is no container client (sought: docker podman apptainer" in done.stderr
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
    env = {"GPUS": "0,1", "IMAGE": "mine:1", "DOCKER_ARGS": "--network host", "FAKE": "rootless"}
    call = machine.docker_call("run", "train.sh", **places, **env)
    assert options(call, "--gpus") == ['"device=0,1"']
    assert options(call, "--network") == ["host"] and "mine:1" in call
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


SECRETS = {"HF_TOKEN": "hf_it's secret", "WANDB_API_KEY": "w_secret", "JUDGE_KEY": "j_secret"}


def environment_of_job(machine: Machine) -> str:
    """What the job reads from the file that is mounted for it."""
    file = Path(f"{machine.log}.environment")
    return file.read_text() if file.exists() else ""


def fetch_and_job(machine: Machine) -> list[list[str]]:
    return [call for call in machine.calls() if call[0] == "run"]


def test_a_job_has_neither_network_nor_token_and_the_fetch_step_both(
    machine: Machine, tmp_path: Path
):
    token, hub = tmp_path / "token", tmp_path / "hub"
    token.write_text("hf_secret")
    hub.mkdir()
    (hub / "token").write_text("hf_secret")  # as `hf auth login` leaves it
    places = {"HF_TOKEN_PATH": str(token), "HF_HOME": str(hub), "WANDB_DIR": "/x", "MY_KEY": "1"}
    done = machine.run("train.sh", "a.b=1", **SECRETS, **places, HF_HUB_DOWNLOAD_TIMEOUT="60")
    assert done.returncode == 0, done.stderr
    fetch, job = fetch_and_job(machine)

    assert fetch[-3:] == ["train.py", "--fetch", "a.b=1"] and job[-2:] == ["train.py", "a.b=1"]
    assert not options(fetch, "--network") and options(job, "--network") == ["none"]
    assert bind(token, "/run/hf_token", ",readonly") in fetch
    assert "/run/hf_token" not in str(job)
    hidden = bind("/dev/null", "/cache/huggingface/token", ",readonly")
    assert hidden in job and hidden not in fetch
    assert "HF_HUB_OFFLINE=1" in options(job, "--env")
    assert environment_of_job(machine) == "export HF_HUB_DOWNLOAD_TIMEOUT='60'\n"
    given = Path(f"{machine.log}.fetch.environment").read_text()
    assert all(f"export {name}=" in given for name in ("HF_TOKEN", "WANDB_API_KEY"))
    assert "WANDB_DIR" not in given and "KEY='1'" not in given

    assert "fetch step: with the network and your tokens" in done.stderr
    assert "job: without network and token (--network gives it both)" in done.stderr
    assert "secret" not in done.stdout + done.stderr + machine.log.read_text()


@pytest.mark.parametrize("needs, given, kept", [
    ("hub\tgrpo.push_to_hub uploads", ["HF_TOKEN"], ["WANDB_API_KEY", "JUDGE_KEY"]),
    ("wandb\twandb is online", ["WANDB_API_KEY"], ["HF_TOKEN", "JUDGE_KEY"]),
    ("judge\tjudge says so", ["JUDGE_KEY"], ["HF_TOKEN", "WANDB_API_KEY"]),
    ("hub\ta\nwandb\tb", ["HF_TOKEN", "WANDB_API_KEY"], ["JUDGE_KEY"]),
])  # fmt: skip
def test_what_needs_the_network_is_named_and_gets_its_own_secret_alone(
    machine: Machine, needs, given, kept
):
    proxy = {"HTTPS_PROXY": "http://me:p_secret@proxy"}
    done = machine.run("train.sh", **SECRETS, **proxy, PASS_ENV="JUDGE_KEY", NEEDS=f"{needs}\n")
    _, job = fetch_and_job(machine)
    assert not options(job, "--network")
    reasons = [line.partition("\t")[2] for line in needs.split("\n")]
    assert f"job: with the network: {'; '.join(reasons)}\n" in done.stderr
    environment = environment_of_job(machine)
    assert all(f"export {name}=" in environment for name in [*given, "HTTPS_PROXY"])
    assert not any(name in environment for name in kept)
    assert ("HF_HUB_OFFLINE=1" in options(job, "--env")) == ("hub" not in needs)
    assert options(job, "--entrypoint") == ["sh"]
    assert job[-5:] == ["gpt-oss-grpo", "-c", job[-3], "sh", "train.py"]
    assert "secret" not in done.stdout + done.stderr + machine.log.read_text()


def test_a_job_on_one_node_of_slurm_has_no_network_and_several_processes(machine: Machine):
    alone = {"SLURM_JOB_END_TIME": "7", "SLURM_STEP_NUM_NODES": "1", "PET_NNODES": "1"}
    done = machine.run("train.sh", "--gpus", "2", **alone)
    assert "job: without network" in done.stderr
    _, job = fetch_and_job(machine)
    assert job[-3:] == ["train.py", "--gpus", "2"]
    assert "export SLURM_JOB_END_TIME='7'\n" in environment_of_job(machine)


@pytest.mark.parametrize("nodes", ["SLURM_STEP_NUM_NODES", "PET_NNODES"])
def test_a_job_on_several_nodes_shares_the_network_of_its_node(machine: Machine, nodes):
    done = machine.run("train.sh", **{nodes: "2", "NCCL_SOCKET_IFNAME": "ib0"})
    assert "job: with the network: several nodes train together" in done.stderr
    _, job = fetch_and_job(machine)
    assert options(job, "--network") == ["host"]
    environment = environment_of_job(machine)
    assert f"export {nodes}='2'\n" in environment
    assert "export NCCL_SOCKET_IFNAME='ib0'\n" in environment


def test_a_shell_reads_a_secret_as_it_is(machine: Machine):
    machine.run("train.sh", **SECRETS, NEEDS="hub\twhy\n")
    file = f"{machine.log}.environment"
    command = ["sh", "-c", f'. "{file}" && printf %s "$HF_TOKEN"']
    assert subprocess.run(command, capture_output=True, text=True).stdout == SECRETS["HF_TOKEN"]


def test_secrets_are_gone_from_the_disk_once_the_job_runs(machine: Machine, tmp_path: Path):
    machine.run("train.sh", **SECRETS, NEEDS="hub\twhy\n")
    assert environment_of_job(machine)
    machine.run("train.sh", **SECRETS, FAKE="fetch-fails")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp.")]


def test_the_network_can_be_asked_for(machine: Machine):
    done = machine.run("train.sh", "--network", **SECRETS)
    (job,) = fetch_and_job(machine)
    assert not options(job, "--network") and "HF_HUB_OFFLINE=1" not in options(job, "--env")
    assert "job: with the network: --network was given" in done.stderr
    assert "export HF_TOKEN=" in environment_of_job(machine)


@pytest.mark.parametrize("words, networks", [
    (["check.py"], [None, "none"]),
    (["report.py", "x"], ["none"]),
    (["export.py", "x"], [None]),
    (["--dry-run"], [None]),
])  # fmt: skip
def test_which_scripts_get_the_network(machine: Machine, words, networks):
    machine.run("train.sh", "--cpu", *words)
    found = [options(call, "--network") for call in fetch_and_job(machine)]
    assert found == [[name] if name else [] for name in networks]


def test_several_nodes_get_the_network_and_what_slurm_says(machine: Machine):
    slurm = {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    done = machine.run("train.sh", **SECRETS, **slurm)
    _, job = fetch_and_job(machine)
    assert options(job, "--network") == ["host"]
    assert "job: with the network: several nodes train together" in done.stderr
    environment = environment_of_job(machine)
    assert "export SLURM_NODEID='1'" in environment and "TOKEN" not in environment


def test_offline_nothing_is_fetched_and_needs_are_still_asked(machine: Machine):
    done = machine.run("train.sh", **SECRETS, HF_HUB_OFFLINE="1", NEEDS="wandb\tit is online\n")
    fetch, job = fetch_and_job(machine)
    assert options(fetch, "--network") == ["none"] and not options(job, "--network")
    assert "nothing is downloaded, because HF_HUB_OFFLINE is set" in done.stderr


def test_a_fetch_step_that_fails_is_the_end(machine: Machine):
    done = machine.run("train.sh", FAKE="fetch-fails")
    assert (done.returncode, len(fetch_and_job(machine))) == (2, 1)
    assert "--smoke" not in done.stderr  # the job said what is wrong


def test_every_container_is_bounded_and_cannot_write_to_its_root(machine: Machine):
    machine.run("train.sh", MIN_FREE_GB="0.5")
    for call in fetch_and_job(machine):
        assert {"--read-only", "--init"} < set(call)
        assert options(call, "--tmpfs") == ["/tmp:exec,mode=1777"]
        assert options(call, "--cap-drop") == ["ALL"]
        assert options(call, "--security-opt") == ["no-new-privileges"]
        assert options(call, "--pids-limit") == ["8192"]
        assert options(call, "--memory") == ["90000000000"]  # nine tenths of the machine's
        assert "MIN_FREE_GB=0.5" in options(call, "--env")
    machine.log.write_text("")
    call = machine.docker_call("run", "train.sh", "report.py", MEMORY="64g")
    assert options(call, "--memory") == ["64g"]


@pytest.mark.parametrize("fake, text", [
    ("memory-out", "out of main memory: the container has a limit of 50 MB"),
    ("killed", "the container was killed (137): by the kernel for want of main memory (it has a"),
])  # fmt: skip
def test_a_kill_for_want_of_memory_is_told_with_the_limit(machine: Machine, fake, text):
    done = machine.run("train.sh", "--cpu", FAKE=fake)
    assert text in done.stderr and "MEMORY=64g sets another limit" in done.stderr


@pytest.mark.parametrize("script", ["requirements.txt", "requirements{,-gpu}.txt"])
def test_an_image_older_than_the_requirements_is_told(machine: Machine, script):
    versions = f"cd '{machine.repo}'; cat {script} | grep -oE '^[A-Za-z0-9._-]+==[^ ]+' | sort"
    known = subprocess.run(
        ["bash", "-c", f"{versions} | sha256sum | cut -c 1-16"], capture_output=True, text=True
    ).stdout.strip()
    warning = "was built from other versions than requirements*.txt asks for"
    assert warning not in machine.run("train.sh", "--cpu", VERSIONS=known).stderr
    with (machine.repo / "requirements.txt").open("a") as file:
        file.write("# a comment\n")
    assert warning not in machine.run("train.sh", "--cpu", VERSIONS=known).stderr
    with (machine.repo / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    done = machine.run("train.sh", "--cpu", VERSIONS=known)
    assert done.returncode == 0 and warning in done.stderr
    assert "Bring it up to date: bash build.sh --cpu" in done.stderr


# --- other engines --------------------------------------------------------------------------------


def test_podman_keeps_the_users_number_where_it_has_no_root(machine: Machine):
    call = machine.docker_call("run", "train.sh", "report.py", FAKE="podman rootless")
    assert "--userns=keep-id" in call
    assert options(call, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert options(call, "--device") == ["nvidia.com/gpu=all"] and "--gpus" not in call
    machine.log.write_text("")
    call = machine.docker_call("run", "train.sh", "report.py", FAKE="podman", GPUS="0,2")
    assert "--userns=keep-id" not in call
    assert options(call, "--device") == ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]


def test_podman_is_found_where_there_is_no_docker(machine: Machine):
    (machine.bin / "docker").rename(machine.bin / "podman")
    call = machine.docker_call("run", "train.sh", "--cpu", FAKE="podman rootless killed")
    assert "--userns=keep-id" in call
    call = machine.docker_call("build", "build.sh", "--cpu", FAKE="podman")
    assert options(call, "--tag") == ["gpt-oss-grpo:cpu"]


APPTAINER = r"""#!/usr/bin/env bash
[[ $1 != --version ]] || { echo "apptainer version 1.3.4"; exit; }
printf '%s\n' "$@" "" >>"$LOG"
if [[ $* != *--fetch* ]]; then compgen -e APPTAINERENV_ >"$LOG.environment"; fi
exit 0
"""


def test_apptainer(machine: Machine):
    (machine.bin / "docker").unlink()
    machine.add("apptainer", APPTAINER)
    done = machine.run("train.sh", "--cpu")
    assert (
        done.returncode == 2 and f"there is no image {machine.repo}/gpt-oss-grpo.sif" in done.stderr
    )
    done = machine.run("build.sh", "--cpu")
    assert done.returncode == 2 and "does not build from a Dockerfile" in done.stderr

    image = machine.repo / "gpt-oss-grpo.sif"
    image.touch()
    done = machine.run("train.sh", "a.b=1", **SECRETS, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    fetch, job = machine.calls()
    assert job[:6] == ["exec", "--containall", "--cleanenv", "--no-privs", "--pwd", "/app"]
    assert "--nv" in job and options(job, "--network") == ["none"] and "--net" in job
    assert job[-4:] == [str(image), "python", "train.py", "a.b=1"]
    assert not options(fetch, "--network") and fetch[-3:] == ["train.py", "--fetch", "a.b=1"]
    read_only = f'type=bind,"source={machine.repo}","destination=/app",ro'
    assert options(job, "--mount")[0] == read_only
    assert environment_of_job(machine) == "APPTAINERENV_WANDB_MODE\n"
    assert "secret" not in done.stdout + done.stderr + machine.log.read_text()


# --- the place of the script ----------------------------------------------------------------------


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
    assert machine.installed() == ["requirements.txt", "torch==2.13.0"]

    done = machine.run("train.sh", "--smoke", "--config", "config.yaml", cwd=machine.home)
    merged = "--config configs/tiny.yaml --config config.yaml"
    assert done.stdout == f"ran train.py {merged} in {machine.repo} cuda=\n"
    assert len(machine.installed()) == 2
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
    assert "-m pip uninstall --yes torch" in machine.log.read_text()
    assert machine.installed()[-1] == "requirements-gpu.txt"


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
    assert not machine.installed()


def test_a_finished_set_is_not_installed_again_until_it_changes(machine: Machine):
    index = "https://example.org/cpu"
    for kind in ([], ["dev"], [], ["dev"]):
        assert machine.run("train.sh", "--setup", *kind, TORCH_CPU_INDEX=index).returncode == 0
    torch = f"--extra-index-url {index} torch==2.13.0"
    wanted = ["requirements.txt", torch, "requirements-dev.txt", torch]
    assert machine.installed() == wanted
    with (machine.repo / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    for kind in ([], ["dev"], []):
        machine.run("train.sh", "--setup", *kind)
    assert len(machine.installed()) == 8
    assert machine.log.read_text().count("venv\n") == 1


@pytest.mark.parametrize("how", ["pip-fails", "pip-hangs"])
def test_half_an_installation_is_made_anew(machine: Machine, how: str):
    process = machine.start("train.sh", "--setup", FAKE=how)
    if how == "pip-hangs":
        while not machine.installed():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert machine.run("train.sh", "--setup").returncode == 0
    assert machine.log.read_text().count("venv\n") == 2 and len(machine.installed()) == 3
    assert machine.run("train.sh", "--setup").returncode == 0 and len(machine.installed()) == 3


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine):
    machine.run("train.sh", "--setup")
    (machine.repo / ".venv/bin/python").unlink()
    assert machine.run("train.sh", "--setup").returncode == 0
    assert machine.log.read_text().count("venv\n") == 2


def test_two_at_once_install_once(machine: Machine):
    first = machine.start("train.sh", "--setup", FAKE="pip-waits")
    while not machine.installed():
        time.sleep(0.01)
    second = machine.start("train.sh", "--setup")
    assert "Waiting for the installation" in second.stdout.readline()
    Path(f"{machine.log}.go").touch()
    for process in (first, second):
        process.communicate(timeout=PATIENCE_S)
    assert [first.returncode, second.returncode] == [0, 0]
    assert machine.installed() == ["requirements.txt", "torch==2.13.0"]


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
        ({"FAKE": "no-engine"}, "no container engine answers"),
        ({"FAKE": "new-client"}, "this Docker client has no BuildKit"),
    ):
        done = machine.run("build.sh", **env)
        assert (
            done.returncode == 2 and text in done.stderr and "bash train.sh --smoke" in done.stderr
        )
    assert all(call[0] != "build" for call in machine.calls())


def test_every_module_goes_into_the_image():
    """Older engines find a folder only where .dockerignore names it in full, so new ones must be
    added. tests/test_docker.py looks into a real build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    named = {line.removeprefix("!") for line in lines if line.startswith("!")}
    for folder in ("job", "sandbox", "tasks"):
        for file in (ROOT / folder).rglob("*.py"):
            pattern = f"{file.parent.relative_to(ROOT)}/*.py"
            assert pattern in named, f".dockerignore lacks !{pattern}"


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


def test_the_locks_hold_these_versions_with_hashes_and_no_address():
    for file in ("requirements", "requirements-gpu", "requirements-dev"):
        pins = re.findall(r"(?m)^[a-z0-9-]+==[^ \n]+", (ROOT / f"{file}.txt").read_text())
        lock = (ROOT / f"{file}.lock").read_text()
        assert sorted(pins) == sorted(re.findall(r"(?m)^[a-z0-9-]+==[^ \n]+", lock)), (
            f"{file}.lock holds other versions; docs/docker.md says how it is made"
        )
        for entry in re.split(r"(?m)^(?=[a-z])", lock)[1:]:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
        assert "://" not in lock and "+cpu" not in lock


# --- the installation -----------------------------------------------------------------------------

# Logs its words; fails if FAKE says so.
UV = r"""#!/usr/bin/env bash
printf 'uv %s\n' "$*" >>"$LOG"
[[ $FAKE != *uv-fails* ]]
"""


def test_uv_is_used_where_it_is_and_given_the_settings_of_pip(machine: Machine):
    machine.add("uv", UV)
    done = machine.run("train.sh", "--setup", FAKE="pip-config")
    assert done.returncode == 0 and not machine.installed()
    calls = [line for line in machine.log.read_text().splitlines() if line.startswith("uv ")]
    assert len(calls) == 2 and calls[1].endswith(" torch==2.13.0")
    settings = "--find-links /wheels --extra-index-url a --extra-index-url b"
    assert all(settings in call and "--python .venv/bin/python" in call for call in calls)


def test_pip_takes_over_where_uv_fails(machine: Machine):
    machine.add("uv", UV)
    done = machine.run("train.sh", "--setup", FAKE="uv-fails")
    assert done.returncode == 0 and "trying pip" in done.stdout
    assert machine.installed() == ["requirements.txt", "torch==2.13.0"]


def test_an_installation_says_what_comes_and_is_never_silent(machine: Machine):
    sleep = '#!/usr/bin/env bash\n[[ $1 != 10 ]] || exec "$SLEEP" 0.2\nexec "$SLEEP" "$@"\n'
    (machine.bin / "sleep").unlink()
    machine.add("sleep", sleep)
    where = {"SLEEP": shutil.which("sleep") or ""}
    process = machine.start("train.sh", "--setup", FAKE="pip-waits", **where)
    lines = []
    while not any(line.startswith("... ") for line in lines):
        lines.append(process.stdout.readline())
    assert any("packages of requirements.txt: about 1.8 GB on the disk" in line for line in lines)
    assert re.fullmatch(r"\.\.\. \d+ s: \.venv holds \d+ MB\n", lines[-1])
    Path(f"{machine.log}.go").touch()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_packages_without_a_hash_are_installed_with_a_word(machine: Machine):
    with (machine.repo / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    done = machine.run("train.sh", "--setup")
    assert done.returncode == 0 and "so no hashes are checked" in done.stdout
    assert machine.installed() == ["-r requirements.txt"]
