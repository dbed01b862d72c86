"""Do two answers mean the same? math-verify decides, in processes that end when a comparison hangs.

    Verifier().agree("1/2", r"\\frac{2}{4} of it")    # True, False, or None where it was stopped

Computer algebra on model-written text can take for ever (9^9^9^9) and cannot be interrupted from a
thread. Each comparison therefore runs in a worker process under a deadline, kept by the worker
itself (SIGALRM ends it, so none outlives the trainer) and by the trainer, which starts a new one.
Workers have no environment, may write no file and may use 2 GB.

Compared by value: integers, decimals, fractions, percentages, expressions, sets, intervals, in
plain text or LaTeX; yes/no and true/false. An expected answer that is none of these is compared as
text, without case and punctuation.
"""

import atexit
import functools
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
from decimal import Decimal

TIMEOUT_S = 3.0  # one comparison
START_TIMEOUT_S = 60.0
MEMORY_MB = 2048
MAX_CHARACTERS = 500  # of a text that is compared


def search_path() -> list[str]:
    """Where this process finds packages: `python -I` would not see those on PYTHONPATH."""
    return [os.path.abspath(folder) for folder in sys.path]


class Worker:
    """The trainer's end of one process."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                os.path.abspath(__file__),
                str(timeout_s),
                json.dumps(search_path()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        if self.read(START_TIMEOUT_S) != "ready":
            self.stop()
            raise RuntimeError(
                "math-verify cannot be started; is it installed (pip install -r requirements.txt)?"
            )

    def read(self, timeout_s: float):
        """The next line of the process, parsed; None if it ends or is late."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else b""
        return json.loads(line) if line.endswith(b"\n") else None

    def agree(self, expected: str, text: str) -> bool | None:
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([expected, text]).encode() + b"\n")
            self.process.stdin.flush()
            return self.read(self.timeout_s + 1.0)
        return None

    def stop(self):
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


class Verifier:
    """A pool of workers, started when needed; `agree` may be called from several threads at once."""

    def __init__(self, workers: int | None = None, timeout_s: float = TIMEOUT_S):
        self.timeout_s = timeout_s
        self._workers: queue.LifoQueue[Worker | None] = (
            queue.LifoQueue()
        )  # None: one that is yet to be started
        self.count = workers or len(os.sched_getaffinity(0))
        for _ in range(self.count):
            self._workers.put(None)

    def agree(self, expected: str, text: str) -> bool | None:
        """Whether `text` states the value `expected`; None if the comparison had to be stopped.

        Raises:
            RuntimeError: if math-verify cannot be started.
        """
        worker = self._workers.get()
        verdict = None
        try:
            if (
                worker is not None and worker.process.poll() is not None
            ):  # killed from outside since its last answer
                worker.stop()
                worker = None
            worker = worker or Worker(self.timeout_s)
            verdict = worker.agree(expected[:MAX_CHARACTERS], text[:MAX_CHARACTERS])
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

SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})
SCIENTIFIC = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][+-]?\d{1,3}(?!\w)")
MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b|\\\$|[*_`]{2,}|`")
WORD = re.compile(r"(?<!\\)\b[a-zA-Z]{3,}")  # prose rather than algebra


def tidy(text: str) -> str:
    text = MARKUP.sub("", text.translate(SIGNS)).strip().rstrip(".!?;")
    return SCIENTIFIC.sub(lambda number: format(Decimal(number[0]), "f"), text)


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def yes_or_no(text: str) -> str:
    text = re.sub(r"\btrue\b", "yes", plain(text))
    return re.sub(r"\bfalse\b", "no", text)


def readings(text: str) -> list[list]:
    """What math-verify makes of a text, read as prose and, where it could be algebra, as LaTeX."""
    from math_verify import parse

    found = [parse(text, parsing_timeout=None)]
    if "$" not in text and ("\\" in text or not WORD.search(text)):
        found.append(parse(f"${text}$", parsing_timeout=None))
    return [reading for reading in found if reading]


def choices(text: str, *words: str) -> list:
    """Which of the words math-verify finds in a text."""
    from math_verify import StringExtractionConfig, parse

    return parse(text, [StringExtractionConfig(strings=words)], parsing_timeout=None)


def agree(expected: str, text: str) -> bool:
    """Whether `text` states the value `expected`. Both are untrusted."""
    from math_verify import verify

    if yes_or_no(expected) in ("yes", "no"):
        said = yes_or_no(text)
        both = {"yes", "no"} <= set(said.split())
        return not both and verify(
            *(choices(word, "yes", "no") for word in (yes_or_no(expected), said))
        )
    expected, text = tidy(expected), tidy(text)
    if expected and expected.casefold() == text.casefold():
        return True
    if re.fullmatch("[A-E]", expected):
        return verify(
            *(choices(" ".join(re.findall(r"\w+", word)), *"ABCDE") for word in (expected, text))
        )
    if WORD.search(expected) and "\\" not in expected and not re.match(r"[-+$]?\d", expected):
        return plain(expected) == plain(text)  # words, perhaps with a number among them
    wanted = readings(expected)[
        -1:
    ]  # the algebraic reading knows 2x and (1, 2), where prose has only the number
    return any(
        verify(one, other, timeout_seconds=None) for one in wanted for other in readings(text)
    )


def main(timeout_s: float):
    """Answer [expected, text] lines with true or false; end by SIGALRM when one takes longer than
    `timeout_s`."""
    import logging

    import math_verify  # noqa: F401  before the limits, which the import might not survive

    logging.disable(logging.CRITICAL)
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        for kind, limit in (("AS", MEMORY_MB << 20), ("FSIZE", 0), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
        print('"ready"', file=replies, flush=True)
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            try:
                verdict = bool(agree(*json.loads(line)))
            except Exception:  # what math-verify cannot read or compare is not the expected answer
                verdict = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[2])
    main(float(sys.argv[1]))
