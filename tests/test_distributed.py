"""Several processes that train together: how they start, are connected, and wait for each other."""

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job import distributed, launch, preflight
from job.config import load_config
from job.errors import ConfigError, JobError, RewardError
from job.grading_pool import GradingPool
from job.launch import Launch, Nodes, first_host, nodes_of, plan_launch
from job.run_folder import RunFolder
from sandbox import Limits

ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs" / "tiny.yaml"
PATIENCE_S = 600


# ---- How many processes there are


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs are visible."""
    return lambda count: monkeypatch.setattr(launch, "visible_gpus", lambda: count)


def test_all_visible_gpus_are_used_unless_a_number_says_otherwise(gpus):
    gpus(4)
    assert plan_launch(None, {}) == Launch(4, Nodes())
    assert plan_launch(2, {}).world_size == 2
    with pytest.raises(ConfigError, match="--gpus: 5 are asked for, but 4 are visible"):
        plan_launch(5, {})
    with pytest.raises(ConfigError, match="--gpus: must be above 0, not 0"):
        plan_launch(0, {})


def test_without_a_gpu_there_is_one_process_unless_more_are_asked_for(gpus):
    gpus(0)
    assert plan_launch(None, {}).world_size == 1
    assert plan_launch(3, {}).world_size == 3


@pytest.mark.parametrize(
    ("visible", "before", "after"),
    [
        (2, {}, {"CUDA_VISIBLE_DEVICES": "0"}),
        (2, {"CUDA_VISIBLE_DEVICES": "3,1"}, {"CUDA_VISIBLE_DEVICES": "3"}),
        (1, {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "3"}),
        (0, {}, {}),
        (4, {"RANK": "1"}, {"RANK": "1"}),
    ],
)
def test_the_only_process_sees_one_gpu(gpus, visible, before, after):
    gpus(visible)
    launch.hide_other_gpus(before)
    assert before == after


@pytest.mark.parametrize("environ", [{"RANK": "0", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "8"}])
def test_nothing_is_started_by_a_process_that_was_started_or_is_to_be(gpus, environ):
    gpus(8)
    assert plan_launch(4, environ).world_size == 1


def test_kubeflow_trainer_says_how_many_nodes_and_processes_there_are(gpus):
    gpus(8)
    said = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "grpo-node-0-0.grpo",
        "PET_MASTER_PORT": "29400",
    }
    planned = plan_launch(None, said)
    assert planned == Launch(4, Nodes(2, 1, "grpo-node-0-0.grpo", 29400))
    assert planned.world_size == 8
    assert "--node-rank=1" in planned.torchrun() and "--standalone" not in planned.torchrun()
    assert plan_launch(None, said | {"PET_NPROC_PER_NODE": "auto"}).processes == 8
    assert nodes_of(said | {"PET_NNODES": "1"}) == Nodes()


def test_slurm_says_how_many_nodes_there_are(gpus):
    gpus(8)
    said = {
        "SLURM_JOB_ID": "10007",
        "SLURM_STEP_NUM_NODES": "3",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "gpu[07-08,11]",
        "SLURM_NODEID": "2",
    }
    assert plan_launch(None, said) == Launch(8, Nodes(3, 2, "gpu07", launch.PORT + 7))
    assert nodes_of({"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}) == Nodes()
    # The batch script itself is no step
    assert nodes_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2"}) == Nodes()


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES: must be a number, not '1:4'"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "PET_MASTER_ADDR, the first node, is not set"),
        ({"PET_NNODES": "2", "PET_MASTER_ADDR": "a"}, "PET_NODE_RANK: must be a number, not ''"),
        (
            {"PET_NNODES": "2", "PET_MASTER_ADDR": "a", "PET_NODE_RANK": "2"},
            "must be below PET_NNODES",
        ),
        (
            {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "16"},
            "16 tasks on 2 nodes, .* take --ntasks-per-node=1",
        ),
        (
            {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "[]"},
            "names no node",
        ),
    ],
)
def test_variables_that_make_no_sense_are_refused(said, mistake):
    with pytest.raises(ConfigError, match=mistake):
        nodes_of(said)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login1", "login1"),
        ("a1,b2", "a1"),
        ("gpu[03-07,12],login1", "gpu03"),
        ("rack-2-gpu[9]", "rack-2-gpu9"),
        ("n[1-4]-ib,m", "n1-ib"),
        ("node-a.example.org", "node-a.example.org"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_one_node_needs_no_network_and_shares_its_cores(monkeypatch):
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "set, so that it is restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    launch.prepare_environment(Launch(2, Nodes()))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launch.prepare_environment(Launch(2, Nodes(2, 0, "a")))
    assert os.environ["OMP_NUM_THREADS"] == "5" and "NCCL_SOCKET_IFNAME" not in os.environ


def test_the_config_is_checked_for_all_processes_and_the_environment_stays(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Launch(2, Nodes(2, 0, "a")).announced():
        assert distributed.world_size() == 4
    assert "WORLD_SIZE" not in os.environ
    with Launch(1, Nodes()).announced():
        assert "WORLD_SIZE" not in os.environ


def test_a_batch_that_gpus_cannot_share_is_one_line(run_job, gpus, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    gpus(3)
    run = run_job("--config", "configs/tiny.yaml")
    assert run.returncode == 2
    assert "3 processes cannot share the 16 completions of an optimizer step equally" in run.stderr
    assert "the nearest that fits is gradient_accumulation_steps 3, or take 2" in run.stderr


def test_a_folder_that_another_run_writes_to_is_refused_before_anything_starts(
    run_job, gpus, monkeypatch, tmp_path
):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    gpus(2)
    monkeypatch.setattr("train.start", lambda *_: pytest.fail("started"))
    with RunFolder(load_config(None, [f"grpo.output_dir={tmp_path}"])):
        run = run_job("--config", "configs/tiny.yaml", f"grpo.output_dir={tmp_path}")
    assert run.returncode == 4 and "another run is writing to" in run.stderr
    assert not (tmp_path / "exit_code").exists()


# ---- Starting them


def started(tmp_path, script):
    """Runs a script in two processes, as train.py does. Returns the process of the launcher."""
    (tmp_path / "script.py").write_text(script)
    program = (
        "import sys; from pathlib import Path; from job.launch import Launch, Nodes, start;"
        f"sys.exit(start(Launch(2, Nodes()), ['{tmp_path}/script.py', '{tmp_path}'],"
        f"Path('{tmp_path}/exit_code'), 30.0))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def start_here(tmp_path):
    """Runs a script in two processes, as train.py does, with this process as the launcher."""
    numbers = [getattr(signal, name) for name in launch.SIGNALS.split(",")]
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = dict(os.environ)

    def start_here(script):
        (tmp_path / "script.py").write_text(script)
        command = [str(tmp_path / "script.py"), str(tmp_path)]
        return launch.start(Launch(2, Nodes()), command, tmp_path / "exit_code", 30.0)

    yield start_here
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


# What every process does first: it waits until all have come, without importing torch.
TOGETHER = """
import os, signal, sys, time
from pathlib import Path
rank, folder = os.environ["RANK"], Path(sys.argv[1])
def all_here():
    (folder / f"here-{rank}").touch()
    while len(list(folder.glob("here-*"))) < 2:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("marked", "code", "expected"),
    [("75", 75, 75), ("3", 9, 3), (None, 5, 5), (None, 0, 0)],
    ids=["requeue", "the file wins", "no file", "done"],
)
def test_the_exit_code_is_that_of_the_job_and_not_torchruns(
    tmp_path, start_here, marked, code, expected
):
    script = TOGETHER + "all_here()\n"
    if marked:
        script += f"(folder / 'exit_code').write_text('{marked}\\n')\n"
    (tmp_path / "exit_code").write_text("143")  # of the run before
    assert start_here(script + f"sys.exit({code})\n") == expected


STOPPABLE = (
    TOGETHER
    + """
def stop(number, frame):
    (folder / f"stopped-{rank}").touch()
    (folder / "exit_code").write_text("75\\n")
    sys.exit(75)
signal.signal(signal.SIG{name}, stop)
all_here()
time.sleep(600)
"""
)


@pytest.mark.slow  # starts a process that imports torch
@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_signal_reaches_every_process(tmp_path, name):
    launcher = started(tmp_path, STOPPABLE.replace("{name}", name))
    wait_until(lambda: len(list(tmp_path.glob("here-*"))) == 2)
    launcher.send_signal(getattr(signal, f"SIG{name}"))
    launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 75
    assert (tmp_path / "stopped-0").exists() and (tmp_path / "stopped-1").exists()


@pytest.mark.slow  # starts a process that imports torch
def test_signal_upon_signal_leaves_no_process_behind(tmp_path):
    deaf = TOGETHER + (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "(folder / f'pid-{rank}').write_text(str(os.getpid()))\n"
        "all_here()\nwhile True: time.sleep(1)\n"
    )
    launcher = started(tmp_path, deaf)
    wait_until(lambda: len(list(tmp_path.glob("here-*"))) == 2)
    while launcher.poll() is None:
        launcher.terminate()
        time.sleep(0.2)
    assert launcher.returncode == 143
    for file in tmp_path.glob("pid-*"):
        wait_until(lambda file=file: not Path("/proc", file.read_text()).exists())


def test_nodes_that_do_not_meet_are_one_line(tmp_path, start_here, monkeypatch):
    monkeypatch.setenv("PET_RDZV_CONF", "timeout=1")
    nodes = Nodes(2, 1, "127.0.0.1", 1)  # nobody listens there
    with pytest.raises(JobError, match="node 1 of 2 did not meet the others at 127.0.0.1:1"):
        launch.start(Launch(1, nodes), [str(tmp_path / "none.py")], tmp_path / "exit_code", 1.0)


def wait_until(happened):
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- What the processes of a node share


@given(cores=st.integers(1, 200), processes=st.integers(1, 16))
def test_cores_are_shared_out_equally_and_none_is_left(cores, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(processes))
        shares = []
        for rank in range(processes):
            patch.setenv("LOCAL_RANK", str(rank))
            shares.append(distributed.own_share(cores))
    assert min(shares) >= 1 and max(shares) - min(shares) <= 1
    assert sum(shares) == max(cores, processes)


def test_each_process_has_its_share_of_graders(monkeypatch):
    monkeypatch.setattr("job.grading_pool.default_workers", lambda: 3)
    made = []
    monkeypatch.setattr(GradingPool, "__init__", lambda self, workers, *_: made.append(workers))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    options = type("Options", (), {"require": [], "grade_timeout_s": None, "workers": None})
    for name in Limits.__slots__:
        setattr(options, name, 1)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        GradingPool.of(options)
    options.workers = 5  # of each process
    GradingPool.of(options)
    assert made == [2, 1, 5]


# Each process measures 30 times; a folder that exists already means that another measures as well.
MEASURES = """
import os, sys
from job.grading_pool import GradingPool
from sandbox import Limits, Processors
pool = GradingPool(1, Limits())
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
processors = Processors(0, pool._lock_descriptor)
for _ in range(30):
    with processors.lend():
        os.mkdir(sys.argv[1])
        os.rmdir(sys.argv[1])
    sys.stdout.write("x"); sys.stdout.flush()
print(flush=True)
sys.stdin.read()
pool.close()
"""


def test_timings_of_two_processes_take_turns(tmp_path):
    ranks = []
    for rank in range(2):
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", MEASURES, tmp_path / "measuring"],
                env=os.environ
                | {"PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in ranks:
        assert process.stdout.readline() == "x" * 30 + "\n", process.stderr.read()
    file = Path(tempfile.gettempdir(), f"processors-{os.getuid()}-{os.getpid()}")
    assert file.exists() and file.stat().st_mode & 0o777 == 0o600
    for process in ranks:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert not file.exists()


# ---- Waiting outside of collectives


class Store:
    """What of a process group's store is used."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = str(value).encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)


@pytest.fixture
def store(monkeypatch):
    """This process is rank 0 of three; the others are what the test writes into the store."""
    store = Store()
    monkeypatch.setattr(distributed, "group_store", lambda: store)
    monkeypatch.setattr(distributed, "meetings", iter(range(100)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    return store


def test_rewards_are_handed_on_when_the_slowest_process_has_its_own(store, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "TELL_S", 0.01)
    store.set("meeting/0/1", "here")

    def first(completions):
        return [1.0]

    def last(completions):
        return [2.0]

    first_again, last_again = distributed.then_wait([first, last], 3600.0)
    assert first_again(["x"]) == [1.0]  # waits for nobody
    assert last_again.__name__ == "last"
    slow = threading.Timer(0.2, store.set, ["meeting/0/2", "here"])
    slow.start()
    assert last_again(["x"]) == [2.0]
    assert store.check(["meeting/0/2"])
    said = capsys.readouterr().err
    assert "waiting for the rewards of rank 2: 0 s so far, at most 3600 s" in said


def test_an_async_reward_that_ends_last_waits(store):
    events = []

    async def slow(completions):
        await asyncio.sleep(0.05)
        events.append("slow")
        store.set("meeting/0/1", "here")
        store.set("meeting/0/2", "here")
        return [1.0]

    async def fast(completions):
        events.append("fast")
        return [2.0]

    def plain(completions):
        events.append("plain")
        return [3.0]

    functions = distributed.then_wait([slow, plain, fast], 3600.0)
    assert [inspect.iscoroutinefunction(function) for function in functions] == [True, False, True]
    assert functions[1](["x"]) == [3.0]

    async def together():
        return await asyncio.gather(functions[0](["x"]), functions[2](["x"]))

    assert asyncio.run(together()) == [[1.0], [2.0]]
    assert events == ["plain", "fast", "slow"]
    assert store.check(["meeting/0/0"])


def test_the_lowest_rank_that_waits_is_the_one_to_say_so(store, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "TELL_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    store.set("meeting/0/2", "here")
    assert distributed.wait_for_all("the end", 0.1) == [0]
    assert "waiting for the end of rank 0" in capsys.readouterr().err
    store.set("meeting/1/0", "here")
    assert distributed.wait_for_all("the end", 0.1) == [2]
    assert capsys.readouterr().err == ""


def test_a_reward_that_takes_too_long_ends_the_run_and_names_the_rank(store):
    store.set("meeting/0/1", "here")
    with pytest.raises(RewardError, match="reward functions of rank 2 had not ended 0 s after"):
        distributed.wait_for_rewards(0.05)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(RewardError("x"), 3), (ZeroDivisionError(), 1), (SystemExit(143), 143)],
)
def test_a_process_that_failed_is_not_waited_for(store, monkeypatch, error, exit_code):
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(type(error)), distributed.telling_others():
        raise error
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(JobError, match="rank 2 has failed") as followed,
        distributed.telling_others(),
    ):
        distributed.wait_for_rewards(3600.0)
    assert followed.value.exit_code == exit_code
    assert store.values["failed"] == f"2 {exit_code}".encode()  # the first word counts


def test_alone_nothing_is_waited_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    functions = [len]
    assert distributed.then_wait(functions, 1.0) == functions
    assert distributed.wait_for_all("the end", 0.0) == []
    assert distributed.gathered([1], 0.0) == [1]


# ---- The first all-reduce


# Messages of NCCL 2.29, PyTorch 2.13 and gloo
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            "NCCL error: unhandled system error. Last error: Error while creating shared memory "
            "segment /dev/shm/nccl-aB3dEf (size 9637888), error: No space left on device (28)",
            "docker run --shm-size 8g",
        ),
        (
            "NCCL error: unhandled cuda error. Last error: Cuda failure 217 'peer access is not "
            "supported between these two devices'",
            "NCCL_P2P_DISABLE=1",
        ),
        (
            "NCCL error: invalid usage. Last error: Duplicate GPU detected : rank 1 and rank 0 "
            "both on CUDA device 1b000",
            "one process for each GPU",
        ),
        (
            "NCCL error: remote process exited or there was a network error. Last error: socket "
            "progress: Connection refused",
            "NCCL_SOCKET_IFNAME",
        ),
        ("Connection closed by peer [127.0.0.1]:23411", "another process may have failed first"),
        ("NCCL error in: x.cpp:12, internal error - please report", "NCCL_DEBUG=INFO"),
        ("something else", "the first all-reduce failed: something else"),
    ],
)
def test_a_failure_of_the_first_all_reduce_is_named(error, says):
    said = preflight.connection_failure(error)
    assert says in said and error in said and "\n" not in said


@pytest.mark.parametrize(("on_this_node", "says"), [("4", "peer access"), ("2", "nodes do not")])
def test_a_first_all_reduce_that_hangs_is_named(monkeypatch, on_this_node, says):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_node)
    assert says in preflight.connection_failure(f"{preflight.HANGS} within 180 s")


def test_dockers_default_of_shared_memory_is_refused():
    with pytest.raises(ConfigError, match="/dev/shm has 64 MB: .* --shm-size 8g"):
        preflight.check_shared_memory(64 << 20)
    preflight.check_shared_memory(8 << 30)


CONNECTS = """
import os, sys
import torch.distributed
from accelerate import PartialState
from job import preflight
PartialState(cpu=True, backend="gloo")
if sys.argv[2:] and os.environ["RANK"] == "1":
    preflight.rank = lambda: 7  # what a broken link between two GPUs would bring
try:
    print(preflight.preflight(), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow  # starts two processes that import torch
@pytest.mark.parametrize("is_broken", [False, True])
def test_two_processes_are_connected_or_say_why_not(tmp_path, is_broken):
    script = CONNECTS if not is_broken else CONNECTS.replace("sys.argv[2:] and ", "")
    launcher = started(tmp_path, script)
    said, errors = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, errors
    if is_broken:
        assert said.count("ConfigError the first all-reduce of 2 processes gave 9, not 3") == 2
    else:
        assert said.count("2 processes are connected by gloo, after ") == 2


FAILS_BEFORE = """
import os, sys
from accelerate import PartialState
from job import distributed, preflight
from job.errors import OutputError, exit_code_of
PartialState(cpu=True, backend="gloo")
def run():
    with distributed.telling_others():
        if os.environ["RANK"] == "0":
            raise OutputError("the disk is full")
        preflight.preflight()
sys.exit(exit_code_of(run))
"""


@pytest.mark.slow  # starts two processes that import torch
def test_who_failed_before_the_others_were_connected_is_named(tmp_path):
    launcher = started(tmp_path, FAILS_BEFORE)
    _, errors = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 4
    assert "error: the disk is full" in errors and "error: rank 0 has failed" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("grpo.optim=adamw_8bit", "grpo.optim: adamw_8bit is of bitsandbytes"),
        ("grpo.optim=paged_adamw_32bit", "grpo.optim: paged_adamw_32bit is of bitsandbytes"),
        ("model.backend=unsloth", "grpo.fsdp: Unsloth cannot shard a model"),
        ("grpo.optim=adamw_torch", None),
    ],
)
def test_what_cannot_be_sharded_is_refused(monkeypatch, override, says):
    monkeypatch.setenv("WORLD_SIZE", "2")
    job = ["model.backend=transformers", "grpo.optim=adamw_torch", "grpo.fsdp=true", override]
    if says is None:
        load_config(TINY, job)
        return
    with pytest.raises(ConfigError, match=says):
        load_config(TINY, job)


SHARDS = """
import os
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer
from job.config import TINY_MODEL, load_config
from job.distributed import whole_weights
from job.run_folder import RunFolder
PartialState(cpu=True, backend="gloo")
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
wanted = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
assert whole_weights(model) is None
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
weights = whole_weights(model)
assert weights.keys() == wanted.keys()
assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
if os.environ["RANK"] == "0":
    folder = RunFolder(load_config(overrides=[f"grpo.output_dir={os.environ['OUT']}"]))
    with folder:
        folder.save_final(model, AutoTokenizer.from_pretrained(TINY_MODEL), weights)
    from safetensors.torch import load_file
    saved = load_file(folder.final_model / "adapter_model.safetensors")
    assert len(saved) == len(wanted) > 0
    for name, weight in saved.items():
        assert torch.equal(weight, wanted[name.replace(".weight", ".default.weight")])
print("whole", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow  # starts two processes that import torch
def test_an_adapter_that_is_spread_over_processes_is_saved_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "run"))
    launcher = started(tmp_path, SHARDS)
    said, errors = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, errors
    assert said.count("whole") == 2


# ---- The whole job


REWARDS = """
import os, time
def ranked(completions, trainer_state, **kwargs):
    if os.environ.get("RANK") == "1" and trainer_state.global_step == 1:
        {does}
    return [float(i) for i in range(len(completions))]
"""


def start_training(tmp_path, *overrides, does="pass", gpus=2, **environment):
    (tmp_path / "ranked_rewards.py").write_text(REWARDS.replace("{does}", does))
    return subprocess.Popen(
        [
            sys.executable, "train.py", f"--gpus={gpus}", "--config", "configs/tiny.yaml",
            "task.type=code", "task.check=false", "evaluate.before=false", "evaluate.after=false",
            "grpo.report_to=[]", "grpo.max_steps=2", "grpo.save_steps=1",
            "task.rewards=[function_works, 'ranked_rewards:ranked']",
            f"grpo.output_dir={tmp_path / 'run'}", *overrides,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def train(tmp_path, *overrides, does="pass"):
    """Returns what a finished training has left: returncode, stdout and stderr."""
    process = start_training(tmp_path, *overrides, does=does)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def metrics(tmp_path):
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow  # trains in two processes
def test_two_processes_take_the_batch_of_one_and_write_everything_once(tmp_path):
    run = train(tmp_path)
    assert run.returncode == 0, run.stderr
    assert "an optimizer step: 16 completions of 2 prompts, 8 each; each of 2" in run.stdout
    assert re.search(r"\n2 processes are connected by gloo, after [\d.]+ s\n", run.stdout)
    assert run.stdout.count("step 1/2 ") == run.stdout.count("2 processes are connected") == 1
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2]
    tables = sorted((tmp_path / "run" / "completions").iterdir())
    assert len(tables) == 2
    import pandas

    assert [len(pandas.read_parquet(table)) for table in tables] == [16, 16]
    assert (tmp_path / "run" / "final_model" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "exit_code").read_text() == "0\n"
    assert run.stdout.index("are connected") < run.stdout.index("rollout:")


@pytest.mark.slow  # trains in two processes
def test_two_nodes_train_one_model(tmp_path):
    address = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "29655"}
    nodes = [
        start_training(tmp_path, gpus=1, PET_NODE_RANK=str(rank), **address) for rank in (0, 1)
    ]
    said = [node.communicate(timeout=PATIENCE_S) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "an optimizer step: 16 completions of 2 prompts, 8 each; each of 2" in said[0][0]
    assert "step 2/2 " in said[0][0] and "step" not in said[1][0]
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2]


@pytest.mark.slow  # trains in two processes
def test_a_slow_reward_on_one_rank_outlasts_the_timeout_of_collectives(tmp_path):
    # Every collective may take 3 s, and the reward of rank 1 takes 8.
    run = train(tmp_path, "grpo.ddp_timeout=3", does="time.sleep(8)")
    assert run.returncode == 0, run.stderr
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2]


@pytest.mark.slow  # trains in two processes
def test_a_reward_that_fails_on_one_rank_ends_all_with_its_exit_code(tmp_path):
    run = train(tmp_path, does="raise ValueError('broken')")
    assert run.returncode == 3
    assert "error: reward function ranked raised ValueError: broken" in run.stderr
    assert "error: rank 1 has failed; its message says why" in run.stderr
    assert "Traceback" not in run.stderr
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()


# ---- Sharding


def test_a_sharded_model_is_not_put_on_one_gpu(monkeypatch):
    import torch

    from job.model import placement

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert placement() == {"device_map": {"": 1}}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert placement() == {"device_map": None}


# ---- train.sh


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus"], "--gpus needs a number"),
        (["--gpus", "0"], "--gpus takes a number above 0, not '0'"),
        (["--gpus=two"], "--gpus takes a number above 0, not 'two'"),
        (["--gpus", "2", "check.py"], "--gpus goes with train.py only"),
    ],
)
def test_train_sh_refuses_what_is_no_number_of_gpus(arguments, says):
    run = subprocess.run(
        ["bash", ROOT / "train.sh", "--smoke", *arguments], capture_output=True, text=True
    )
    assert run.returncode == 2 and says in run.stderr
