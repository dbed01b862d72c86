"""A SLURM of one node on this machine, for tests: everything of it is in one folder."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE_S = 60

# https://slurm.schedmd.com/slurm.conf.html. Nothing here needs a control group, a data base, or
# another user than the one who runs the tests.
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port_of_node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:1 State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextlib.contextmanager
def cluster(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Starts the daemons, yields the environment for sbatch and the like, and ends them.

    Args:
        port: this one and the next are listened to.
    """
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o700)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    values = dict(folder=folder, port=port, port_of_node=port + 1, user=user, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(CONF.format(**values))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = [
        [
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid",
            f"--seed-file={folder}/munge/seed", f"--log-file={folder}/munge/log",
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "localhost"],
    ]  # fmt: skip
    running = []
    try:
        for daemon in daemons:
            running.append(
                subprocess.Popen(
                    daemon,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=(folder / f"{daemon[0]}.err").open("w"),
                )
            )
            wait_for_file(folder / "munge" / "socket")
        wait_for_node(environment, folder)
        yield environment
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def wait_for_file(file: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.05)


def wait_for_node(environment: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True
        )
        if asked.stdout.strip() == "idle":
            return
        said = "".join(file.read_text()[-2000:] for file in folder.glob("*.err"))
        assert time.monotonic() < end, f"SLURM did not start: {asked.stderr}{said}"
        time.sleep(0.2)
