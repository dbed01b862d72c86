"""Connects the processes of a run before any weights are loaded.

What is wrong between two GPUs, or between two nodes, shows in seconds and has a name. The libraries
would find it after minutes of loading, and end with an error of NCCL, or not at all.
"""

import shutil
import time
from typing import Any

from job.distributed import (
    POLL_S,
    follow_failure,
    group_store,
    local_world_size,
    rank,
    world_size,
)
from job.errors import ConfigError, one_line

FIRST_SUM_S = 180.0  # the first all-reduce also connects the processes
SHARED_MEMORY_MB = 256  # NCCL takes a few buffers for each pair of GPUs; Docker's default is 64
HANGS = "it did not end"

REMEDIES = {
    "shared memory": (
        f"the processes need at least {SHARED_MEMORY_MB} MB of shared memory (docker run "
        "--shm-size 8g; in Kubernetes an emptyDir with medium: Memory at /dev/shm)"
    ),
    "peer access": (
        "the GPUs cannot read each other's memory (peer access); `nvidia-smi topo -m` shows how "
        "they are connected, and NCCL_P2P_DISABLE=1 goes through main memory instead"
    ),
    "one GPU": "two processes were given the same GPU; start one process for each GPU",
    "network": (
        "the nodes do not reach each other; name the network between them with "
        "NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME), and open its ports"
    ),
    "NCCL": "NCCL failed; NCCL_DEBUG=INFO says more",
    "a process": "another process may have failed first; its message says why",
}

# Words of an error in lower case -> the remedy. The first that fits counts.
CAUSES = (
    (("/dev/shm", "shared memory", "no space left"), "shared memory"),
    (("duplicate gpu",), "one GPU"),
    (("peer access", "p2p", "peer mapping"), "peer access"),
    (("connection closed by peer", "connection reset"), "a process"),
    (
        ("socket", "connection refused", "timed out", "no route", "connect to", "network"),
        "network",
    ),
    (("nccl",), "NCCL"),
)


def preflight() -> str:
    """Add up a number over all processes, which connects them. Returns a line that says so.

    What is wrong with the connection is so found in seconds, before minutes of loading.

    Raises:
        ConfigError: with what is wrong: shared memory, peer access, network, NCCL.
        JobError: if another process has failed.
    """
    from accelerate import PartialState

    state = PartialState()  # GRPOConfig has started the process group
    began = time.monotonic()
    try:
        if state.device.type == "cuda":
            check_shared_memory(shutil.disk_usage("/dev/shm").total)
        total = first_sum(state.device)
    except ConfigError:
        raise
    except Exception as error:  # NCCL's and gloo's are RuntimeErrors of several kinds
        follow_failure(group_store())
        raise ConfigError(connection_failure(one_line(error))) from error
    expected = world_size() * (world_size() + 1) // 2
    if total != expected:
        raise ConfigError(
            f"the first all-reduce of {world_size()} processes gave {total:g}, not {expected}: "
            f"{REMEDIES['peer access']}"
        )
    took = time.monotonic() - began
    return f"{world_size()} processes are connected by {state.backend}, after {took:.1f} s"


def first_sum(device: Any) -> float:
    """1 + 2 + ... over all processes, by an all-reduce on `device`.

    Raises:
        TimeoutError: if it does not end in time.
    """
    import torch
    from torch import distributed

    numbers = torch.full((1 << 18,), rank() + 1.0, device=device)  # 1 MB, which uses all channels
    work = distributed.all_reduce(numbers, async_op=True)
    end = time.monotonic() + FIRST_SUM_S
    while not work.is_completed():
        if time.monotonic() > end:
            raise TimeoutError(f"{HANGS} within {FIRST_SUM_S:g} s")
        time.sleep(POLL_S)
    work.wait()
    if not bool((numbers == numbers[0]).all()):
        return float("nan")
    return numbers[0].item()


def check_shared_memory(size: int) -> None:
    """Refuse a /dev/shm that NCCL would fill. It would end with SIGBUS, which says nothing.

    Raises:
        ConfigError: if `size`, in bytes, is too small.
    """
    if size < SHARED_MEMORY_MB << 20:
        raise ConfigError(f"/dev/shm has {size >> 20} MB: {REMEDIES['shared memory']}")


def connection_failure(error: str) -> str:
    """What an error of the first all-reduce means, in words.

    Args:
        error: the message of NCCL or gloo, on one line.
    """
    said = error.lower()
    if error.startswith(HANGS):
        # On one node this is what GPUs do that cannot reach each other through an IOMMU.
        cause = "peer access" if world_size() == local_world_size() else "network"
        return f"the first all-reduce failed: {REMEDIES[cause]} ({error})"
    for words, cause in CAUSES:
        if any(word in said for word in words):
            return f"the first all-reduce failed: {REMEDIES[cause]} ({error})"
    return f"the first all-reduce failed: {error}"
