"""Starts train.py once for each GPU, through torchrun, on one node or on several.

`python train.py --gpus 2` is one process that starts two and waits for them. Where one process is
enough, nothing is started: the run happens in this one.

torchrun ends with 1 whatever its processes ended with. So the exit code is read from the file
`exit_code` of the output folder, into which the first process to end writes its own.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import STOPPED_BY_SIGNAL, UNFORESEEN, ConfigError, JobError, one_line

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # handed on to the processes
PORT = 29500  # torchrun's own
PORTS = 10000  # of SLURM jobs that share a node
# After its grace a process still writes its report and ends its sandbox.
AFTER_GRACE_S = 60


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    count: int = 1
    rank: int = 0  # of this node
    host: str = "127.0.0.1"  # the first node
    port: int = PORT


@dataclass(frozen=True)
class Launch:
    """How many processes are to be started."""

    processes: int  # on this node
    nodes: Nodes

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes.count

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Within this context the config is checked and planned for all processes."""
        if self.world_size == 1:
            yield
            return
        before = os.environ.get("WORLD_SIZE")
        os.environ["WORLD_SIZE"] = str(self.world_size)
        try:
            yield
        finally:
            os.environ.pop("WORLD_SIZE")
            if before is not None:
                os.environ["WORLD_SIZE"] = before

    def torchrun(self) -> list[str]:
        """The options of torchrun."""
        options = [f"--nproc-per-node={self.processes}", f"--signals-to-handle={SIGNALS}"]
        if self.nodes.count == 1:
            # A container without a network has no name that could be looked up.
            return [*options, "--standalone", "--local-addr=127.0.0.1"]
        return [
            *options,
            f"--nnodes={self.nodes.count}",
            f"--node-rank={self.nodes.rank}",
            f"--master-addr={self.nodes.host}",
            f"--master-port={self.nodes.port}",
        ]


# ---- How many there are


def plan_launch(gpus: int | None, environ: Mapping[str, str] = os.environ) -> Launch:
    """What `--gpus`, the scheduler and this machine ask for.

    Args:
        gpus: processes on this node; None: as many as the scheduler says, or as there are GPUs.

    Raises:
        ConfigError: if there are fewer GPUs, or if the scheduler's variables make no sense.
    """
    # A launcher has started this process already, or a dry run is told of a launcher to come
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return Launch(1, Nodes())
    nodes = nodes_of(environ)
    visible = visible_gpus()
    processes = gpus
    if processes is None:
        processes = processes_of(environ) or visible or 1
    if processes < 1:
        raise ConfigError(f"--gpus: must be above 0, not {processes}")
    if 0 < visible < processes:
        raise ConfigError(f"--gpus: {processes} are asked for, but {visible} are visible here")
    return Launch(processes, nodes)


def visible_gpus() -> int:
    """Number of GPUs that this process may use. PyTorch is only asked where there may be one."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]
    if not devices or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    import torch

    return torch.cuda.device_count()


def hide_other_gpus(environ: MutableMapping[str, str] = os.environ) -> None:
    """Leave the first GPU to the only process of a run, before CUDA is started.

    The trainer of transformers would split each batch over all that are visible (DataParallel).
    """
    if "RANK" not in environ and visible_gpus() > 1:
        environ["CUDA_VISIBLE_DEVICES"] = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def processes_of(environ: Mapping[str, str]) -> int | None:
    """Processes on each node as Kubeflow Trainer says it; None: one for each GPU."""
    said = environ.get("PET_NPROC_PER_NODE", "")
    return int(said) if said.isdecimal() else None


def nodes_of(environ: Mapping[str, str]) -> Nodes:
    """The nodes that the variables of Kubeflow Trainer (PET_...) or of SLURM name.

    https://docs.pytorch.org/docs/stable/elastic/run.html, https://slurm.schedmd.com/srun.html

    Raises:
        ConfigError: if they make no sense.
    """
    if "PET_NNODES" in environ:
        return nodes_of_kubeflow(environ)
    if "SLURM_STEP_NUM_NODES" in environ:
        return nodes_of_slurm(environ)
    return Nodes()


def nodes_of_kubeflow(environ: Mapping[str, str]) -> Nodes:
    count = number(environ, "PET_NNODES")
    if count == 1:
        return Nodes()
    host = environ.get("PET_MASTER_ADDR")
    if not host:
        raise ConfigError(f"PET_NNODES is {count}, but PET_MASTER_ADDR, the first node, is not set")
    rank = number(environ, "PET_NODE_RANK")
    if rank >= count:
        raise ConfigError(f"PET_NODE_RANK: must be below PET_NNODES ({count}), not {rank}")
    return Nodes(count, rank, host, number(environ, "PET_MASTER_PORT", str(PORT)))


def nodes_of_slurm(environ: Mapping[str, str]) -> Nodes:
    count = number(environ, "SLURM_STEP_NUM_NODES")
    tasks = number(environ, "SLURM_STEP_NUM_TASKS", str(count))
    if tasks != count:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {count} nodes, but one for each node is right: it "
            "starts a process for each GPU itself; take --ntasks-per-node=1"
        )
    if count == 1:
        return Nodes()
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    return Nodes(
        count=count,
        rank=number(environ, "SLURM_NODEID"),
        host=first_host(hosts),
        # Another job on the same node has another number.
        port=PORT + number(environ, "SLURM_JOB_ID", "0") % PORTS,
    )


def number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    """The number that a variable holds.

    Raises:
        ConfigError: if it holds none.
    """
    said = environ.get(name, default)
    if not said.isdecimal():
        raise ConfigError(f"{name}: must be a number, not {said!r}")
    return int(said)


def first_host(nodes: str) -> str:
    """The first host of a node list as SLURM writes it: "gpu[03-07,12],login1" -> "gpu03".

    Raises:
        ConfigError: if the list is empty.
    """
    first = re.match(r"([^\[,\s]+)(?:\[(\d+)[^\]]*\]([^\[,\s]*))?", nodes)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST: names no node: {nodes!r}")
    prefix, index, suffix = first.groups(default="")
    return prefix + index + suffix


# ---- Starting them


def start(launch: Launch, command: Sequence[str], exit_code: Path, grace_s: float) -> int:
    """Run `command` in all processes of this node. Returns the exit code of the job.

    Args:
        command: a Python script and its arguments.
        exit_code: the file into which the first process to end writes its exit code.
        grace_s: from a signal to the end of a process, at most.

    Raises:
        JobError: if the other nodes do not come.
    """
    import psutil
    import torch.distributed.run as torchrun
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    prepare_environment(launch)
    timeout = f"--shutdown-timeout={int(grace_s + AFTER_GRACE_S)}"
    exit_code.unlink(missing_ok=True)  # of an earlier run
    others = psutil.Process().children()
    try:
        torchrun.main([*launch.torchrun(), timeout, *command])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return read_exit_code(exit_code, failure.exitcode)
    except SignalException as error:
        return read_exit_code(exit_code, -error.sigval)
    except DistError as error:
        nodes = launch.nodes
        raise JobError(
            f"node {nodes.rank} of {nodes.count} did not meet the others at {nodes.host}:"
            f"{nodes.port}; start the same command on every node ({one_line(error)})"
        ) from error
    finally:
        # Signal upon signal, torchrun would leave its processes to themselves.
        for name in SIGNALS.split(","):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        for child in psutil.Process().children():
            if child not in others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
    return 0


def prepare_environment(launch: Launch) -> None:
    """What each process is to find in its environment, unless the user has set it."""
    cores = len(os.sched_getaffinity(0)) // launch.processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores, 1)))
    if launch.nodes.count == 1:
        # The processes of one node need no network, and a container may have none.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


def read_exit_code(file: Path, of_process: int) -> int:
    """The number in the file; if there is none, as the shell says how a process ended.

    Args:
        of_process: its exit code, or the negative number of the signal that ended it.
    """
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    if of_process < 0:
        return STOPPED_BY_SIGNAL - of_process
    return of_process or UNFORESEEN
