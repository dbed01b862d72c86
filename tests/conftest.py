import dataclasses
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from sandbox import Sandbox

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a network


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as running:
        yield running


@pytest.fixture
def run_job(capfd, monkeypatch):
    """Runs train.py in this process, because a small job takes less time than importing its
    libraries. Returns what subprocess.run would: returncode, stdout, stderr."""
    monkeypatch.chdir(Path(__file__).parent.parent)

    def run_job(*arguments):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        capfd.readouterr()
        try:
            returncode = train.main([str(argument) for argument in arguments])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return SimpleNamespace(
            returncode=returncode,
            **dict(zip(("stdout", "stderr"), capfd.readouterr(), strict=True)),
        )

    return run_job


class QuickSandbox:
    """The shared sandbox with one second for a call: the corpus holds many endless loops."""

    def __init__(self, sandbox):
        self.workers, self.processor, self.sandbox = sandbox.workers, sandbox.processor, sandbox
        self.limits = dataclasses.replace(sandbox.limits, timeout_s=1.0)

    def open(self, code, entry_point):
        return self.sandbox.open(code, entry_point, self.limits)


@pytest.fixture
def quick_sandbox(sandbox):
    return QuickSandbox(sandbox)
