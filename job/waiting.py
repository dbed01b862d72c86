"""Says that something takes a while, so that nobody sits before a silent screen.

It goes to standard error, because standard output may be read by another program. Of several
processes the first one speaks.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from job.distributed import is_first_process

EVERY_S = 10


@contextlib.contextmanager
def waiting(what: str, so_far: Callable[[], str] | None = None) -> Iterator[None]:
    """Print what begins, every EVERY_S seconds that it still goes on, and how long it took.

    Args:
        what: the first line, without its end.
        so_far: called for each line between; returns how far it has come.
    """
    began = time.monotonic()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(EVERY_S):
            line = f"... {time.monotonic() - began:.0f} s"
            if so_far:
                line += f": {so_far()}"
            say(line)

    say(f"{what} ...")
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"... done in {time.monotonic() - began:.1f} s")


def say(line: str) -> None:
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def bytes_in_words(size: int) -> str:
    """A size in MB or GB."""
    if size < 1e9:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.1f} GB"
