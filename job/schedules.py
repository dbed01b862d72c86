"""The weights of the reward functions: plain numbers, or schedules over the optimizer steps."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import tasks

MAX_WEIGHT = float(np.finfo(np.float32).max)  # TRL holds the weights in 32 bits


class RewardWeights:
    """The weight of each reward function at each step. It depends on the step alone, so a resumed run has the same.

    Args:
        weights: reward function name -> its weight, a number or a schedule {step: number}.
    """

    def __init__(self, weights: Mapping[str, Any]):
        self.names = list(weights)
        self.scheduled = [name for name, weight in weights.items() if isinstance(weight, Mapping)]
        self._corners = {name: corners(weight) for name, weight in weights.items()}

    @classmethod
    def of(cls, mixture: Iterable[tasks.Options]) -> "RewardWeights":
        """Of the configured tasks. A function of several tasks has one weight; the config is checked for that."""
        weights: dict[str, Any] = {}
        for options in mixture:
            weights |= tasks.reward_weights(options.type, options.rewards)
        return cls(weights)

    def at(self, step: int) -> dict[str, float]:
        """Reward function name -> weight, when `step` optimizer steps are done."""
        return {name: weight_at(corners, step) for name, corners in self._corners.items()}

    def steps(self) -> list[int]:
        """0 and every step that a schedule names: between two of them all totals are linear in the step."""
        named = {step for corners in self._corners.values() for step, _ in corners}
        return sorted({0, *named})


def corners(weight: Any) -> list[tuple[int, float]]:
    """The corners (step, weight) of a reward function's weight, by rising step. A plain number has one, at step 0.

    Raises:
        ValueError: if a step is no whole number from 0 on or is named twice (5 and "5"), or a weight is not finite.
    """
    if not isinstance(weight, Mapping):
        weight = {0: weight}
    found: dict[int, float] = {}
    for step, value in weight.items():
        is_step = isinstance(step, int) or (isinstance(step, str) and step.isdecimal())
        if isinstance(step, bool) or not is_step:
            raise ValueError(f"a step must be a whole number from 0 on, not {step!r}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -MAX_WEIGHT <= value <= MAX_WEIGHT
        ):
            raise ValueError(
                f"must be a finite number, or a schedule {{step: number}}, not {value!r:.80}"
            )
        if int(step) < 0 or int(step) in found:
            raise ValueError(f"steps must be 0 or more, each named once, not {step!r}")
        found[int(step)] = float(value)
    if not found:
        raise ValueError("a schedule must name at least one step, as in {0: 0.5, 100: 1.0}")
    return sorted(found.items())


def weight_at(corners: list[tuple[int, float]], step: int) -> float:
    """The weight when `step` optimizer steps are done: linear between the corners, constant before the first and
    after the last."""
    steps, weights = zip(*corners, strict=True)
    return float(np.interp(step, steps, weights))
