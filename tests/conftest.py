"""What the tests share. Whatever takes seconds to start is started once a session."""

import contextlib
import dataclasses
import gc
import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a network
# Threads that share work on a tiny model mostly wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
# nohup ignores it, which a run respects, and tests send it
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import train  # noqa: E402
from job.report.live_report import LiveReport  # noqa: E402
from sandbox import Sandbox  # noqa: E402

# Hypothesis stops at 0.2 s an example by default, and no test may depend on the wall clock.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as running:
        yield running


@pytest.fixture(scope="session")
def run_job():
    """Runs train.py in this process, because a small job takes less time than importing its
    libraries. Returns what subprocess.run would: returncode, stdout, stderr. No report is drawn,
    and unless `evaluate` is true nothing is evaluated, because that takes as long as some of these
    jobs."""

    def run_job(*arguments, evaluate=False):
        if not evaluate:
            arguments = ("evaluate.before=false", "evaluate.after=false", *arguments)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            with (
                contextlib.chdir(Path(__file__).parent.parent),
                contextlib.redirect_stdout(stdout),
                contextlib.redirect_stderr(stderr),
                mock.patch.object(LiveReport, "refresh"),
            ):
                returncode = train.main([str(argument) for argument in arguments])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return SimpleNamespace(
            returncode=returncode, stdout=stdout.getvalue(), stderr=stderr.getvalue()
        )

    return run_job


class LimitedSandbox:
    """The shared sandbox with other limits for a program, and as many programs at once as `workers`
    says."""

    def __init__(self, sandbox, workers=None, **limits):
        self.sandbox, self.processor = sandbox, sandbox.processor
        self.workers = workers or sandbox.workers
        self.limits = dataclasses.replace(sandbox.limits, **limits)

    def open(self, code, entry_point, limits=None, **options):
        return self.sandbox.open(code, entry_point, limits or self.limits, **options)


@pytest.fixture
def quick_sandbox(sandbox):
    """Ends an endless loop after one second of CPU, on however busy a machine."""
    return LimitedSandbox(
        sandbox, call_cpu_s=1.0, cpu_s=20.0, timeout_s=60.0, total_timeout_s=3000.0
    )


@pytest.fixture
def impatient_sandbox(sandbox):
    """Ends every call after one second of wall clock: for hostile programs, many of which wait for
    ever."""
    return LimitedSandbox(sandbox, workers=6, timeout_s=1.0)


@pytest.fixture
def patient_sandbox(sandbox):
    """For programs that come to their end, on however busy a machine."""
    return LimitedSandbox(sandbox, timeout_s=300.0, total_timeout_s=3000.0)


@pytest.fixture(scope="session")
def times_as_much():
    """Returns a function that says how many times as much CPU time `work(more)` takes as
    `work(less)`. Of a few tries the least counts, because other programs on the machine only ever
    add to it."""

    def cpu_s(work, given):
        tries = []
        gc.disable()  # its work grows with all that the process holds
        for _ in range(3):
            began = time.process_time()
            work(given)
            tries.append(time.process_time() - began)
        gc.enable()
        return min(tries)

    def times_as_much(work, less, more):
        return cpu_s(work, more) / cpu_s(work, less)

    return times_as_much
