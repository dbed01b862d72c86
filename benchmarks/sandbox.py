"""What the sandbox costs: `python benchmarks/sandbox.py` prints a table. For Linux."""

import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sandbox import Limits, Sandbox, Status  # noqa: E402

TRIVIAL = "def f(x):\n    return x\n"
RAW = "import random\nos = random._os\n"
HOSTILE = [  # each ends at once, so that a thousand take seconds
    RAW + "def f(x):\n    os._exit(0)\n",
    RAW + "def f(x):\n    os.write(0, b'\\xff' * 65536)\n",
    RAW + "def f(x):\n    os.fork()\n",
    RAW + "def f(x):\n    os.abort()\n",
    "def f(x):\n    return 'x' * (3 << 20)\n",
    "def f(x):\n    y = []\n    y.append(y)\n    return y\n",
    "def f(x):\n    return bytearray(1 << 40)\n",
    "def f(x):\n    raise SystemExit\n",
    "import numpy\n",
    "def f(:",
]


def run(sandbox, code=TRIVIAL, value=0):
    with sandbox.open(code, "f") as program:
        return program.call([value])


def sessions_ms(sandbox, count):
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        run(sandbox)
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)


def interpreter_ms(count=30):
    """Starting an interpreter, the median: a measure of the machine."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def per_second(sandbox, threads, seconds=3.0):
    def work(_):
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            run(sandbox)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / seconds


def call_ms(sandbox, value, count=2000):
    with sandbox.open(TRIVIAL, "f") as program:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            program.call([value])
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def overshoot_ms(sandbox, code, limit_s=0.2, count=10):
    """How long after the limit a program that never ends is gone; the worst of `count`."""
    worst = 0.0
    for _ in range(count):
        with sandbox.open(code, "f") as program:
            begin = time.perf_counter()
            assert program.call([0], cpu_s=limit_s).status == Status.TIMEOUT
        worst = max(worst, time.perf_counter() - begin - limit_s)
    return worst * 1e3


def footprint(sandbox):
    """(descriptors, threads, processes below us, resident MB) of this process."""
    servers = [server.process.pid for server in sandbox._servers]
    below = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            below += int(stat.read_text().rpartition(")")[2].split()[1]) in (os.getpid(), *servers)
        except OSError:
            continue
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), below, pages * 4096 / 2**20


def main():
    cpus = len(os.sched_getaffinity(0))
    with Sandbox(workers=cpus, limits=Limits(call_cpu_s=2, memory_mb=256)) as sandbox:
        print(sandbox, f"on {cpus} CPUs, Python {sys.version.split()[0]}\n")
        print("| measured | figure |\n|---|---|")
        sessions_ms(sandbox, 20)
        times = sessions_ms(sandbox, 300)
        median, start = statistics.median(times), interpreter_ms()
        print(f"| isolated run of a trivial function, median | {median:.1f} ms |")
        ratio = f"{median:.1f} / {start:.1f} ms = {median / start:.2f}"
        print(f"| the same / a start of `python -I -S -c pass` | {ratio} |")
        print(f"| the same, p99 | {times[int(0.99 * len(times))]:.1f} ms |")
        print(f"| isolated runs a second, {cpus} threads | {per_second(sandbox, cpus):.0f} |")
        print(
            f"| isolated runs a second, {2 * cpus} threads | {per_second(sandbox, 2 * cpus):.0f} |"
        )
        print(f"| one more call of an open program | {call_ms(sandbox, 0):.3f} ms |")
        board, matrix = [[2] * 6] * 6, [[1.5] * 96] * 96
        with_board_ms = call_ms(sandbox, board)
        print(f"| the same with a 6 × 6 board of integers each way | {with_board_ms:.3f} ms |")
        print(f"| the same with 96 × 96 floats each way | {call_ms(sandbox, matrix, 300):.2f} ms |")
        loop = "def f(x):\n    while True:\n        try:\n            while True: pass\n"
        loop += "        except: pass\n"
        late_ms = overshoot_ms(sandbox, loop)
        print(f"| from the time limit to a loop's end, worst of 10 | {late_ms:.1f} ms |")
        big = "x = bytearray(b'1') * (200 << 20)\n" + loop
        print(f"| the same with 200 MB held | {overshoot_ms(sandbox, big):.1f} ms |")
        for code in HOSTILE:
            run(sandbox, code)
        before = footprint(sandbox)
        begin = time.perf_counter()
        for i in range(1000):
            run(sandbox, HOSTILE[i % len(HOSTILE)])
        seconds, after = time.perf_counter() - begin, footprint(sandbox)
        print(f"| 1,000 hostile runs | {seconds:.0f} s |")
        names = ("descriptors", "threads", "processes", "resident MB")
        for name, a, b in zip(names, before, after, strict=True):
            print(f"| {name} before and after these | {a:.4g} → {b:.4g} |")


if __name__ == "__main__":
    main()
