"""interruption.py, alarms.py: what a signal and a deadline do at each moment of a run."""

import dataclasses
import os
import signal
import time
from types import SimpleNamespace

import pytest

from job import interruption
from job.alarms import clear_alarm, set_alarm
from job.callbacks import Interrupts
from job.config import load_config
from job.errors import ConfigError
from job.interruption import DEADLINE, STOP_SIGNALS, Interruption, Stopped, deadline_of
from job.rewards import RewardError, time_limit

OPTIONS = load_config().train


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it, and alarms that ring when they are told."""
    now = SimpleNamespace(s=1000.0, alarms={})

    def ring():
        for at, call in list(now.alarms.values()):
            if at <= now.s:
                call()

    now.ring = ring
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now.s)
    monkeypatch.setattr(
        interruption, "set_alarm", lambda name, at, call: now.alarms.__setitem__(name, (at, call))
    )
    monkeypatch.setattr(interruption, "clear_alarm", lambda name: now.alarms.pop(name, None))
    return now


def hear(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def step(running, clock, seconds=1.0):
    """A whole step. Returns whether the run is to end after it."""
    running.begin_step()
    clock.s += seconds
    running.begin_update()
    return running.end_step()


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(("requeue", "code"), [(False, None), (True, 75)])
def test_before_training_the_run_ends_at_once(clock, number, requeue, code, capsys):
    with Interruption(dataclasses.replace(OPTIONS, requeue=requeue)):
        hear(number)
        with pytest.raises(Stopped) as stopped:
            clock.ring()
    assert stopped.value.code == (code or 128 + number)
    assert f"{signal.Signals(number).name}: the run stops" in capsys.readouterr().err


def test_the_first_step_is_given_up_at_once_and_a_later_one_is_finished(clock):
    with Interruption(OPTIONS) as running:
        running.begin_step()
        hear()
        with pytest.raises(Stopped):
            clock.ring()
    with Interruption(OPTIONS) as running:
        assert not step(running, clock)
        running.begin_step()
        hear()
        clock.ring()
        running.begin_update()
        assert running.end_step()


def test_a_step_that_outlasts_the_grace_is_given_up_in_time_to_save(clock):
    with Interruption(dataclasses.replace(OPTIONS, grace_s=100.0)) as running:
        step(running, clock)
        running.saved(30.0)
        running.begin_step()
        hear()
        clock.s += 100 - 30 - interruption.MARGIN_S - 1
        clock.ring()
        clock.s += 1
        with pytest.raises(Stopped):
            clock.ring()


def test_weights_that_change_are_never_left_half_changed(clock):
    with Interruption(OPTIONS) as running:
        running.begin_step()
        running.begin_update()
        hear()
        clock.s += 1000
        clock.ring()
        assert not running.weights_are_whole
        assert running.end_step() and running.weights_are_whole


def test_a_second_signal_ends_the_process_and_an_echo_of_the_first_does_not(clock):
    sent = []
    with Interruption(OPTIONS) as running, pytest.MonkeyPatch.context() as patch:
        step(running, clock)
        hear()
        hear()  # from torchrun, say, which was told as well
        patch.setattr(interruption.os, "kill", lambda *what: sent.append(what))
        clock.s += interruption.ECHO_S
        running._hear(signal.SIGINT, None)
        assert sent == [(os.getpid(), signal.SIGINT)]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interruption(OPTIONS) as running:
            hear(signal.SIGHUP)
            assert running.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_before_are_put_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Interruption(OPTIONS):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_deadline_leaves_time_for_a_step_and_a_save(clock):
    margin = interruption.MARGIN_S
    with Interruption(OPTIONS, deadline_s=1000.0 + 10 + 25 + margin + 25) as running:
        assert not step(running, clock, seconds=10)  # 25 s + save are left for a step of 10 s
        running.saved(25.0)
        assert not step(running, clock, seconds=5)
        clock.s += 11
        assert step(running, clock, seconds=1)
        assert running.received == DEADLINE and running.exit_code() == 143


def test_a_step_that_runs_into_the_deadline_is_given_up(clock):
    with Interruption(OPTIONS, deadline_s=1000.0 + interruption.MARGIN_S + 5) as running:
        running.begin_step()
        clock.s += 5
        with pytest.raises(Stopped):
            clock.ring()
        assert running.reason() == "the deadline"


def test_the_deadline_is_the_configs_or_slurms():
    soon = time.time() + 600
    slurm = {"SLURM_JOB_END_TIME": str(int(soon))}
    assert deadline_of(OPTIONS, slurm) - time.monotonic() == pytest.approx(600, abs=5)
    assert deadline_of(OPTIONS, {}) is None
    assert deadline_of(OPTIONS, {"SLURM_JOB_END_TIME": "Unknown"}) is None
    own = dataclasses.replace(OPTIONS, deadline_minutes=1e6)
    assert deadline_of(own, slurm) - time.monotonic() > 10 * 600


@pytest.mark.parametrize(
    "override",
    [
        "deadline_minutes=0",
        "grace_s=-1",
        "grace_s=.inf",
        "reward_timeout_s=0",
        "keep_best=-1",
        "requeue=maybe",
    ],
)
def test_values_that_cannot_be_are_refused(override):
    with pytest.raises(ConfigError, match=rf"train\.{override.partition('=')[0]}"):
        load_config(None, [f"train.{override}"])


def test_several_alarms_share_the_timer_and_ring_until_they_are_cleared():
    rung = []
    set_alarm("late", time.monotonic() + 600, lambda: rung.append("late"))
    set_alarm("soon", time.monotonic() + 0.01, lambda: rung.append("soon"))
    while not rung:
        time.sleep(0.01)
    assert signal.getitimer(signal.ITIMER_REAL)[0] <= 1.0  # it rings again
    clear_alarm("soon")
    assert rung == ["soon"] and signal.getitimer(signal.ITIMER_REAL)[0] > 500
    clear_alarm("late")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("hang", ["wait", "retry"])
def test_a_reward_function_that_hangs_is_named(hang):
    def judge():
        while True:
            try:
                time.sleep(600 if hang == "wait" else 0.001)
                raise ConnectionError
            except Exception:  # as code that tries again for ever
                continue

    said = r"judge took more than 0.05 s.*test_interruption\.py"
    with pytest.raises(RewardError, match=said), time_limit("judge", 0.05):
        judge()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with time_limit("judge", None):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_all_processes_stop_when_one_was_told(clock, monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: [*values, 15])
    with Interruption(OPTIONS) as running:
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback = Interrupts(running)
        for size, told in ((1, False), (2, True)):
            running.begin_step()
            callback.on_step_end(SimpleNamespace(world_size=size), None, control)
            assert control.should_save == control.should_training_stop == told
    assert running.received == signal.SIGTERM


def test_a_worker_hears_its_parent_alone():
    ready, told = os.pipe()
    worker = os.fork()
    if worker == 0:
        interruption.obey_parent_alone()
        os.write(told, b"1")
        time.sleep(600)
        os._exit(1)
    os.read(ready, 1)
    stranger = os.fork()
    if stranger == 0:
        for number in STOP_SIGNALS:
            os.kill(worker, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    ended = (0, 0)
    while ended[0] == 0:  # a signal that is still pending swallows another of its kind
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.01)
        ended = os.waitpid(worker, os.WNOHANG)
    assert ended == (worker, 0)
