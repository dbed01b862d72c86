"""Is a conclusion the expected answer? conclusions/ decides what it can; math-verify does the rest,
where it can hang.

    Verifier().agree("1/2", r"\\frac12")    # True, False, or None where it was stopped

Computer algebra on model-written text can take for ever (9^9^9^9) and cannot be interrupted from a
thread. It therefore runs in a worker process with a budget of CPU time for each conclusion, which
the kernel counts (SIGPROF ends the worker, so none outlives the trainer for long). The trainer
waits a few times as long on the wall clock, then kills the worker and starts a new one. Workers
have no environment, may write no file and may use 2 GB.
"""

import atexit
import functools
import importlib.util
import json
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress

from sandbox import conclusions
from sandbox.conclusions import Ask

TIMEOUT_S = 3.0  # CPU time of the questions of one conclusion
WALL_FACTOR = 5  # how many times as long a busy machine may take for them
START_TIMEOUT_S = 120.0
MEMORY_MB = 2048
# The worker finds the packages that the trainer finds, wherever they are installed.
START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {} import main
main(float(sys.argv[2]))
"""
NOT_INSTALLED = (
    "math-verify is not installed, and this task compares answers with it; bring .venv up to date "
    "with `bash train.sh --setup`, or the image with `bash build.sh`"
)


def installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


class Worker:
    """The trainer's end of one process."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        path = json.dumps([os.path.abspath(folder) for folder in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", START.format(__name__), path, str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        if self.read(START_TIMEOUT_S) != "ready":
            self.stop()
            raise RuntimeError(
                f"math-verify cannot be started. {NOT_INSTALLED if not installed() else ''}".strip()
            )

    def read(self, timeout_s: float):
        """The next line of the process, parsed; None if it ends or is late."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else b""
        return json.loads(line) if line.endswith(b"\n") else None

    def all_hold(self, asks: tuple[Ask, ...]) -> bool | None:
        """Whether every question is answered with yes; None if that had to be stopped."""
        questions = [[ask.relation, ask.text, ask.other] for ask in asks]
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(questions).encode() + b"\n")
            self.process.stdin.flush()
            return self.read(self.timeout_s * WALL_FACTOR)
        return None

    def stop(self):
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


class Verifier:
    """A pool of workers, started when needed. Several threads may call `agree` at once."""

    def __init__(self, workers: int | None = None, timeout_s: float = TIMEOUT_S):
        self.timeout_s = timeout_s
        self._workers: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # None: not started yet
        self.count = workers or len(os.sched_getaffinity(0))
        for _ in range(self.count):
            self._workers.put(None)

    def agree(self, expected: str, text: str, question: str = "") -> bool | None:
        """Whether the conclusion `text` states the answer `expected`; None if the comparison had to
        be stopped.

        Args:
            question: what was asked, where it is known: its own expressions are no answers.

        Raises:
            RuntimeError: if math-verify is needed and cannot be started.
        """
        verdict = conclusions.compare(expected, text, question)
        if not verdict.agrees or not verdict.asks:
            return verdict.agrees
        return self.all_hold(verdict.asks)

    def all_hold(self, asks: tuple[Ask, ...]) -> bool | None:
        """Put questions to a worker; None if it had to be stopped."""
        worker = self._workers.get()
        verdict = None
        try:
            if (
                worker is not None and worker.process.poll() is not None
            ):  # killed from outside since its last answer
                worker.stop()
                worker = None
            worker = worker or Worker(self.timeout_s)
            verdict = worker.all_hold(asks)
        finally:
            if verdict is None and worker is not None:
                worker.stop()
                worker = None
            self._workers.put(worker)
        return verdict

    def close(self):
        for _ in range(self.count):
            worker = self._workers.get()
            if worker is not None:
                worker.stop()
            self._workers.put(None)


@functools.cache
def shared() -> Verifier:
    """The one pool of this process."""
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


# ------------------------------------------------------------ in the worker

# Unicode and plain text, written in LaTeX; tried where math-verify does not know the text as it is.
UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
        "∕": "/", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ",
        "θ": r"\theta ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
        "∅": r"\emptyset ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]++")
ROOT_SIGN = re.compile(r"√ ?(?:\(([^()]{0,200})\)|([0-9.]++|[a-zA-Z]))")
ROOT_WORD = re.compile(r"(?<![\\a-zA-Z])sqrt ?\(([^()]{0,200})\)")
NAME = re.compile(
    r"(?<![\\a-zA-Z])(?:arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|pi"
    r"|infty)(?![a-zA-Z])"
)


DERIVATIVE = re.compile(r"\bd ?/ ?d([a-z]) ?(?=[(\[])")


def in_latex(text: str) -> str:
    text = SUPERSCRIPT.sub(
        lambda run: "^{" + run[0].translate(SUPERSCRIPTS) + "}", text.replace("**", "^")
    )
    text = ROOT_SIGN.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = ROOT_WORD.sub(r"\\sqrt{\1}", text.translate(UNICODE))
    text = text.replace("infinity", r"\infty ")
    text = DERIVATIVE.sub(r"\\frac{d}{d\1}", text)
    return NAME.sub(r"\\\g<0> ", text)


def readings(text: str) -> list[list]:
    """What math-verify makes of a formula: as it is, and with its signs written in LaTeX."""
    from math_verify import parse

    texts = dict.fromkeys((text, in_latex(text)))
    found = [parse(f"${one}$", parsing_timeout=None) for one in texts]
    return [reading for reading in found if reading and not isinstance(reading[0], str)]


def holds(relation: str, text: str, other: str) -> bool:
    """Whether one Ask (conclusions/asks.py) is true. Both texts are untrusted."""
    from math_verify import verify

    if relation == "rounds":
        return rounds(text, other)
    for one in readings(text):
        for another in readings(other):
            if verify(one, another, timeout_seconds=None) or same_set(one[0], another[0]):
                return True
    return False


def rounds(text: str, other: str) -> bool:
    """Whether the value of `text` is as near to a value as "value;distance" says."""
    from sympy import N, Rational

    value, distance = (Rational(part) for part in other.split(";"))
    for reading in readings(text):
        exact = N(reading[0], 50)
        if exact.is_real and abs(exact - value) <= distance:
            return True
    return False


def same_set(one, other) -> bool:
    """Whether an interval or a union is what an inequality in one variable describes."""
    from sympy import Set
    from sympy.logic.boolalg import Boolean

    one, other = any_of(one), any_of(other)
    if isinstance(one, Boolean) and isinstance(other, Set):
        one, other = other, one
    if not isinstance(one, Set) or not isinstance(other, Boolean) or len(other.free_symbols) != 1:
        return False
    symbol = next(iter(other.free_symbols))
    return one == other.subs(symbol, real_symbol()).as_set()


def any_of(reading):
    """Several inequalities as one: that one of them holds."""
    from sympy import FiniteSet, Or
    from sympy.logic.boolalg import Boolean

    if isinstance(reading, FiniteSet) and all(isinstance(part, Boolean) for part in reading):
        return Or(*reading)
    return reading


def real_symbol():
    from sympy import Symbol

    return Symbol("x", real=True)


WARM_UP = [
    ("equal", r"\frac{1}{2}", "0.5"),
    ("equal", "x^2 - 2", "x^{2} - 2"),
    ("equal", "[0, 1]", "[0, 1]"),
]


def main(timeout_s: float):
    """Answer lines of [[relation, text, other], ...] with true or false, false at the first
    question that fails; end by SIGPROF when one line takes more than `timeout_s` of CPU time."""
    import logging

    import math_verify  # noqa: F401  before the limits, which the import might not survive

    logging.disable(logging.CRITICAL)
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        for question in WARM_UP:
            holds(*question)
        for kind, limit in (("AS", MEMORY_MB << 20), ("FSIZE", 0), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
        print('"ready"', file=replies, flush=True)
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_PROF, timeout_s)
            try:
                verdict = all(holds(*question) for question in json.loads(line))
            except Exception:  # what math-verify cannot read or compare is not the expected answer
                verdict = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(verdict), file=replies, flush=True)
