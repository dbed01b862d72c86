"""Several alarms on the one timer that a process has.

An alarm calls its function in the main thread, between two steps of Python's interpreter: also
while that thread sleeps or waits, but not while a library computes without returning.
"""

import signal
import threading
import time
from collections.abc import Callable

AGAIN_S = 1.0  # an alarm that is still set rings again, since an exception may have been swallowed

_alarms: dict[str, tuple[float, Callable[[], None]]] = {}  # name -> (when it rings, what it calls)


def set_alarm(name: str, at: float, call: Callable[[], None]) -> None:
    """Call a function at a time, and again every second until the alarm is cleared.

    Args:
        at: seconds of time.monotonic().
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread can be told
    signal.signal(signal.SIGALRM, _ring)
    _alarms[name] = (at, call)
    _arm()


def clear_alarm(name: str) -> None:
    _alarms.pop(name, None)
    if threading.current_thread() is threading.main_thread():
        _arm()


def _arm() -> None:
    """Set the timer to the next alarm."""
    if not _alarms:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return
    first = min(at for at, _ in _alarms.values())
    signal.setitimer(signal.ITIMER_REAL, max(first - time.monotonic(), 0.001))


def _ring(number, frame) -> None:
    now = time.monotonic()
    due = [(name, call) for name, (at, call) in _alarms.items() if at <= now]
    for name, call in due:
        _alarms[name] = (now + AGAIN_S, call)
    _arm()
    for _, call in due:
        call()
