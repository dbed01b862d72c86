"""The weights of the reward functions, step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.schedules import RewardWeights


def weight_at_step(weight, step):
    return RewardWeights({"mine": weight}).at(step)["mine"]


SCHEDULES = st.dictionaries(st.integers(0, 10_000), st.floats(-100, 100), min_size=1, max_size=6)


@given(SCHEDULES, st.integers(0, 20_000))
def test_a_scheduled_weight_lies_on_the_line_between_its_neighbours(corners, step):
    weight = weight_at_step(corners, step)
    earlier, later = [s for s in corners if s <= step], [s for s in corners if s >= step]
    if not earlier or not later:
        assert weight == corners[min(corners) if not earlier else max(corners)]
    elif step in corners:
        assert weight == corners[step]
    else:
        a, b = max(earlier), min(later)
        assert weight == pytest.approx(
            ((b - step) * corners[a] + (step - a) * corners[b]) / (b - a), abs=1e-9
        )


@given(SCHEDULES, st.integers(0, 20_000), st.randoms())
def test_how_a_schedule_is_written_does_not_matter(corners, step, shuffle):
    written = [(shuffle.choice([key, str(key)]), value) for key, value in corners.items()]
    shuffle.shuffle(written)
    assert weight_at_step(dict(written), step) == weight_at_step(corners, step)
    assert weight_at_step(corners[min(corners)], step) == corners[min(corners)]  # a constant


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({}, "at least one step"),
        ({-1: 1.0}, "0 or more"),
        ({1.5: 1.0}, "whole number"),
        ({True: 1.0}, "whole number"),
        ({"x": 1.0}, "whole number"),
        ({5: 1.0, "05": 1.0}, "named once"),
        ({0: "1"}, "finite number"),
        ({0: float("nan")}, "finite number"),
        ({0: True}, "finite number"),
        ({0: {0: 1.0}}, "finite number"),
        (10**400, "finite number"),
        (1e39, "finite number"),  # infinite in 32 bits
        (None, "finite number"),
        ([1.0], "finite number"),
    ],
)
def test_weights_that_cannot_be(weight, message):
    with pytest.raises(ValueError, match=message):
        RewardWeights({"mine": weight})
