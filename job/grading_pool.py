"""Runs a task's `grade` in processes that can be killed: no completion can stall the trainer,
whatever it contains.

A backtracking regex, or a computation without end, holds Python's lock. A thread that meets one
stops all others and cannot be stopped itself. Here it costs its own process. Past the deadline that
process is killed, its completion gets the status `timeout`, another process is started, and the
batch goes on.

This file is the trainer's side; grading_worker.py is the program of the processes. They run the
task's code, which is trusted, and never code that a model wrote, so their answers may be pickles.
Each has a sandbox of its own with one fork server. Each ends with the trainer, even in the middle
of a computation.
"""

import os
import queue
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from job.config import SandboxOptions
from job.distributed import local_rank, local_world_size, node_file, own_share
from job.errors import GradeError
from sandbox import Limits, Sandbox, SandboxError, Status, default_workers
from tasks import Grade, note_once

WORKER = Path(__file__).with_name("grading_worker.py")
START_TIMEOUT_S = 120.0  # a worker imports numpy and starts a sandbox; a busy machine may need long
GRACE_S = 5.0  # after its deadline a worker ends itself, should the trainer be unable to
# A program, and the baseline that it is timed against, may each take their total limit
DEADLINE_FACTOR = 2
SHOWN_CHARACTERS = 1000  # of a completion in a message


@dataclass(frozen=True)
class Job:
    """One completion to be graded."""

    options: tasks.Options
    completion: Any
    row: Mapping[str, Any]
    entropy: Sequence[int]  # seeds the random numbers that the task draws


@dataclass(frozen=True)
class Start:
    """What a worker is told first."""

    task_folders: list[str]
    limits: Limits
    require: Sequence[str]
    number: int  # it prefers the processor of that number for timings
    lock_descriptor: int  # see sandbox.Processors


@dataclass(frozen=True)
class Failure:
    """What a worker could not do, in words."""

    text: str
    is_of_sandbox: bool  # else the task's `grade` failed


def grade_here(job: Job, sandbox: Sandbox) -> Grade:
    """The task's Grade of one completion, in this process.

    Raises:
        GradeError: if the task's `grade` raises, or returns something else. An error of the
            sandbox is raised as it is.
    """
    rng = np.random.default_rng(list(job.entropy))
    try:
        graded = tasks.load(job.options.type).grade(
            job.completion, job.row, job.options, sandbox, rng
        )
    except SandboxError:
        raise
    except Exception as error:  # the task may be the user's own
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        raise grade_error(job, f"raised {type(error).__name__}: {error} ({place})") from error
    mistake = tasks.grade_mistake(graded)
    if mistake:
        raise grade_error(job, mistake)
    return graded


def grade_error(job: Job, what: str) -> GradeError:
    """The error for the user: what the `grade` of the task did, in words, and on what."""
    shown = repr(job.completion)[:SHOWN_CHARACTERS]
    return GradeError(f"task {job.options.type}: grade {what}\non the completion {shown}")


class Worker:
    """The trainer's end of one process."""

    def __init__(self, start: Start):
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-u", WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), start.lock_descriptor],
                start_new_session=True,  # a Ctrl-C in the terminal is for the trainer
            )
        self._connection.send(list(sys.path))  # `-I` hides PYTHONPATH and what was added since
        self._connection.send(start)

    def send(self, message: Any) -> None:
        self._connection.send(message)

    def receive(self, timeout_s: float) -> Any:
        """The worker's next answer.

        Raises:
            TimeoutError: if none comes in time.
            EOFError: if the worker has ended.
        """
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


class GradingPool:
    """A pool of workers. `grade` may be called from several threads at once.

    Args:
        workers: number of processes; None: one for each CPU.
        limits: of one program.
        require: layers of the sandbox without which nothing is run.
        timeout_s: wall clock of grading one completion; None: twice the total limit of a program.

    Raises:
        SandboxError: if a worker or its sandbox cannot start, or lacks a layer that `require`
        names.
    """

    def __init__(
        self,
        workers: int | None,
        limits: Limits,
        require: Sequence[str] = ("seccomp",),
        timeout_s: float | None = None,
    ):
        self.workers = workers or default_workers()
        self.timeout_s = timeout_s or DEADLINE_FACTOR * limits.total_timeout_s
        self._limits, self._require = limits, require
        self._lock_file = node_file("processors")
        self._lock_descriptor = self._open_lock()
        self._report = ""
        # A worker is killed when the thread that started it ends, so one thread that lives as long
        # as the pool starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starts graders")
        self._running: dict[int, Worker] = {}
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()  # numbers of workers
        try:
            with ThreadPoolExecutor(self.workers) as threads:
                list(threads.map(self._start, range(self.workers)))
        except BaseException:
            self.close()
            raise
        for number in range(self.workers):
            self._idle.put(number)

    @classmethod
    def of(cls, options: SandboxOptions) -> "GradingPool":
        """The pool that the config's `sandbox:` section asks for."""
        limits = Limits(**{name: getattr(options, name) for name in Limits.__slots__})
        workers = options.workers or own_share(default_workers())
        return cls(workers, limits, options.require, options.grade_timeout_s)

    def _open_lock(self) -> int:
        """A file for the locks of processors, shared with the other processes on this machine that
        train together: their timings take turns."""
        if local_world_size() == 1:
            return os.memfd_create("processors")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._lock_file, flags, mode=0o600)

    def __str__(self) -> str:
        return f"sandbox: {self.workers} grading processes; {self._report}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End every worker, and with it its sandbox."""
        for number in list(self._running):
            self._stop(number)
        self._starter.shutdown()
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1
            if local_rank() == 0:
                self._lock_file.unlink(missing_ok=True)

    def grade(self, job: Job) -> Grade:
        """The task's Grade of one completion, or one that says why there is none.

        Raises:
            GradeError: if the task's `grade` raises.
            SandboxError: if the sandbox fails.
        """
        number = self._idle.get()
        try:
            answer = self._ask(number, job)
        finally:
            self._idle.put(number)
        if not isinstance(answer, Failure):
            return answer
        if answer.is_of_sandbox:
            raise SandboxError(answer.text)
        raise GradeError(answer.text)

    def _ask(self, number: int, job: Job) -> Grade | Failure:
        """The answer of a worker. A worker that something else has killed is replaced once."""
        task = job.options.type
        for _ in range(2):
            try:
                worker = self._worker(number)
                worker.send((job, self.timeout_s + GRACE_S))
                return worker.receive(self.timeout_s)
            except TimeoutError:
                self._stop(number)
                detail = f"grading took more than {self.timeout_s:g} s and was stopped"
                note_once(f"task {task}: {detail}; such a completion gets the status timeout")
                return Grade(Status.TIMEOUT, detail=detail)
            except (EOFError, OSError):  # it is gone
                self._stop(number)
            except BaseException:  # an interrupt: the next answer would belong to this request
                self._stop(number)
                raise
        detail = "the process that graded it was killed twice"
        note_once(f"task {task}: {detail}; such a completion gets the status died")
        return Grade(Status.DIED, detail=detail)

    def _worker(self, number: int) -> Worker:
        running = self._running.get(number)
        if running is not None and running.is_alive():
            return running
        self._stop(number)
        self._start(number)
        return self._running[number]

    def _start(self, number: int) -> None:
        start = Start(
            task_folders=list(tasks.__path__),
            limits=self._limits,
            require=self._require,
            number=number + local_rank() * self.workers,
            lock_descriptor=self._lock_descriptor,
        )
        worker = self._starter.submit(Worker, start).result()
        self._running[number] = worker
        try:
            report = worker.receive(START_TIMEOUT_S)
        except (TimeoutError, EOFError, ConnectionError) as error:
            raise SandboxError(
                "a grading process did not start; see above for its words"
            ) from error
        if isinstance(report, Failure):
            raise SandboxError(report.text)
        self._report = report

    def _stop(self, number: int) -> None:
        worker = self._running.pop(number, None)
        if worker is not None:
            worker.kill()
