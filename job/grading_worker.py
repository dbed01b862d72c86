"""The program of a grading process; grading_pool.py starts it and says what it is for."""

import ctypes
import signal
import sys
from multiprocessing.connection import Connection

PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serve one trainer: its sys.path, a Start, then (Job or Step, seconds after which this process
    ends itself)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # end with the trainer, whatever runs
    connection = Connection(descriptor)
    sys.path[:] = connection.recv()
    import tasks
    from job.episodes.episode import Player
    from job.errors import GradeError
    from job.grading_pool import Failure, Step, advance_here, grade_error, grade_here
    from job.interruption import STOP_SIGNALS
    from sandbox import Processors, Sandbox, SandboxError

    # A scheduler may send a signal to every process. The trainer, which hears it as well, may still
    # need this one and its sandbox for the step that it finishes.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    start = connection.recv()
    tasks.__path__[:] = start.task_folders
    tasks.FILES.update(start.task_files)
    for name in start.task_files:
        tasks.load(name)  # so that pickle finds the classes in it
    try:
        processors = Processors(start.number, start.lock_descriptor)
        sandbox = Sandbox(1, start.limits, start.require, processors)
    except SandboxError as error:
        connection.send(Failure(str(error), is_of_sandbox=True))
        return
    with sandbox:
        layers = str(sandbox).partition("; ")[2]  # behind the number of its servers
        connection.send(layers)
        player = Player(sandbox)
        while True:
            try:
                work, limit_s = connection.recv()
            except EOFError:  # the trainer has ended
                return
            # The kernel's own action on SIGALRM ends the process even while Python's lock is held.
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            try:
                if isinstance(work, Step):
                    answer = advance_here(work, player)
                else:
                    answer = grade_here(work, sandbox)
            except SandboxError as error:
                answer = Failure(str(error), is_of_sandbox=True)
            except GradeError as error:
                answer = Failure(str(error), is_of_sandbox=False)
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                connection.send(answer)
            except Exception as error:  # of any type: the task chose what is in `data`
                what = f"returned a Grade that cannot be sent to another process: {error}"
                job = work.job if isinstance(work, Step) else work
                text = str(grade_error(job, what, job.completion))
                connection.send(Failure(text, is_of_sandbox=False))


if __name__ == "__main__":
    main(int(sys.argv[1]))
