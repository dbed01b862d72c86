"""What ends a run before its last step: a signal, or a deadline."""

import math
from dataclasses import dataclass

from omegaconf import MISSING


@dataclass(frozen=True)
class Options:
    """The `train:` section of the config."""

    # Whether a run that was ended asks, with exit code 75, to be started again
    requeue: bool = MISSING
    # From the start of the job. None: SLURM's end time, where there is one
    deadline_minutes: float | None = None
    # From a signal to the end of the run, at most
    grace_s: float = MISSING

    def __post_init__(self):
        mistakes = []
        for key in ("deadline_minutes", "grace_s"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                mistakes.append(f"{key}: must be above 0 and finite, not {value}")
        if mistakes:
            raise ValueError("\n".join(mistakes))
