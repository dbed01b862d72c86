"""Splits the wall clock of a training step into its parts."""

import contextlib
import time
from collections.abc import Callable, Iterator

# The parts of a training step, in their order. They add up to TRL's `step_time`.
PARTS = ("rollout", "grading", "scoring", "backward")


class StepTime:
    """Seconds that each part has taken since the last `take`.

    Parts may be nested. The time of an inner part does not count for the outer one.

    Args:
        wait: called where a part begins and ends. On a GPU it waits for work that was queued, so
            that its time counts for the part that asked for it.
    """

    def __init__(self, wait: Callable[[], None] | None = None):
        self._wait = wait or (lambda: None)
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._inner_s = [0.0]  # for each open part: the time of parts within it

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._wait()
        self._inner_s.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            elapsed = time.perf_counter() - began
            self._seconds[name] += elapsed - self._inner_s.pop()
            self._inner_s[-1] += elapsed

    def take(self) -> dict[str, float]:
        """The seconds of each part, which begin again at 0."""
        taken = self._seconds
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return taken
