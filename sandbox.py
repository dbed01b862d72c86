"""Runs model-written code in locked-down child processes; returns values and timings, never a verdict.

with Sandbox(workers=2) as sandbox, sandbox.open(code, "matmul") as program:
    run = program.call([A, B])      # Run(status, value, error, cpu_s, wall_s, idle_cpu_s)
"""

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jail import HEADER, LENGTH, MAX_DEPTH, MAX_TEXT

JAIL = Path(__file__).with_name("jail.py")
START_TIMEOUT_S = 60.0  # a fork server imports 50 modules; a busy machine may need long
SERVER_TIMEOUT_S = 30.0  # for a fork, or for the end of a killed child
MAX_INT_DIGITS = 4300  # Python's own default for text to int


class SandboxError(RuntimeError):
    """Our fault, never the completion's: a fork server cannot be started, or a required layer is missing."""


class Status(StrEnum):
    """How loading or a call ended."""

    OK = "ok"
    SYNTAX_ERROR = "syntax_error"  # cannot be parsed
    NO_FUNCTION = "no_function"  # loaded, but the entry point is not there
    CRASH = "crash"  # raised
    TIMEOUT = "timeout"  # wall clock or CPU limit
    MEMORY = "memory"  # MemoryError
    BAD_RESULT = "bad_result"  # not plain data, too large, too deep, or a forged reply
    DIED = "died"  # the process ended: os._exit, a fatal signal, a forbidden call
    BAD_ROW = "bad_row"  # nothing was run: check.py could not read the row


REPORTABLE = frozenset(Status) - {Status.TIMEOUT, Status.DIED, Status.BAD_ROW}  # what a child may say of itself


@dataclass(frozen=True, slots=True)
class Limits:
    """What one completion may use."""

    timeout_s: float = 5.0  # wall clock: for loading, and for each call
    cpu_s: float = 60.0  # CPU over the whole life of a program, rounded up to seconds
    memory_mb: int = 512  # address space beyond that of the bare interpreter
    result_kb: int = 4096  # one reply


@dataclass(frozen=True, slots=True)
class Run:
    """One call. `value` is plain data, and None unless `status` is OK; tuples arrive as lists."""

    status: Status
    value: object = None
    error: str = ""
    cpu_s: float = 0.0  # the child's CPU from before the request to after the reply, by the kernel's clock
    wall_s: float = 0.0
    idle_cpu_s: float = 0.0  # the child's CPU between the reply before and this request


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """`text` without control, escape, bidi and surrogate characters, capped at `limit` characters."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # matches wherever it starts: linear time
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*+\\u(?!00)")  # the child sends UTF-8; this could spell a surrogate


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError(f"integer of more than {MAX_INT_DIGITS} digits")
    return int(digits)


def parse_json(data: bytes):
    """Plain data from untrusted bytes, in linear time and bounded depth. Raises ValueError."""
    skeleton = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH + 2):
        skeleton = skeleton.replace(b"[]", b"").replace(b"{}", b"")
    if skeleton:
        raise ValueError("reply nested too deeply or malformed")
    if _LONG_ESCAPE.search(data):
        raise ValueError("escape in a reply")
    return json.loads(data.decode(), parse_int=_parse_int)


def parse_reply(text: bytes, raw: bytes) -> tuple[Status, str, list[str], object]:
    """(status, error, findings, value) of one reply: a JSON list of these four, whose value is the number of
    columns when a float64 matrix follows in `raw`. Raises ValueError for anything else."""
    match parse_json(text):
        case [str(status), str(error), list(findings), value] if status in REPORTABLE:
            if not all(type(finding) is str for finding in findings):
                raise ValueError("findings are not text")
            findings = [clean(finding, 200) for finding in findings[:32]]
        case _:
            raise ValueError("reply of an unknown form")
    if raw:
        if type(value) is not int or value < 1 or len(raw) % (8 * value):
            raise ValueError("matrix of an impossible shape")
        numbers = array("d", raw).tolist()
        value = [numbers[i : i + value] for i in range(0, len(numbers), value)]
    return Status(status), clean(error), findings, value if status == Status.OK else None


class _Server:
    """One fork server. Its children are reaped only when asked for, so a pid stays theirs until then."""

    def __init__(self):
        self.lock = threading.Lock()
        self.live = 0
        self.generation = 0
        self.process = None

    def start(self) -> dict[str, str]:
        """Start the process; {layer: "" or why it is missing}."""
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
                raise SandboxError(f"cannot start a fork server: {error}") from error
        self.control.settimeout(START_TIMEOUT_S)
        try:
            return json.loads(self._receive())
        except OSError as error:
            self.process.kill()
            text = clean(self.process.communicate()[1].decode(errors="replace")[-MAX_TEXT:])
            self.stop()
            raise SandboxError(f"a fork server did not start: {error}: {text}") from error

    def _receive(self) -> bytes:
        data = self.control.recv(4096)
        if not data:
            raise ConnectionError("the fork server is gone")
        return data

    def ask(self, request: dict, descriptors=()):
        """Reply of the server. Raises OSError when it is dead; it is stopped then."""
        try:
            self.control.settimeout(SERVER_TIMEOUT_S)
            socket.send_fds(self.control, [json.dumps(request).encode()], descriptors)
            return json.loads(self._receive())
        except OSError:
            self.stop()
            raise

    def fork(self, limits: dict, descriptor: int) -> tuple[int, int]:
        """(pid, generation) of a new child that holds `descriptor`. A dead server is replaced once."""
        with self.lock:
            for _ in range(2):
                if self.process is None:
                    self.start()
                with suppress(OSError):
                    return self.ask({"op": "open", "limits": limits}, [descriptor]), self.generation
        raise SandboxError("the fork server died twice in a row")

    def wait(self, pid: int, generation: int) -> int | None:
        """Exit code of a killed child (negative: signal); None when it died with its server."""
        with self.lock:
            if self.process is None or generation != self.generation:
                return None
            try:
                return self.ask({"op": "wait", "pid": pid})
            except OSError:
                return None

    def stop(self):
        """End the server and, through it, all its children."""
        self.control.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
            self.process = None


class Program:
    """One loaded completion in its own process. Use it from one thread, and close it."""

    def __init__(self, server: _Server, limits: Limits, code: str, entry_point: str):
        self._server, self._limits, self._ended, self._open = server, limits, None, True
        server_limits = {"cpu_s": max(1, math.ceil(limits.cpu_s)), "memory_mb": limits.memory_mb}
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self.pid, self._generation = server.fork(server_limits, theirs.fileno())
        except BaseException:
            self._socket.close()
            server.live -= 1
            raise
        self._clock = (~self.pid << 3) | 2  # CPUCLOCK_SCHED of a process, see man 2 clock_getres
        self._cpu_ns = self._idle_since_ns = 0
        self._pidfd = None
        with suppress(OSError, AttributeError):  # absent or refused: the pid is ours until it is waited for
            self._pidfd = os.pidfd_open(self.pid)
        self.findings: tuple[str, ...] = ()
        run = self._exchange((code, entry_point), limits.timeout_s)
        self.status, self.error = run.status, run.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, args: list, timeout_s: float | None = None) -> Run:
        """Call the entry point with plain data. Raises ValueError when `args` are not; a program that failed to
        load, or ended in an earlier call, answers with that status."""
        if self.status != Status.OK:
            return Run(self.status, error=self.error)
        return self._exchange(args, self._limits.timeout_s if timeout_s is None else timeout_s)

    def cpu_s(self) -> float:
        """CPU seconds of the child since it was forked, by the kernel's clock."""
        return self._read_clock() / 1e9

    def pin(self, cpu: int) -> bool:
        """Bind the child to one processor; False where the kernel refuses."""
        try:
            os.sched_setaffinity(self.pid, {cpu})
        except OSError:
            return False
        return True

    def close(self):
        """Kill the child and wait until it is gone."""
        self._end()
        self._socket.close()

    def _read_clock(self) -> int:
        if self._open:
            with suppress(OSError):
                self._cpu_ns = time.clock_gettime_ns(self._clock)
        return self._cpu_ns

    def _exchange(self, request, timeout_s: float) -> Run:
        data = marshal.dumps(request)
        if self._ended:
            return Run(*self._ended)
        status, error, value = Status.OK, "", None
        wall, cpu = time.perf_counter(), self._read_clock()
        idle_cpu_s = (cpu - self._idle_since_ns) / 1e9
        deadline = time.monotonic() + timeout_s
        try:
            self._refuse_early_bytes()
            self._before(deadline).sendall(LENGTH.pack(len(data)) + data)
            sizes = HEADER.unpack(self._read(HEADER.size, deadline))
            if sum(sizes) > self._limits.result_kb * 1024:
                raise ValueError(f"result larger than {self._limits.result_kb} KB")
            reply = self._read(sum(sizes), deadline)
            cpu_after, wall_after = self._read_clock(), time.perf_counter()
            status, error, findings, value = parse_reply(reply[: sizes[0]], reply[sizes[0] :])
            self.findings += tuple(findings[: 64 - len(self.findings)])
        except TimeoutError:
            status, error = Status.TIMEOUT, f"stopped after {timeout_s:g} s"
        except OSError:
            status = Status.DIED
        except (ValueError, RecursionError) as problem:
            status, error = Status.BAD_RESULT, clean(str(problem), 200)
        else:
            self._idle_since_ns = cpu_after
            return Run(status, value, error, (cpu_after - cpu) / 1e9, wall_after - wall, idle_cpu_s)
        code = self._end()
        if status == Status.DIED:
            status, error = self._post_mortem(code)
        self._ended = status, None, error
        return Run(status, None, error, (self._cpu_ns - cpu) / 1e9, time.perf_counter() - wall, idle_cpu_s)

    def _refuse_early_bytes(self):
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            if self._socket.recv(1, socket.MSG_PEEK):
                raise ValueError("reply before the request")
            raise ConnectionError

    def _before(self, deadline: float) -> socket.socket:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._before(deadline).recv(min(size - len(data), 1 << 20))
            if not chunk:
                raise ConnectionError
            data += chunk
        return bytes(data)

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
        code = self._server.wait(self.pid, self._generation)
        self._server.live -= 1
        return code

    def _post_mortem(self, code: int | None) -> tuple[Status, str]:
        if code is None:
            return Status.DIED, "the fork server was killed"
        if code >= 0:
            return Status.DIED, f"the process exited with status {code}"
        if -code == signal.SIGXCPU or self._cpu_ns >= self._limits.cpu_s * 1e9:
            return Status.TIMEOUT, f"stopped after {self._limits.cpu_s:g} s of CPU"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Status.DIED, f"the process was ended by {name} or closed its connection"


class Sandbox:
    """A pool of fork servers. `open` may be called from several threads at once.

    Raises SandboxError when a server cannot be started, or lacks a layer that `require` names."""

    def __init__(self, workers: int | None = None, limits: Limits | None = None, require: Sequence[str] = ("seccomp",)):
        cpus = sorted(os.sched_getaffinity(0))
        self.workers = workers or len(cpus)
        self.limits = limits or Limits()
        self._idle_cpus = queue.SimpleQueue()
        for cpu in cpus:
            self._idle_cpus.put(cpu)
        self._lock = threading.Lock()
        self._servers = [_Server() for _ in range(self.workers)]
        try:
            reports = [server.start() for server in self._servers]
            self.missing = {layer: why for report in reports for layer, why in report.items() if why}
            self.layers = tuple(layer for layer in reports[0] if layer not in self.missing)
            for layer in require:
                if layer not in self.layers:
                    why = self.missing.get(layer, f"no such layer; there are {', '.join(reports[0])}")
                    raise SandboxError(f"sandbox layer {layer} is required but missing: {why}")
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        missing = "; ".join(f"{layer} ({why})" for layer, why in self.missing.items())
        return (
            f"sandbox: {len(self._servers)} fork servers, layers {', '.join(self.layers)}; missing: {missing or 'none'}"
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def open(self, code: str, entry_point: str, limits: Limits | None = None) -> Program:
        """Load `code` in a fresh locked child. Raises SandboxError only when no child can be had."""
        with self._lock:
            server = min(self._servers, key=lambda server: server.live)
            server.live += 1
        return Program(server, limits or self.limits, code, entry_point)

    @contextmanager
    def processor(self) -> Iterator[int]:
        """Number of a CPU that no other timing has meanwhile: timings take turns when there are more of them."""
        cpu = self._idle_cpus.get()
        try:
            yield cpu
        finally:
            self._idle_cpus.put(cpu)

    def close(self):
        """End every fork server and every program."""
        for server in self._servers:
            with server.lock:
                if server.process is not None:
                    server.stop()
