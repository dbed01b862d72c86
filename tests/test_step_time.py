"""step_time.py: the parts of a step."""

import pytest

from job import step_time
from job.step_time import PARTS, StepTime


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on: a list with the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_of_an_inner_part_counts_once_and_all_adds_up(clock):
    timer = StepTime()
    with timer.part("backward"):
        clock[0] += 1
        with timer.part("scoring"):
            clock[0] += 2
            for name, seconds in (("rollout", 4), ("grading", 8), ("rollout", 16)):
                with timer.part(name):
                    clock[0] += seconds
        clock[0] += 32
    taken = timer.take()
    assert tuple(taken) == PARTS
    assert taken == {"rollout": 20, "grading": 8, "scoring": 2, "backward": 33}
    assert sum(taken.values()) == clock[0] - 100
    assert set(timer.take().values()) == {0.0}


def test_what_a_failed_part_took_is_counted_too(clock):
    timer = StepTime()
    with pytest.raises(OSError), timer.part("backward"), timer.part("grading"):
        clock[0] += 3
        raise OSError
    assert timer.take() == {"rollout": 0, "grading": 3, "scoring": 0, "backward": 0}


def test_queued_work_counts_for_the_part_that_queued_it(clock):
    queued = [0]

    def wait():
        clock[0] += queued[0]
        queued[0] = 0

    timer = StepTime(wait)
    with timer.part("backward"):
        with timer.part("scoring"):
            queued[0] = 5
        clock[0] += 1
    assert timer.take() == {"rollout": 0, "grading": 0, "scoring": 5, "backward": 1}
