"""Runs a task's `grade` in processes that can be killed: no completion can stall the trainer,
whatever it contains. The tools of answers that take several turns run there, too.

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
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from job.config import SandboxOptions
from job.distributed import local_rank, local_world_size, node_file, own_share
from job.episodes import episode
from job.episodes.episode import Answer, BadGrade, Player, Turn
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
class Step:
    """An episode up to its newest turn; its job has no completion."""

    job: Job
    batch: int  # of its episodes; those of an earlier one are dropped
    key: int  # of the episode in its batch
    turns: tuple[Turn, ...]
    ended: str = ""  # as in Player.advance
    findings: tuple[str, ...] = ()  # of cheating before the newest turn


@dataclass(frozen=True)
class Start:
    """What a worker is told first."""

    task_folders: list[str]
    task_files: dict[str, Path]  # of tasks outside them, by name
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
    with task_errors(job, job.completion):
        return episode.play(job.completion, job.row, job.options, sandbox, rng)


def advance_here(step: Step, player: Player) -> Answer:
    """What follows the newest turn of an episode, in this process.

    Raises:
        GradeError: if the task's own code raises, but for its tools.
    """
    job = step.job
    with task_errors(job, step.turns[-1].content):
        return player.advance(
            step.batch, step.key, job.options, job.row, job.entropy, step.turns, step.ended
        )


@contextmanager
def task_errors(job: Job, completion: Any) -> Iterator[None]:
    """Says which task failed, where, and on what."""
    try:
        yield
    except SandboxError:
        raise
    except BadGrade as error:
        raise grade_error(job, str(error), completion) from error
    except Exception as error:  # the task may be the user's own
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        what = f"raised {type(error).__name__}: {error} ({place})"
        raise grade_error(job, what, completion) from error


def grade_error(job: Job, what: str, completion: Any) -> GradeError:
    """The error for the user: what the `grade` of the task did, in words, and on what."""
    shown = repr(completion)[:SHOWN_CHARACTERS]
    return GradeError(f"task {job.options.type}: grade {what}\non the completion {shown}")


def checked(answer: Any) -> Any:
    """An answer of a worker, unless it is a Failure, which is raised."""
    if not isinstance(answer, Failure):
        return answer
    if answer.is_of_sandbox:
        raise SandboxError(answer.text)
    raise GradeError(answer.text)


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
        # Of each worker, the episodes that it is in the midst of: (batch, key)
        self._episodes: list[set[tuple[int, int]]] = [set() for _ in range(self.workers)]
        # A queue for each worker, so that turns which wait for one do not hold up the others
        self._queues = [
            ThreadPoolExecutor(1, thread_name_prefix="episodes") for _ in range(self.workers)
        ]
        self._changed = threading.Condition()
        self._idle: set[int] = set()  # numbers of workers
        try:
            with ThreadPoolExecutor(self.workers) as threads:
                list(threads.map(self._start, range(self.workers)))
        except BaseException:
            self.close()
            raise
        self._idle.update(range(self.workers))

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
        for waiting in self._queues:
            waiting.shutdown(wait=False, cancel_futures=True)
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
        with self._worker_number() as number:
            return checked(self._ask(number, job, job.options.type, self.timeout_s, "grading"))

    def advance(self, step: Step) -> Future[Answer]:
        """What follows the newest turn of an episode. An episode stays with one worker, which
        keeps what its tools need. If they take more than task.tool_timeout_s, it ends with the
        status `timeout`.

        The result raises as `grade` does.
        """
        number = step.key % self.workers
        return self._queues[number].submit(self._advance, step, number)

    def _advance(self, step: Step, number: int) -> Answer:
        options = step.job.options
        timeout_s = self.timeout_s  # of grading, if the episode ends
        if step.turns[-1].calls:
            timeout_s = min(options.tool_timeout_s, self.timeout_s)
        with self._worker_number(number):
            known = self._episodes[number]
            if any(batch != step.batch for batch, _ in known):
                known.clear()
            if (step.batch, step.key) not in known:
                timeout_s *= len(step.turns)  # a new worker plays all of them again
            answer = checked(self._ask(number, step, options.type, timeout_s, "a turn's tools"))
            if isinstance(answer, Answer):
                known.add((step.batch, step.key))
        if isinstance(answer, Grade):  # there was no answer
            findings = tuple(dict.fromkeys((*answer.cheating, *step.findings)))
            return Answer(grade=replace(answer, cheating=findings), findings=findings)
        return answer

    @contextmanager
    def _worker_number(self, wanted: int | None = None) -> Iterator[int]:
        """A worker that does nothing else meanwhile: this one, or any."""
        with self._changed:
            if wanted is None:
                self._changed.wait_for(lambda: self._idle)
                wanted = self._idle.pop()
            else:
                self._changed.wait_for(lambda: wanted in self._idle)
                self._idle.remove(wanted)
        try:
            yield wanted
        finally:
            with self._changed:
                self._idle.add(wanted)
                self._changed.notify_all()

    def _ask(self, number: int, work: Job | Step, task: str, timeout_s: float, what: str) -> Any:
        """The answer of a worker. A worker that something else has killed is replaced once."""
        for _ in range(2):
            try:
                worker = self._worker(number)
                worker.send((work, timeout_s + GRACE_S))
                return worker.receive(timeout_s)
            except TimeoutError:
                self._stop(number)
                detail = f"{what} took more than {timeout_s:g} s and was stopped"
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
            task_files=dict(tasks.FILES),
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
        self._episodes[number].clear()
        worker = self._running.pop(number, None)
        if worker is not None:
            worker.kill()
