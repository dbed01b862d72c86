"""Names what goes wrong with a run, from the metrics of its logged steps. Pure: no torch, nothing is printed here.

A signal is judged over the last `window` values that were logged of it (not every step logs every metric), so nothing
but NaN is diagnosed before the window is full. One trouble brings others along: completions that are all cut off all
score the same. What another active diagnosis explains is left out (EXPLAINED_BY), so that the first thing to change is
the one that is named.
"""

import itertools
import math
import statistics
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from omegaconf import MISSING

from job.schedules import RewardWeights

CERTAIN_SE = 4.0  # a rise of the reward counts from so many standard errors on
MOSTLY_CORRECT = (
    0.5  # share of correct completions from which other rewards may carry a rise: speed, style
)
MOVED = (
    0.05  # share of a weight by which a schedule may move it before rewards are no longer compared
)
HONESTY = "no_cheating"  # a reward function whose rise is good news in itself
LOOP_MIN_BYTES = 300  # shorter texts are never called repetitive
LOOP_TAIL_BYTES = 2000  # of longer ones only the end counts
LOOP_RATIO = 0.1  # compressed / plain size; honest programs of tests/data stay above 0.35

# What is left out while one of the others is active.
EXPLAINED_BY = {
    "truncated": {"repetitive"},
    "no_final": {"repetitive", "truncated"},
    "collapse": {"repetitive", "truncated"},
    "zero_variance": {"repetitive", "truncated", "no_final", "collapse"},
}


@dataclass(frozen=True)
class Options:
    """The config's `watchdog:` section: one threshold a diagnosis, under its name; null turns that diagnosis off."""

    # YAML 1.1 reads a bare `off` as false
    on: Literal["off", "warn", "stop", False] = (
        MISSING  # what a diagnosis does; stop: checkpoint and exit code 7
    )
    window: int = MISSING  # logged steps
    nan: int | None = (
        MISSING  # logged steps in a row with a loss or gradient that is no finite number
    )
    truncated: float | None = MISSING  # at least this share of completions cut off, window mean
    zero_variance: float | None = (
        MISSING  # at least this share of groups with equal rewards, window mean
    )
    kl_limit: float | None = MISSING  # kl, window median
    one_component: float | None = (
        MISSING  # at least this share of the reward's rise from one function
    )
    repetitive: float | None = (
        MISSING  # at least this share of completions that end in a loop, window mean
    )
    no_final: float | None = (
        MISSING  # at most this share of completions reaching the final channel, window mean
    )
    collapse: float | None = MISSING  # completions/distinct at most this, window mean

    def __post_init__(self):
        if self.on is False:
            object.__setattr__(self, "on", "off")
        if self.window < 2:
            raise ValueError("window: must be at least 2 logged steps")
        for name in (field.name for field in fields(self) if field.name not in ("on", "window")):
            value = getattr(self, name)
            if value is None:
                continue
            if name in ("nan", "kl_limit"):
                if not 0 < value < math.inf:
                    raise ValueError(f"{name}: must be above 0 and finite, or null for never")
            elif not 0 <= value <= 1:
                raise ValueError(f"{name}: must be a share from 0 to 1, or null for never")


@dataclass(frozen=True)
class Diagnosis:
    name: str
    paragraph: str  # what it means, with the measured values, and which key to change


class Watchdog:
    """Watches one run.

    Args:
        options: the thresholds.
        weights: of the reward functions that TRL adds up; "module:function" counts as "function".
        float16: whether a gradient scaler is at work. It skips a step whose gradient overflows, which is harmless, so
            only a gradient that stays so over `window` logged steps counts then.
    """

    def __init__(self, options: Options, weights: RewardWeights, float16: bool = False):
        self.options, self.float16, self._schedule = options, float16, weights
        self.weights: dict[str, float] = {}  # in force, without those that count for nothing
        self.active: list[str] = []
        self._signals: dict[str, deque[float]] = {}
        self._first: list[
            Mapping[str, Any]
        ] = []  # logs of the first window of the run, and of the last one
        self._last: deque[Mapping[str, Any]] = deque(maxlen=options.window)
        self._bad_losses = self._bad_gradients = 0  # in a row
        self._observed, self._shown = (
            0,
            {},
        )  # logged steps so far; at which of them each diagnosis was last active

    def observe(self, step: int, logs: Mapping[str, Any]) -> list[Diagnosis]:
        """Take in the metrics of one logged step; `active` holds the names of what holds now.

        Returns the diagnoses that start here: those that were not active during the last 2 x
        `window` logged steps. (One good step in between keeps a mean down for `window` steps.)
        """
        self._weigh(step)
        self._take_in(logs)
        holding = {
            name: paragraph
            for name, check in CHECKS.items()
            if getattr(self.options, name) is not None
            and (paragraph := check(self, getattr(self.options, name)))
        }
        if "nan" in holding:  # nothing else means anything then
            holding = {"nan": holding["nan"]}
        self.active = [
            name for name in holding if not EXPLAINED_BY.get(name, set()) & holding.keys()
        ]
        self._observed += 1
        long_ago = self._observed - 2 * self.options.window
        started = [name for name in self.active if self._shown.get(name, -math.inf) < long_ago]
        self._shown |= dict.fromkeys(self.active, self._observed)
        return [Diagnosis(name, f"step {step}: {holding[name]}") for name in started]

    def _weigh(self, step: int) -> None:
        """A reward that is weighed otherwise cannot be compared with what it was: start the comparison anew."""
        weights = {
            name.rpartition(":")[2]: weight for name, weight in self._schedule.at(step).items()
        }
        weights = {name: weight for name, weight in weights.items() if weight}
        moved = weights.keys() != self.weights.keys() or any(
            abs(weight - self.weights[name]) > MOVED * abs(self.weights[name])
            for name, weight in weights.items()
        )
        if moved:
            self.weights = weights
            self._first.clear()
            self._last.clear()

    def _take_in(self, logs: Mapping[str, Any]) -> None:
        self._bad_losses = self._bad_losses + 1 if is_bad(logs, "loss") else 0
        self._bad_gradients = self._bad_gradients + 1 if is_bad(logs, "grad_norm") else 0
        for name in SIGNALS:
            # TRL logs None where a step measured nothing; a kl may well be infinite
            if not is_missing(logs, name) or logs.get(name) == math.inf:
                self._signals.setdefault(name, deque(maxlen=self.options.window)).append(logs[name])
        if not is_missing(logs, "reward"):
            if len(self._first) < self.options.window:
                self._first.append(logs)
            else:
                self._last.append(logs)

    def window(self, name: str) -> Sequence[float] | None:
        """The last `window` values of a signal, or None before there are so many."""
        values = self._signals.get(name, ())
        return values if len(values) == self.options.window else None

    def mean(self, name: str) -> float | None:
        values = self.window(name)
        return None if values is None else statistics.fmean(values)

    def nan(self, steps: int) -> str | None:
        patience = max(self.options.window, steps) if self.float16 else steps
        if self._bad_losses < steps and self._bad_gradients < patience:
            return None
        what = "loss" if self._bad_losses >= steps else "gradient"
        return (
            f"the {what} is not a finite number. Such a step tends to turn the weights into NaN, and then nothing that "
            "follows is worth anything: resume from a checkpoint of before, with a lower grpo.learning_rate or "
            "grpo.max_grad_norm, reward weights of ordinary size in task.rewards, and, if it runs in float16, "
            "model.dtype: bfloat16 or float32."
        )

    def truncated(self, limit: float) -> str | None:
        share = self.mean("completions/clipped_ratio")
        if share is None or share < limit:
            return None
        return (
            f"{share:.0%} of the completions of the last {self.options.window} logged steps were cut off before they "
            "ended, so almost no answer was complete when it was judged. Raise grpo.max_completion_length (null: all "
            "that fits) and model.max_seq_length, or let the model think less: task.reasoning_effort: low, or, where "
            "the chat template has a switch instead, grpo.chat_template_kwargs: {enable_thinking: false}."
        )

    def zero_variance(self, limit: float) -> str | None:
        share = self.mean("frac_reward_zero_std")
        if share is None or share < limit:
            return None
        return (
            f"in {share:.0%} of the groups of the last {self.options.window} logged steps all completions earned the "
            "same, so their advantages are 0 and nothing is learned. If that is the best reward, the task is solved: "
            "stop, or make it harder. If not, it is out of reach: raise grpo.num_generations or grpo.temperature, or "
            "give task.rewards a function with partial credit."
        )

    def kl_limit(self, limit: float) -> str | None:
        values = self.window("kl")
        if values is None or (median := statistics.median(values)) <= limit:
            return None
        return (
            f"the kl to the starting model was above {limit:g} in most of the last {self.options.window} logged steps "
            f"(median {median:.3g}): the model is running away from what it could do and will soon write nonsense. "
            "Lower grpo.learning_rate, raise grpo.beta, or take more completions a step with "
            "grpo.gradient_accumulation_steps; resume from a checkpoint of before."
        )

    def one_component(self, limit: float) -> str | None:
        """A reward that is being gamed: it rose since the first window of the run, one function brought nearly all of
        the rise, and the programs did not become more often correct.

        In numbers, with changes taken between the mean over the first and the mean over the last `window` logged
        steps (which must not overlap) and se for the standard error of such a change, from the noise of the steps:
        the reward rose by more than 4 se; of the sum of the positive changes of the functions, each times its
        weight, one has at least `limit`; grades/correct did not rise by more than 1 se. Since an honest function may
        well carry the rise where correctness has little left to give (speed), a share of correct completions of one
        half or more that did not fall by more than 1 se is no such case; nor is a rise of no_cheating. In a mixture,
        a step in which a function judged nothing says nothing about it.
        """
        if len(self._last) < self.options.window or len(self.weights) < 2:
            return None
        rise, correct = self._change("reward"), self._change("grades/correct")
        if (
            rise is None
            or correct is None
            or rise.by <= max(CERTAIN_SE * rise.error, 1e-6)
            or correct.by > correct.error
        ):
            return None
        if correct.to >= MOSTLY_CORRECT and correct.by >= -correct.error:
            return None
        changes = {name: self._change(f"rewards/{name}/mean") for name in self.weights}
        gains = {
            name: self.weights[name] * change.by
            for name, change in changes.items()
            if change is not None
        }
        if not gains:
            return None
        carrier = max(gains, key=gains.get)
        total = sum(gain for gain in gains.values() if gain > 0)
        if carrier == HONESTY or total <= 0 or gains[carrier] < limit * total:
            return None
        return (
            f"the reward rose from {rise.start:.3g} in the first {self.options.window} logged steps to {rise.to:.3g} "
            f"in the last, and {gains[carrier] / total:.0%} of what was gained came from {carrier}, while the share "
            f"of correct completions went from {correct.start:.0%} to {correct.to:.0%}. That function is probably "
            "being gamed: read the latest completions/*.parquet, then lower its weight in task.rewards, or change it "
            "so that it pays correct answers only."
        )

    def repetitive(self, limit: float) -> str | None:
        share = self.mean("completions/repetitive")
        if share is None or share < limit:
            return None
        return (
            f"{share:.0%} of the completions of the last {self.options.window} logged steps end in the same few words "
            "over and over: the model has broken, or never learned when to stop. Resume from a checkpoint of before "
            "with a lower grpo.learning_rate or a higher grpo.beta; if it was so from the first step, look at "
            "model.name (an instruct model?) and lower grpo.temperature."
        )

    def no_final(self, limit: float) -> str | None:
        share = self.mean("completions/reached_final")
        if share is None or share > limit:
            return None
        return (
            f"only {share:.0%} of the completions of the last {self.options.window} logged steps reached the final "
            "channel, though they were not cut off, and rewards read nothing else. The model stops after thinking, or "
            "its chat template is not the one it was trained with: check model.name, let it think less with "
            "task.reasoning_effort: low or grpo.chat_template_kwargs: {enable_thinking: false}, or lower "
            "grpo.temperature."
        )

    def collapse(self, limit: float) -> str | None:
        distinct = self.mean("completions/distinct")
        if distinct is None or distinct > limit:
            return None
        return (
            "nearly all completions of a step are the same text (completions/distinct was "
            f"{distinct:.2f} over the last {self.options.window} logged steps; 0 is one text, 1 all different): "
            "nothing is explored any more. If that text earns the best reward, the task is solved: stop. If not, "
            "resume from a checkpoint of before with a higher grpo.temperature, a higher grpo.beta or a lower "
            "grpo.learning_rate."
        )

    def _change(self, name: str) -> "Change | None":
        """Of a metric from the first to the last window; None where either measured it less than twice."""
        parts = [
            [logs[name] for logs in part if not is_missing(logs, name)]
            for part in (self._first, self._last)
        ]
        if min(map(len, parts)) < 2:
            return None
        start, to = map(statistics.fmean, parts)
        error = math.sqrt(sum(noise(values) / len(values) for values in parts))
        return Change(start, to, error)


@dataclass(frozen=True)
class Change:
    start: float
    to: float
    error: float  # standard error of the difference

    @property
    def by(self) -> float:
        return self.to - self.start


SIGNALS = {
    "completions/clipped_ratio",
    "completions/distinct",
    "completions/reached_final",
    "completions/repetitive",
    "frac_reward_zero_std",
    "kl",
}
CHECKS = {
    field.name: getattr(Watchdog, field.name)
    for field in fields(Options)
    if field.name not in ("on", "window")
}


def noise(values: Sequence[float]) -> float:
    """Variance of the values around whatever trend they follow: half the mean square of successive differences (von
    Neumann, Kent, Bellinson and Hart 1941). The plain variance would count what is learned within a window as noise."""
    return (
        statistics.fmean((after - before) ** 2 for before, after in itertools.pairwise(values)) / 2
    )


def is_bad(logs: Mapping[str, Any], name: str) -> bool:
    """Whether a metric was logged and is not finite; None is what NaN becomes in metrics.jsonl."""
    return name in logs and (logs[name] is None or not math.isfinite(logs[name]))


def is_missing(logs: Mapping[str, Any], name: str) -> bool:
    return name not in logs or is_bad(logs, name)


def distinct_share(texts: Sequence[str]) -> float:
    """How different the completions of a batch are: 0 all are the same, 1 no two are; (distinct - 1) / (all - 1), so
    that it means the same for every batch size. 1 where there is nothing to compare."""
    return (len(set(texts)) - 1) / (len(texts) - 1) if len(texts) > 1 else 1.0


def repetitive_share(texts: Sequence[str]) -> float:
    """Share, 0 to 1, of the texts that end in a loop; 0 without texts."""
    return sum(map(is_repetitive, texts)) / max(len(texts), 1)


def is_repetitive(text: str) -> bool:
    """Whether the last 2000 bytes shrink below a tenth under DEFLATE, which replaces what was there before by a
    reference to it. A loop fills the room that is left, so the end of a text shows it; texts below 300 bytes never
    count, nor do loops of more than about 150 bytes."""
    tail = text.encode("utf-8", errors="replace")[-LOOP_TAIL_BYTES:]
    return len(tail) >= LOOP_MIN_BYTES and len(zlib.compress(tail, 9)) < LOOP_RATIO * len(tail)
