"""The weights of the reward functions: plain numbers, or schedules over the optimizer steps."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import tasks

MAX_WEIGHT = float(np.finfo(np.float32).max)  # TRL holds the weights in 32 bits


class RewardWeights:
    """The weight of each reward function at each step.

    A weight depends on the step alone, so a resumed run has the same weights.

    Args:
        weights: reward function name -> its weight, a number or a schedule {step: number}.
    """

    def __init__(self, weights: Mapping[str, Any]):
        self.names = list(weights)
        self._corners: dict[str, list[tuple[int, float]]] = {}
        for name, weight in weights.items():
            self._corners[name] = corners(weight)

    @classmethod
    def of(cls, mixture: Iterable[tasks.Options]) -> "RewardWeights":
        """The weights of the configured tasks.

        A function that several tasks name has one weight. job/rules.py checks that they agree.
        """
        weights: dict[str, Any] = {}
        for options in mixture:
            weights |= tasks.reward_weights(options.type, options.rewards)
        return cls(weights)

    def at(self, step: int) -> dict[str, float]:
        """Reward function name -> weight, when `step` optimizer steps are done."""
        return {name: weight_at(own, step) for name, own in self._corners.items()}

    def steps(self) -> list[int]:
        """Step 0 and every step that a schedule names. Between two of them weights are linear."""
        steps = {0}
        for weight_corners in self._corners.values():
            for step, _ in weight_corners:
                steps.add(step)
        return sorted(steps)


def corners(weight: Any) -> list[tuple[int, float]]:
    """The corners (step, weight) of a reward function's weight, by rising step.

    A plain number has one corner, at step 0.

    Raises:
        ValueError: if a step is not a whole number of 0 or more, if one is named twice (5 and "5"),
            or if a weight is not finite.
    """
    if not isinstance(weight, Mapping):
        weight = {0: weight}
    if not weight:
        raise ValueError("a schedule must name at least one step, as in {0: 0.5, 100: 1.0}")
    found: dict[int, float] = {}
    for written_step, value in weight.items():
        step = checked_step(written_step)
        if step in found:
            raise ValueError(f"each step must be named once; {written_step!r} repeats one")
        found[step] = checked_weight(value)
    return sorted(found.items())


def checked_step(step: Any) -> int:
    """The step as a number. JSON and YAML may hold it as text."""
    digits = str(step)
    if not digits.isdecimal():
        raise ValueError(f"a step must be a whole number, 0 or more, not {step!r}")
    return int(digits)


def checked_weight(value: Any) -> float:
    """The weight as a float."""
    is_number = type(value) in (int, float)
    if not is_number or not -MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(
            f"must be a finite number, or a schedule {{step: number}}, not {value!r:.80}"
        )
    return float(value)


def weight_at(corners: list[tuple[int, float]], step: int) -> float:
    """The weight when `step` optimizer steps are done.

    It is linear between the corners, and constant before the first and after the last.
    """
    steps, weights = zip(*corners, strict=True)
    return float(np.interp(step, steps, weights))
