"""What ends a run before its last step: a signal, or a deadline.

What happens then depends on what the run is doing:

    loading, evaluating at the end    it ends at once; nothing is lost
    the first step                    it ends at once: nothing has been learned yet
    a later step                      the step is finished, and a checkpoint saved. If that takes
                                      longer than the grace, the step is given up, and the
                                      checkpoint is that of the step before
    updating weights, saving          never interrupted

A step that is given up is repeated by the run that resumes, with the same random numbers.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from omegaconf import MISSING

from job.alarms import clear_alarm, set_alarm
from job.errors import REQUEUE, STOPPED_BY_SIGNAL

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DEADLINE = signal.SIGALRM  # stands for the deadline where the number of a signal is expected
# A scheduler and a launcher may both tell a process. What follows this soon is no second signal.
ECHO_S = 2.0
# Between the end of saving and the end of the run: the report is written, the trackers are closed
MARGIN_S = 20.0


@dataclass(frozen=True)
class Options:
    """The `train:` section of the config."""

    # Whether a run that was ended asks, with exit code 75, to be started again
    requeue: bool = MISSING
    # From the start of the job. None: SLURM's end time, where there is one
    deadline_minutes: float | None = None
    # From a signal to the end of the run, at most
    grace_s: float = MISSING
    # For one call of a reward function
    reward_timeout_s: float | None = None
    # Checkpoints with the highest `best_metric` that are kept beside the last ones
    keep_best: int = MISSING
    best_metric: str = MISSING

    def __post_init__(self):
        mistakes = []
        for key in ("deadline_minutes", "grace_s", "reward_timeout_s"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                mistakes.append(f"{key}: must be above 0 and finite, not {value}")
        if self.keep_best < 0:
            mistakes.append(f"keep_best: must be 0 or more, not {self.keep_best}")
        if mistakes:
            raise ValueError("\n".join(mistakes))


class Stopped(SystemExit):
    """The run ends here and now. It is no Exception, so that no reward function catches it."""


class Interruption:
    """Hears signals and the deadline of one run.

        with Interruption(config.train) as interruption:
            ...                         # Stopped may be raised anywhere

    A signal that is ignored at the start, as nohup does with SIGHUP, stays so.

    Args:
        deadline_s: in seconds of time.monotonic(); None: there is none.
    """

    def __init__(self, options: Options, deadline_s: float | None = None):
        self.options, self.deadline_s = options, deadline_s
        self.received: int | None = None  # the signal that ended the run, or DEADLINE
        self.steps = 0  # that this process has finished
        self.longest_step_s = self.longest_save_s = 0.0
        self.can_give_up = True  # whether the run may end here and now
        self.weights_are_whole = True  # False while an optimizer changes them
        self._is_training = False
        self._heard = 0.0  # when the signal came, in seconds of time.monotonic()
        self._step_began: float | None = None
        self._before: dict[int, object] = {}  # the handlers that were there

    def __enter__(self) -> "Interruption":
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        self._set_deadline()
        return self

    def __exit__(self, *_) -> None:
        self.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """Raise nothing from here on, because the run ends."""
        clear_alarm("deadline")
        clear_alarm("grace")
        self.can_give_up = False

    # ---- What the trainer tells

    def begin_step(self) -> None:
        """A step begins. Until `begin_update` nothing changes that could not be given up."""
        self._is_training = True
        self._step_began = time.monotonic()
        self.can_give_up = True

    def begin_update(self) -> None:
        """Weights change, and what belongs to them is logged and saved."""
        self.can_give_up = self.weights_are_whole = False

    def end_step(self) -> bool:
        """The weights are updated. Returns whether the run is to be saved and to end."""
        self.steps += 1
        self.weights_are_whole = True
        if self._step_began is not None:
            self.longest_step_s = max(self.longest_step_s, time.monotonic() - self._step_began)
        if self.received is None and self._next_step_would_be_late():
            self.received = DEADLINE
            self._say("the deadline is near: a checkpoint is saved, and the run stops")
        return self.received is not None

    def end_training(self) -> None:
        """No step follows; final_model is whole at any time."""
        self._is_training = False
        self.can_give_up = True

    def saved(self, seconds: float) -> None:
        """A checkpoint was saved, which took so long."""
        self.longest_save_s = max(self.longest_save_s, seconds)
        self._set_deadline()

    # ---- Signals

    def _hear(self, number: int, frame: object) -> None:
        if self._heard:
            if time.monotonic() - self._heard < ECHO_S:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._heard = time.monotonic()
        self.received = number
        name = signal.Signals(number).name
        if not self._is_training or (self.steps == 0 and self.can_give_up):
            self._say(f"{name}: the run stops")
            set_alarm("grace", self._heard, self._give_up)
            return
        self._say(
            f"{name}: this step is finished and a checkpoint saved before the run stops, within "
            f"{self.options.grace_s:g} s; a second signal stops it at once, without a checkpoint"
        )
        patience_s = max(self.options.grace_s - self.longest_save_s - MARGIN_S, 0)
        set_alarm("grace", self._heard + patience_s, self._give_up)

    def _give_up(self) -> None:
        """End the run here, unless weights are changing. The alarm rings again then."""
        if self.can_give_up:
            raise Stopped(self.exit_code())

    def stop_here(self) -> None:
        """End the run if it is to end. Only for a place where nothing is under way."""
        if self.received is not None:
            self._give_up()

    # ---- The deadline

    def _last_moment_s(self) -> float:
        """When saving must begin at the latest."""
        return self.deadline_s - self.longest_save_s - MARGIN_S

    def _next_step_would_be_late(self) -> bool:
        if self.deadline_s is None:
            return False
        return time.monotonic() + self.longest_step_s > self._last_moment_s()

    def _set_deadline(self) -> None:
        if self.deadline_s is not None and self.received is None:
            set_alarm("deadline", self._last_moment_s(), self._meet_deadline)

    def _meet_deadline(self) -> None:
        """The step in progress, or the loading of the model, takes longer than there is time."""
        if self.received is None:
            self.received = DEADLINE
            self._say("the deadline is near: the run stops")
        self._give_up()

    # ---- The end

    def reason(self) -> str:
        """What ended the run, in words."""
        if self.received == DEADLINE:
            return "the deadline"
        return signal.Signals(self.received).name

    def exit_code(self) -> int:
        """75 to be started again, else 128 + the signal; a deadline counts as SIGTERM."""
        if self.options.requeue:
            return REQUEUE
        if self.received == DEADLINE:
            return STOPPED_BY_SIGNAL + signal.SIGTERM
        return STOPPED_BY_SIGNAL + self.received

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def deadline_of(options: Options, environment: Mapping[str, str]) -> float | None:
    """When the run must have ended, in seconds of time.monotonic(); None if it need not.

    Args:
        environment: may hold SLURM_JOB_END_TIME, seconds since 1970.
    """
    if options.deadline_minutes is not None:
        ends = psutil.Process().create_time() + 60 * options.deadline_minutes
    else:
        try:
            ends = float(environment["SLURM_JOB_END_TIME"])
        except (KeyError, ValueError):
            return None
    return ends - time.time() + time.monotonic()


def obey_parent_alone() -> None:
    """In a worker of the data loader: hear no signal but those of the process that started it.

    A scheduler may send a signal to all processes. The trainer still needs its workers then, and
    ends them itself.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def listen() -> None:
        while signal.sigwaitinfo(STOP_SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
