"""Runs model-written code in locked-down child processes; returns values and timings, never a
verdict.

    with Sandbox(workers=2) as sandbox, sandbox.open(code, "matmul") as program:
        run = program.call([A, B])

This file is the trainer's side. `jail.py` is the far side: the fork servers (`python -I -S`, no
environment, nothing of the trainer in them), the policy table, the lock, and the loop that runs in
each child. One file per side shows at a glance which code is still believed. Both need the standard
library only.

Covered

- Each `open` forks one child of a clean server. Before it reads any code it takes a session of its
  own, a parent-death signal and rlimits (CPU, address space, stack, no file growth, no core, one
  descriptor, no processes); becomes undumpable; gives up all capabilities and new privileges;
  handles every Landlock right and allows none; and keeps 21 system calls: no open, exec, clone,
  kill, socket or executable memory. Its only descriptor is the socket to the trainer; environment
  and working directory are empty, the latter is already deleted (or / where there is no writable
  place; no path can be reached either way).
- Inputs travel as copies; expected values never do. Replies are plain data, parsed here in linear
  time under caps of size, depth and integer length. A reply that comes before its request ends the
  program.
- Budgets are CPU time by the kernel's clock, read from outside, so a busy machine does not change
  what a program may do. A wall clock backs them up for programs that sleep or wait, and where
  the kernel refuses the clock (which then shows 0). Both hold for a whole exchange. At either the
  child is SIGKILLed, and it is gone when `close` returns. `idle_cpu_s` shows work between calls.
- Findings arrive before the program's next instruction, and a program has nothing that could take
  them back. It can forge some, against itself.
- Children die with their server, servers with the trainer (end of file, or a changed parent within
  1 s). A dead server is started again; the program that it took along answers DIED.

Not covered

- Holes of the kernel in the calls that are left; side channels of shared hardware (timing, caches).
- A program may use its CPU and memory limits in full: `workers` times `memory_mb` should fit the
  machine, and `memory_mb` for each session that is open. Memory is limited as address space; page
  tables and socket buffers come on top.
- Findings are words about what was attempted, for a penalty; containment does not rest on them. An
  attack that computes its names at run time may fail without being named. One that gets hold of
  ctypes by such names and writes into its own memory could silence later findings, not those
  before.
- Inside its process a program can forge any result that it could have returned, and remember its
  inputs: ask with fresh inputs and judge every value here. A result may hold NaN, inf and integers
  of 4300 digits.
- `random` starts from the same seed in every child; the order of sets of strings differs between
  servers.

Where the machine does not offer a layer (`Sandbox.missing` says why), the others still hold;
seccomp is the floor and is required by default.
"""

import fcntl
import json
import marshal
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, cycle
from pathlib import Path

from sandbox.jail import FINDING, HEADER, LENGTH, MAX_DEPTH, MAX_FINDINGS, MAX_TEXT, READY

JAIL = Path(__file__).with_name("jail.py")
LAYERS = [
    "session",
    "undumpable",
    "no_new_privs",
    "capabilities",
    "landlock",
    "descriptors",
    "rlimits",
    "seccomp",
]
START_TIMEOUT_S = 60.0  # a fork server imports 50 modules; a busy machine may need long
SERVER_TIMEOUT_S = 30.0  # for a fork, or for the end of a killed child
MAX_INT_DIGITS = 4300  # Python's own default for text to int
WALL_FACTOR = 6.0  # a wall clock backstop, as a multiple of the CPU budget that it stands behind
# Each wall clock limit, and the CPU budget that it stands behind
CPU_BUDGETS = {"timeout_s": "call_cpu_s", "total_timeout_s": "cpu_s"}
LEAST_WAIT_S = 0.002  # between two looks at a child's CPU clock


class SandboxError(RuntimeError):
    """Our fault, never the completion's: a fork server cannot be started, or a required layer is
    missing."""


class Status(StrEnum):
    """How loading or a call ended."""

    OK = "ok"
    SYNTAX_ERROR = "syntax_error"  # cannot be parsed
    NO_FUNCTION = "no_function"  # loaded, but the entry point is not there
    CRASH = "crash"  # raised
    TIMEOUT = "timeout"  # a CPU budget, or the wall clock behind it; the error says which
    MEMORY = "memory"  # MemoryError
    BAD_RESULT = "bad_result"  # not plain data, too large, too deep, or a forged reply
    DIED = "died"  # the process ended: os._exit, a fatal signal, a forbidden call
    NO_FINAL = "no_final"  # nothing was run: the completion did not get to its answer (chat.py)
    BAD_ROW = "bad_row"  # nothing was run: a row that check.py could not read
    # A completion with tools went on past a budget, after it was told so
    OUT_OF_CALLS = "out_of_calls"
    OUT_OF_TURNS = "out_of_turns"
    OUT_OF_CPU = "out_of_cpu"
    OUT_OF_TOKENS = "out_of_tokens"  # or it no longer fits max_completion_length


# What a child may say of itself
REPORTABLE = frozenset(
    {
        Status.OK,
        Status.SYNTAX_ERROR,
        Status.NO_FUNCTION,
        Status.CRASH,
        Status.MEMORY,
        Status.BAD_RESULT,
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one completion may use."""

    call_cpu_s: float = 5.0  # CPU: for loading, and for each call
    cpu_s: float = 20.0  # CPU: over the whole life of a program
    # Wall clock, for programs that sleep or wait: for loading, and for each call
    timeout_s: float = 30.0
    total_timeout_s: float = 120.0  # wall clock: for loading and all calls of one program together
    memory_mb: int = 512  # address space beyond that of the bare interpreter
    result_kb: int = 2048  # one reply

    def __post_init__(self):
        wrong = [name for name in Limits.__slots__ if not 0 < getattr(self, name) < math.inf]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: must be above 0 and finite")


@dataclass(frozen=True, slots=True)
class Run:
    """One call. `value` is plain data, and None unless `status` is OK; tuples arrive as lists. An
    OK run has an `error` only if the program changed its arguments, which are copies."""

    status: Status
    value: object = None
    error: str = ""
    # The child's CPU from before the request to after the reply, by the kernel's clock
    cpu_s: float = 0.0
    wall_s: float = 0.0
    idle_cpu_s: float = 0.0  # the child's CPU between the reply before and this request


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """`text` without control, escape, bidi and surrogate characters, capped at `limit`
    characters."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:limit]
    )


# Matches wherever it starts: linear time
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))  # 255 is -1 as a signed byte
# A child sends UTF-8; this could be a surrogate
_LONG_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*+\\u(?!00)")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError(f"integer of more than {MAX_INT_DIGITS} digits")
    return int(digits)


def parse_json(data: bytes):
    """Plain data from untrusted bytes, in linear time and bounded depth. Raises ValueError."""
    steps = memoryview(_STRING.sub(b"", data).translate(_STEPS, _NOT_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > MAX_DEPTH + 1:  # the reply is itself a list
        raise ValueError(f"reply nested deeper than {MAX_DEPTH}")
    if _LONG_ESCAPE.search(data):
        raise ValueError("escape in a reply")
    return json.loads(data.decode(), parse_int=_parse_int)


def parse_reply(text: bytes, raw: bytes) -> tuple[Status, str, object]:
    """(status, error, value) of one reply: a JSON list of these three, whose value is the number of
    columns when a float64 matrix follows in `raw`. Raises ValueError for anything else."""
    match parse_json(text):
        case [str(status), str(error), value] if status in REPORTABLE:
            pass
        case _:
            raise ValueError("reply of an unknown form")
    if raw:
        if type(value) is not int or value < 1 or len(raw) % (8 * value):
            raise ValueError("matrix of an impossible shape")
        numbers = array("d", raw).tolist()
        value = [numbers[i : i + value] for i in range(0, len(numbers), value)]
    return Status(status), clean(error), value if status == Status.OK else None


class _Stopped(Exception):
    """A limit was reached; the text says which."""


@dataclass(frozen=True, slots=True)
class _Deadline:
    """When an exchange with a child is stopped: by its CPU clock, or by the wall clock behind
    it."""

    wall_s: float  # by time.monotonic
    cpu_ns: float  # by the child's clock
    wall_text: str
    cpu_text: str


class _Server:
    """One fork server. Its children are reaped only when asked for, so a pid stays theirs until
    then."""

    def __init__(self):
        self.lock = threading.Lock()
        self.generation = 0
        self.process = None
        self.closed = False
        self.report: dict[str, str] = {}

    def start(self):
        """Start the process and learn which layers hold: report is {layer: "" or why it does
        not}."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.generation += 1
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(JAIL)],
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={},
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                raise SandboxError(f"cannot start a fork server: {error}") from error
        try:
            report = self._receive(START_TIMEOUT_S)
        except OSError as error:
            self.process.kill()
            text = clean(self.process.communicate()[1].decode(errors="replace")[-MAX_TEXT:])
            self.stop()
            raise SandboxError(f"a fork server did not start: {error}: {text}") from error
        if self.report and report != self.report:
            self.stop()
            raise SandboxError(f"a restarted fork server has other layers than before: {report}")
        self.report = report

    def _receive(self, timeout_s: float):
        self.control.settimeout(timeout_s)
        data = self.control.recv(65536)
        if not data:
            raise ConnectionError("the fork server is gone")
        return json.loads(data)

    def _ask(self, request: dict, descriptors=()):
        """The server's answer. Raises OSError when the server is dead. Whatever is raised, it is
        stopped, because an answer left unread would be taken for the next one."""
        try:
            self.control.settimeout(SERVER_TIMEOUT_S)
            socket.send_fds(self.control, [json.dumps(request).encode()], descriptors)
            return self._receive(SERVER_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def fork(self, limits: dict, descriptor: int) -> tuple[int, int]:
        """(pid, generation) of a new child that holds `descriptor`. A dead server is replaced
        once."""
        with self.lock:
            for _ in range(2):
                if self.closed:
                    raise SandboxError("the sandbox is closed")
                if self.process is None:
                    self.start()
                with suppress(OSError):
                    pid = self._ask({"op": "open", "limits": limits}, [descriptor])
                    if type(pid) is not int:
                        raise SandboxError(pid)
                    return pid, self.generation
        raise SandboxError("the fork server died twice in a row")

    def wait(self, pid: int, generation: int) -> int | None:
        """Exit code of a killed child (negative: signal); None when it died with its server."""
        with self.lock:
            if self.process is None or generation != self.generation:
                return None
            try:
                return self._ask({"op": "wait", "pid": pid})
            except OSError:
                return None

    def stop(self):
        """End the server and, through it, all its children."""
        if self.process is not None:
            self.control.close()
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
            self.process = None


class Program:
    """One loaded completion in its own process. Use it from one thread, and close it.

    `status` and `error` tell how loading ended, `load_cpu_s` how much CPU it took, `output` what a
    script has printed, `findings` what the policy noticed, in words (a call may add to them); `pid`
    is the child's.
    """

    def __init__(
        self,
        server: _Server,
        limits: Limits,
        code: str,
        entry_point: str,
        plain_subclasses: bool,
        setup: str = "",
        stdin: str | None = None,
    ):
        self._server, self._limits, self._ended, self._open = server, limits, None, True
        # the kernel's own limit stands behind ours, which looks at the clock only now and then
        server_limits = {"cpu_s": math.ceil(limits.cpu_s) + 1, "memory_mb": limits.memory_mb}
        self._left_s = limits.total_timeout_s
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self.pid, self._generation = server.fork(server_limits, theirs.fileno())
        except BaseException:
            self._socket.close()
            raise
        self._clock = (~self.pid << 3) | 2  # CPUCLOCK_SCHED of a process, see man 2 clock_getres
        self._cpu_ns = self._idle_since_ns = 0
        self._pidfd = None
        # Absent or refused: the pid is ours until it is waited for
        with suppress(OSError, AttributeError):
            self._pidfd = os.pidfd_open(self.pid)
        self.findings: tuple[str, ...] = ()
        try:
            self._await_lock()
            run = self._exchange((code, entry_point, plain_subclasses, setup, stdin))
        except BaseException:
            self.close()
            raise
        self.status, self.error, self.output = run.status, run.error, run.value
        self.load_cpu_s = run.cpu_s

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, args: list, timeout_s: float | None = None, cpu_s: float | None = None) -> Run:
        """Call the entry point with plain data. `cpu_s` and `timeout_s` replace the limits of a
        call, in CPU and wall clock seconds. Raises ValueError when `args` are not plain. A program
        that failed to load, or ended in an earlier call, answers with that status."""
        if self.status != Status.OK:
            return Run(self.status, error=self.error)
        return self._exchange(args, timeout_s, cpu_s)

    def cpu_s(self) -> float:
        """CPU seconds of the child since it was forked, by the kernel's clock."""
        return self._read_clock() / 1e9

    def pin(self, cpu: int) -> bool:
        """Bind the child to one processor; False where the kernel refuses, or the child has
        ended."""
        with suppress(OSError):
            if self._open:
                os.sched_setaffinity(self.pid, {cpu})
                return True
        return False

    def close(self):
        """Kill the child and wait until it is gone."""
        self._end()
        self._socket.close()

    def _read_clock(self) -> int:
        if self._open:
            with suppress(OSError):
                self._cpu_ns = time.clock_gettime_ns(self._clock)
        return self._cpu_ns

    def _deadline(self, cpu_ns: int, timeout_s: float | None, cpu_s: float | None) -> _Deadline:
        """The deadline of an exchange that begins when the child has used `cpu_ns`."""
        timeout_s = self._limits.timeout_s if timeout_s is None else timeout_s
        cpu_s = self._limits.call_cpu_s if cpu_s is None else cpu_s
        wall_text = f"{timeout_s:g} s of wall clock"
        if timeout_s > self._left_s:
            timeout_s, wall_text = (
                self._left_s,
                f"{self._limits.total_timeout_s:g} s of wall clock in total",
            )
        end_ns, cpu_text = cpu_ns + cpu_s * 1e9, f"{cpu_s:g} s of CPU"
        if end_ns > self._limits.cpu_s * 1e9:
            end_ns, cpu_text = self._limits.cpu_s * 1e9, f"{self._limits.cpu_s:g} s of CPU in total"
        return _Deadline(time.monotonic() + timeout_s, end_ns, wall_text, cpu_text)

    def _exchange(self, request, timeout_s: float | None = None, cpu_s: float | None = None) -> Run:
        data = marshal.dumps(request)
        if self._ended:
            return Run(*self._ended)
        status, error, value = Status.OK, "", None
        wall, cpu = time.perf_counter(), self._read_clock()
        idle_cpu_s = (cpu - self._idle_since_ns) / 1e9
        deadline = self._deadline(cpu, timeout_s, cpu_s)
        try:
            self._refuse_early_bytes()
            self._send(LENGTH.pack(len(data)) + data, deadline)
            reply = self._read_reply(deadline)
            cpu_after, wall_after = self._read_clock(), time.perf_counter()
            if cpu_after > deadline.cpu_ns:  # before anybody looked
                raise _Stopped(deadline.cpu_text)
            status, error, value = parse_reply(*reply)
        except _Stopped as limit:
            status, error = Status.TIMEOUT, f"stopped after {limit}"
        except OSError:
            status = Status.DIED
        except (ValueError, RecursionError) as problem:
            status, error = Status.BAD_RESULT, clean(str(problem), 200)
        # An interrupt between request and reply: the two would not match any more
        except BaseException:
            self._ended = Status.DIED, None, "interrupted"
            raise
        else:
            self._idle_since_ns = cpu_after
            self._left_s -= wall_after - wall
            return Run(status, value, error, (cpu_after - cpu) / 1e9, wall_after - wall, idle_cpu_s)
        code = self._end()
        if status == Status.DIED:
            status, error = self._post_mortem(code)
        self._ended = status, None, error
        return Run(
            status, None, error, (self._cpu_ns - cpu) / 1e9, time.perf_counter() - wall, idle_cpu_s
        )

    def _await_lock(self):
        self._socket.settimeout(SERVER_TIMEOUT_S)
        try:
            said = self._socket.recv(200)
        except OSError as error:
            said = str(error).encode()
        if said != READY:
            raise SandboxError(
                f"a child could not lock itself: {said.decode(errors='replace') or 'it died'}"
            )

    def _refuse_early_bytes(self):
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            if self._socket.recv(1, socket.MSG_PEEK):
                raise ValueError("reply before the request")
            raise ConnectionError

    def _send(self, data: bytes, deadline: _Deadline):
        """Send a request. A child that does not take it is stopped by the wall clock."""
        self._socket.settimeout(max(deadline.wall_s - time.monotonic(), LEAST_WAIT_S))
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise _Stopped(deadline.wall_text) from None

    def _wait_s(self, deadline: _Deadline) -> float:
        """How long nobody need look at the child. Raises _Stopped when a limit is reached.

        A child cannot use more CPU than there is time, so its clock is read again once the rest of
        its budget could be spent. Where the kernel refuses the clock, it stands still, and the wall
        clock alone counts."""
        wall_left_s = deadline.wall_s - time.monotonic()
        cpu_left_s = (deadline.cpu_ns - self._read_clock()) / 1e9
        if cpu_left_s <= 0:
            raise _Stopped(deadline.cpu_text)
        if wall_left_s <= 0:
            raise _Stopped(deadline.wall_text)
        return min(wall_left_s, max(cpu_left_s, LEAST_WAIT_S))

    def _read(self, size: int, deadline: _Deadline) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._socket.settimeout(self._wait_s(deadline))
            try:
                chunk = self._socket.recv(min(size - len(data), 1 << 20))
            except TimeoutError:
                continue  # to look at the clocks
            if not chunk:
                raise ConnectionError
            data += chunk
        return bytes(data)

    def _read_reply(self, deadline: _Deadline) -> tuple[bytes, bytes]:
        """The two parts of the next reply; the findings that come before it are kept."""
        for _ in range(MAX_FINDINGS + 1):
            size, raw_size = HEADER.unpack(self._read(HEADER.size, deadline))
            is_finding = raw_size == FINDING
            if is_finding:
                raw_size = 0
            if size + raw_size > self._limits.result_kb * 1024:
                raise ValueError(f"result larger than {self._limits.result_kb} KB")
            data = self._read(size + raw_size, deadline)
            if not is_finding:
                return data[:size], data[size:]
            self.findings += (clean(data.decode(errors="replace"), 200),)
        raise ValueError("too many findings")

    def _end(self) -> int | None:
        """Kill the child, wait for it, and return its exit code."""
        if not self._open:
            return None
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
        elif self._generation == self._server.generation:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._read_clock()
        self._open = False
        return self._server.wait(self.pid, self._generation)

    def _post_mortem(self, code: int | None) -> tuple[Status, str]:
        if code is None:
            return Status.DIED, "the fork server was killed"
        if code >= 0:
            return Status.DIED, f"the process exited with status {code}"
        if -code == signal.SIGXCPU or self._cpu_ns >= self._limits.cpu_s * 1e9:
            return Status.TIMEOUT, f"stopped after {self._limits.cpu_s:g} s of CPU"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Status.DIED, f"the process was ended by {name} or closed its connection"


def cpu_quota() -> int:
    """CPUs that the container's or job's control group grants, rounded up; very many where it sets
    no limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(math.ceil(int(quota) / int(period)), 1)
    return 1 << 20


def default_workers() -> int:
    """One for each CPU that this process may use, as far as its control group grants them."""
    return min(len(os.sched_getaffinity(0)), cpu_quota())


class Processors:
    """The CPUs of this machine for timings: each is lent to one timing at a time.

    Args:
        first: position of the CPU to lend first, so that processes of a pool begin with different
        ones. lock_descriptor: a file that the processes of a pool share. Byte n of it is locked
        while CPU n is lent, because
            two processes cannot share a queue. None: this process is the only one.
    """

    def __init__(self, first: int = 0, lock_descriptor: int | None = None):
        cpus = sorted(os.sched_getaffinity(0))
        start = first % len(cpus)
        self._lock_descriptor = lock_descriptor
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for cpu in cpus[start:] + cpus[:start]:
            self._idle.put(cpu)

    @contextmanager
    def lend(self) -> Iterator[int]:
        """The number of a CPU that no other timing has meanwhile; timings take turns when there are
        more of them."""
        cpu = self._idle.get()
        try:
            if self._lock_descriptor is None:
                yield cpu
                return
            fcntl.lockf(self._lock_descriptor, fcntl.LOCK_EX, 1, cpu)
            try:
                yield cpu
            finally:
                fcntl.lockf(self._lock_descriptor, fcntl.LOCK_UN, 1, cpu)
        finally:
            self._idle.put(cpu)


class Sandbox:
    """A pool of fork servers; `open` may be called from several threads at once.

    `layers` are those in force, `missing` says why others are not, `str()` tells both in one line.
    Raises SandboxError when a server cannot be started or lacks a layer that `require` names."""

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        require: Sequence[str] = ("seccomp",),
        processors: Processors | None = None,
    ):
        self.workers = workers or default_workers()
        self.limits = limits or Limits()
        self._processors = processors or Processors()
        self._lock = threading.Lock()
        self._servers = [_Server() for _ in range(self.workers)]
        self._turns = cycle(self._servers)
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(_Server.start, self._servers))
            reports = [server.report for server in self._servers]
            self.missing = {
                layer: why for report in reports for layer, why in report.items() if why
            }
            self.layers = tuple(layer for layer in reports[0] if layer not in self.missing)
            for layer in require:
                if layer not in self.layers:
                    why = self.missing.get(
                        layer, f"there is none of that name, but {', '.join(reports[0])}"
                    )
                    raise SandboxError(f"sandbox layer {layer} is required but missing: {why}")
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        missing = "; ".join(f"{layer} ({why})" for layer, why in self.missing.items()) or "none"
        layers = ", ".join(self.layers)
        return f"sandbox: {len(self._servers)} servers; layers: {layers}; missing: {missing}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def open(
        self,
        code: str,
        entry_point: str,
        limits: Limits | None = None,
        *,
        plain_subclasses: bool = False,
        setup: str = "",
        stdin: str | None = None,
    ) -> Program:
        """Load `code` in a fresh locked child. With `plain_subclasses`, results of subclasses of
        plain types (an IntEnum member, a NamedTuple, a str that lies about being equal) come back
        as the plain value that they hold; otherwise they are a BAD_RESULT. `setup` runs before
        the program, in its namespace: imports and functions that it may use. With `stdin`, the code
        is a script that reads this text from its standard input; it runs while it is loaded, and
        has no entry point. Raises SandboxError only when no child can be had."""
        with self._lock:
            server = next(self._turns)
        return Program(
            server, limits or self.limits, code, entry_point, plain_subclasses, setup, stdin
        )

    def processor(self) -> AbstractContextManager[int]:
        """The number of a CPU for a timing; see Processors.lend."""
        return self._processors.lend()

    def close(self):
        """End every fork server and every program."""
        for server in self._servers:
            with server.lock:
                server.closed = True
                server.stop()
