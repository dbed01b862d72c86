"""Names what goes wrong with a run, from the metrics of its logged steps. It prints nothing.

A signal is judged over the last `window` values that were logged of it, because not every step logs
every metric. So nothing but NaN is diagnosed before the window is full.

One trouble brings others along: completions that are all cut off all score the same. A diagnosis
that another active one explains is left out (EXPLAINED_BY). So the first thing to change is the one
that is named.
"""

import itertools
import math
import re
import statistics
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from omegaconf import MISSING

from job.schedules import RewardWeights

# A rise of the reward counts if it is more than this many standard errors.
CERTAIN_SE = 4.0
# From this share of correct completions on, other rewards, such as speed, may carry a rise.
MOSTLY_CORRECT = 0.5
# A schedule may move a weight by this share of it before rewards are no longer compared.
MOVED = 0.05
HONESTY = "no_cheating"  # a reward function whose rise is good news in itself

LOOP_MIN_BYTES = 300  # shorter texts are never called repetitive
LOOP_TAIL_BYTES = 2000  # of longer texts only the end counts
WORD = re.compile(r"\w+")
LOOP_RATIO = 0.1  # compressed / plain size; honest programs of tests/data stay above 0.35

# A diagnosis is left out while one of its causes is active.
EXPLAINED_BY = {
    "truncated": {"repetitive"},
    "no_final": {"repetitive", "truncated"},
    "collapse": {"repetitive", "truncated"},
    "zero_variance": {"repetitive", "truncated", "no_final", "collapse"},
}


@dataclass(frozen=True)
class Options:
    """The `watchdog:` section of the config.

    Each key after `window` is the threshold of the diagnosis of that name. Null turns it off.
    """

    # What a diagnosis does. stop: save a checkpoint and end with exit code 7. YAML 1.1 reads a bare
    # `off` as false.
    on: Literal["off", "warn", "stop", False] = MISSING
    # Logged steps that are looked at
    window: int = MISSING
    # Logged steps in a row whose loss or gradient is not a finite number
    nan: int | None = MISSING
    # At least this share of completions cut off, mean over the window
    truncated: float | None = MISSING
    # At least this share of groups with equal rewards, mean over the window
    zero_variance: float | None = MISSING
    # Median kl over the window above this
    kl_limit: float | None = MISSING
    # At least this share of the reward's rise from one function
    one_component: float | None = MISSING
    # At least this share of completions that end in a loop, mean over the window
    repetitive: float | None = MISSING
    # At most this share of completions that reach the final channel, mean over the window
    no_final: float | None = MISSING
    # completions/distinct at most this, mean over the window
    collapse: float | None = MISSING
    # At least this share of answers that are a piece of their prompt, mean over the window
    echo: float | None = MISSING
    # Median rollout/logp_difference over the window above this
    logp_difference: float | None = MISSING

    def __post_init__(self):
        if self.on is False:
            object.__setattr__(self, "on", "off")
        if self.window < 2:
            raise ValueError("window: must be at least 2 logged steps")
        for name in THRESHOLDS:
            value = getattr(self, name)
            if value is None:
                continue
            if name in ("nan", "kl_limit", "logp_difference"):
                if not 0 < value < math.inf:
                    raise ValueError(f"{name}: must be above 0 and finite, or null for never")
            elif not 0 <= value <= 1:
                raise ValueError(f"{name}: must be a share from 0 to 1, or null for never")


THRESHOLDS = [field.name for field in fields(Options) if field.name not in ("on", "window")]


@dataclass(frozen=True)
class Diagnosis:
    name: str
    paragraph: str  # what it means, with the measured values, and which key to change


class Watchdog:
    """Watches one run.

    Args:
        options: the thresholds.
        weights: of the reward functions that TRL adds up. "module:function" counts as "function".
        float16: whether a gradient scaler is at work. It skips a step whose gradient overflows,
            which is harmless. So only a gradient that stays infinite over `window` logged steps
            counts then.
    """

    def __init__(self, options: Options, weights: RewardWeights, float16: bool = False):
        self.options, self.float16, self._schedule = options, float16, weights
        self.forget()

    def forget(self) -> None:
        """Begin with empty windows."""
        self.weights: dict[str, float] = {}  # those in force that are not 0
        self.active: list[str] = []  # names of the diagnoses that hold now
        self._signals: dict[str, deque[float]] = {}  # the last `window` values of each signal
        self._first: list[Mapping[str, Any]] = []  # logs of the first window of the run
        self._last: deque[Mapping[str, Any]] = deque(maxlen=self.options.window)
        self._bad_losses = self._bad_gradients = 0  # in a row
        self._observed = 0  # logged steps so far
        self._last_active: dict[str, int] = {}  # diagnosis -> value of `_observed` then

    def observe(self, step: int, logs: Mapping[str, Any]) -> list[Diagnosis]:
        """Take in the metrics of one logged step. `active` then holds the names of what holds now.

        Returns:
            The diagnoses that start here: those that were not active during the last 2 x `window`
            logged steps. (One good step in between keeps a mean down for `window` steps.)
        """
        self._take_weights(step)
        self._take_in(logs)
        holding = self._holding()
        self.active = []
        for name in holding:
            causes = EXPLAINED_BY.get(name, set())
            if not causes & holding.keys():
                self.active.append(name)

        self._observed += 1
        long_ago = self._observed - 2 * self.options.window
        started = []
        for name in self.active:
            if self._last_active.get(name, -math.inf) < long_ago:
                started.append(Diagnosis(name, f"step {step}: {holding[name]}"))
            self._last_active[name] = self._observed
        return started

    def _holding(self) -> dict[str, str]:
        """Each diagnosis that holds now, with its paragraph."""
        holding = {}
        for name in THRESHOLDS:
            threshold = getattr(self.options, name)
            if threshold is None:
                continue
            paragraph = CHECKS[name](self, threshold)
            if paragraph is not None:
                holding[name] = paragraph
        if "nan" in holding:  # no other metric means anything then
            return {"nan": holding["nan"]}
        return holding

    def _take_weights(self, step: int) -> None:
        """Take the weights of this step. If one has moved, start comparing rewards from here.

        Rewards cannot be compared with those under other weights.
        """
        weights = {}
        for name, weight in self._schedule.at(step).items():
            if weight != 0:
                weights[name.rpartition(":")[2]] = weight
        if self._have_moved(weights):
            self.weights = weights
            self._first.clear()
            self._last.clear()

    def _have_moved(self, weights: Mapping[str, float]) -> bool:
        if weights.keys() != self.weights.keys():
            return True
        for name, weight in weights.items():
            before = self.weights[name]
            if abs(weight - before) > MOVED * abs(before):
                return True
        return False

    def _take_in(self, logs: Mapping[str, Any]) -> None:
        """Add the metrics of one step to what has been seen."""
        if is_bad(logs, "loss"):
            self._bad_losses += 1
        else:
            self._bad_losses = 0
        if is_bad(logs, "grad_norm"):
            self._bad_gradients += 1
        else:
            self._bad_gradients = 0
        for name in SIGNALS:
            # TRL logs None where a step measured nothing. An infinite value, as of kl, does count.
            if is_missing(logs, name) and logs.get(name) != math.inf:
                continue
            if name not in self._signals:
                self._signals[name] = deque(maxlen=self.options.window)
            self._signals[name].append(logs[name])
        if is_missing(logs, "reward"):
            return
        if len(self._first) < self.options.window:
            self._first.append(logs)
        else:
            self._last.append(logs)

    def window_values(self, name: str) -> Sequence[float] | None:
        """The last `window` values of a signal. None while there are fewer."""
        values = self._signals.get(name, ())
        if len(values) < self.options.window:
            return None
        return values

    def window_mean(self, name: str) -> float | None:
        values = self.window_values(name)
        if values is None:
            return None
        return statistics.fmean(values)

    def _high_mean(self, name: str, limit: float) -> float | None:
        """The mean of a signal over the window if it is at least `limit`, else None."""
        mean = self.window_mean(name)
        if mean is None or mean < limit:
            return None
        return mean

    def _high_median(self, name: str, limit: float) -> float | None:
        """The median of a signal over the window if it is above `limit`, else None."""
        values = self.window_values(name)
        if values is None:
            return None
        median = statistics.median(values)
        return median if median > limit else None

    # ---- One check for each diagnosis: its paragraph if it holds, else None

    def nan(self, steps: int) -> str | None:
        patience = steps
        if self.float16:
            patience = max(self.options.window, steps)
        if self._bad_losses >= steps:
            what = "loss"
        elif self._bad_gradients >= patience:
            what = "gradient"
        else:
            return None
        return (
            f"the {what} is not a finite number. Such a step tends to turn the weights into NaN, "
            "and then nothing that follows is worth anything. Resume from an earlier checkpoint, "
            "with a lower grpo.learning_rate or grpo.max_grad_norm and reward weights of ordinary "
            "size in task.rewards. If the run is in float16, set model.dtype: bfloat16 or float32."
        )

    def truncated(self, limit: float) -> str | None:
        share = self._high_mean("completions/clipped_ratio", limit)
        if share is None:
            return None
        return (
            f"{share:.0%} of the completions of the last {self.options.window} logged steps were "
            "cut off before they ended, so almost no answer was complete when it was judged. Raise "
            "grpo.max_completion_length (null: all that fits) and model.max_seq_length. Or let the "
            "model think less, with task.reasoning_effort: low or, where the chat template has a "
            "switch instead, grpo.chat_template_kwargs: {enable_thinking: false}."
        )

    def zero_variance(self, limit: float) -> str | None:
        share = self._high_mean("frac_reward_zero_std", limit)
        if share is None:
            return None
        return (
            f"in {share:.0%} of the groups of the last {self.options.window} logged steps all "
            "completions earned the same, so their advantages are 0 and nothing is learned. If "
            "they earn the best reward, the task is solved: stop, or make it harder. If not, it is "
            "too hard: raise grpo.num_generations or grpo.temperature, or give task.rewards a "
            "function with partial credit."
        )

    def kl_limit(self, limit: float) -> str | None:
        median = self._high_median("kl", limit)
        if median is None:
            return None
        return (
            f"the kl to the starting model was above {limit:g} in most of the last "
            f"{self.options.window} logged steps (median {median:.3g}): the model is running away "
            "from what it could do and will soon write nonsense. Resume from an earlier checkpoint "
            "with a lower grpo.learning_rate, a higher grpo.beta, or more completions a step "
            "(grpo.gradient_accumulation_steps)."
        )

    def one_component(self, limit: float) -> str | None:
        """A reward that is being gamed: it rises by one function, and correctness does not rise.

        Changes are taken between the mean over the first and the mean over the last `window` logged
        steps, which must not overlap. `se` is the standard error of a change, from the noise of the
        steps. The diagnosis holds if all of these do:

        - The reward rose by more than 4 se.
        - grades/correct did not rise by more than 1 se.
        - One function brought at least `limit` of the sum of all positive changes, each times its
          weight.

        Two cases are left out. Where at least half of the completions are correct and their share
        did not fall by more than 1 se, an honest function such as speed may carry the rise. And a
        rise of no_cheating is good news. In a mixture, a step in which a function judged nothing
        does not count for that function.
        """
        if len(self._last) < self.options.window or len(self.weights) < 2:
            return None
        reward, correct = self._change("reward"), self._change("grades/correct")
        if reward is None or correct is None or not is_suspicious(reward, correct):
            return None
        carrier, share = self._carrier()
        if carrier in (None, HONESTY) or share < limit:
            return None
        return (
            f"the reward rose from {reward.start:.3g} in the first {self.options.window} logged "
            f"steps to {reward.to:.3g} in the last, and {share:.0%} of what was gained came from "
            f"{carrier}, while the share of correct completions went from {correct.start:.0%} to "
            f"{correct.to:.0%}. That function is probably being gamed: read the latest "
            "completions/*.parquet, then lower its weight in task.rewards, or change it so that it "
            "pays correct answers only."
        )

    def repetitive(self, limit: float) -> str | None:
        share = self._high_mean("completions/repetitive", limit)
        if share is None:
            return None
        return (
            f"{share:.0%} of the completions of the last {self.options.window} logged steps end in "
            "the same few words over and over: the model has broken, or never learned when to "
            "stop. Resume from an earlier checkpoint with a lower grpo.learning_rate or a higher "
            "grpo.beta. If it was so from the first step, look at model.name (is it an instruct "
            "model?) and lower grpo.temperature."
        )

    def no_final(self, limit: float) -> str | None:
        share = self.window_mean("completions/reached_final")
        if share is None or share > limit:
            return None
        return (
            f"only {share:.0%} of the completions of the last {self.options.window} logged steps "
            "reached the final channel, though they were not cut off, and rewards read nothing "
            "else. The model stops after thinking, or its chat template is not the one it was "
            "trained with. Check model.name, let it think less with task.reasoning_effort: low or "
            "grpo.chat_template_kwargs: {enable_thinking: false}, or lower grpo.temperature."
        )

    def collapse(self, limit: float) -> str | None:
        distinct = self.window_mean("completions/distinct")
        if distinct is None or distinct > limit:
            return None
        return (
            "nearly all completions of a step are the same text (completions/distinct was "
            f"{distinct:.2f} over the last {self.options.window} logged steps; 0 is one text, 1 "
            "all different), so nothing new is tried. If that text earns the best reward, the task "
            "is solved: stop. If not, resume from an earlier checkpoint with a higher "
            "grpo.temperature, a higher grpo.beta or a lower grpo.learning_rate."
        )

    def logp_difference(self, limit: float) -> str | None:
        median = self._high_median("rollout/logp_difference", limit)
        if median is None:
            return None
        return (
            "the rollout and the trainer disagree about the log-probabilities of what was sampled, "
            f"by {median:.3g} in the median of the last {self.options.window} logged steps. Then "
            "the loss is that of another policy than the one that answered. Set "
            "rollout.importance_sampling: true, which corrects for it, or rollout.engine: generate."
        )

    def echo(self, limit: float) -> str | None:
        """A reward that is paid for repeating the question.

        The reward and the share of such answers both rose by more than 4 standard errors since the
        first window, and the share is at least `limit` now. A share that was high from the start is
        left out: where the right answer is a choice from the prompt, it should be.
        """
        share = self._high_mean("completions/echo", limit)
        if share is None or len(self._last) < self.options.window:
            return None
        for name in ("reward", "completions/echo"):
            change = self._change(name)
            if change is None or change.by <= max(CERTAIN_SE * change.error, 1e-6):
                return None
        return (
            f"the reward rose, and {share:.0%} of the answers of the last {self.options.window} "
            "logged steps only repeat a piece of their prompt. The rewards probably pay for the "
            "question instead of the answer: read the latest completions/*.parquet, and give "
            "task.rewards a function that does not. If the right answer is a choice from the "
            "prompt, set watchdog.echo to null."
        )

    def _carrier(self) -> tuple[str | None, float]:
        """The function that brought most of the reward's rise, and its share of all gains.

        (None, 0.0) if no function gained anything.
        """
        gains = {}
        for name, weight in self.weights.items():
            change = self._change(f"rewards/{name}/mean")
            if change is not None and weight * change.by > 0:
                gains[name] = weight * change.by
        if not gains:
            return None, 0.0
        carrier = max(gains, key=gains.get)
        return carrier, gains[carrier] / sum(gains.values())

    def _change(self, name: str) -> "Change | None":
        """The change of a metric from the first window to the last.

        None where the metric was measured less than twice in either.
        """
        first = [logs[name] for logs in self._first if not is_missing(logs, name)]
        last = [logs[name] for logs in self._last if not is_missing(logs, name)]
        if len(first) < 2 or len(last) < 2:
            return None
        error = math.sqrt(noise(first) / len(first) + noise(last) / len(last))
        return Change(statistics.fmean(first), statistics.fmean(last), error)


@dataclass(frozen=True)
class Change:
    start: float
    to: float
    error: float  # standard error of the difference

    @property
    def by(self) -> float:
        return self.to - self.start


# The metrics whose last values are kept
SIGNALS = {
    "completions/clipped_ratio",
    "completions/distinct",
    "completions/echo",
    "completions/reached_final",
    "completions/repetitive",
    "frac_reward_zero_std",
    "kl",
    "rollout/logp_difference",
}
CHECKS = {name: getattr(Watchdog, name) for name in THRESHOLDS}


def is_suspicious(reward: Change, correct: Change) -> bool:
    """Whether the reward rose and correctness cannot explain it; see Watchdog.one_component."""
    if reward.by <= max(CERTAIN_SE * reward.error, 1e-6):
        return False
    if correct.by > correct.error:
        return False
    stayed_correct = correct.to >= MOSTLY_CORRECT and correct.by >= -correct.error
    return not stayed_correct


def noise(values: Sequence[float]) -> float:
    """Variance of the values around the trend that they follow.

    It is half the mean square of successive differences (von Neumann, Kent, Bellinson and Hart
    1941). The plain variance would count what is learned within a window as noise.
    """
    squares = [(after - before) ** 2 for before, after in itertools.pairwise(values)]
    return statistics.fmean(squares) / 2


def is_bad(logs: Mapping[str, Any], name: str) -> bool:
    """Whether a metric was logged and is not finite. NaN becomes None in metrics.jsonl."""
    if name not in logs:
        return False
    value = logs[name]
    return value is None or not math.isfinite(value)


def is_missing(logs: Mapping[str, Any], name: str) -> bool:
    return name not in logs or is_bad(logs, name)


def distinct_share(texts: Sequence[str]) -> float:
    """How different the completions of a batch are: 0 if all are the same, 1 if no two are.

    This is (distinct - 1) / (all - 1), so it means the same for every batch size. It is 1 where
    there is nothing to compare.
    """
    if len(texts) < 2:
        return 1.0
    return (len(set(texts)) - 1) / (len(texts) - 1)


def echo_share(answers: Sequence[str], prompts: Sequence[str]) -> float:
    """Share, 0 to 1, of the answers that are a piece of their own prompt; 0 without answers."""
    echoes = [is_echo(answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]
    return sum(echoes) / max(len(echoes), 1)


def is_echo(answer: str, prompt: str) -> bool:
    """Whether the last line of an answer, without a marker such as "Answer:", stands in the prompt.

    Case and white space do not count. A single word or number never counts: it may well be right.
    """
    lines = answer.split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    said = last.rpartition(":")[2].casefold()
    if len(WORD.findall(said)) < 2:
        return False
    return "".join(said.split()) in "".join(prompt.casefold().split())


def repetitive_share(texts: Sequence[str]) -> float:
    """Share, 0 to 1, of the texts that end in a loop; 0 without texts."""
    return sum(map(is_repetitive, texts)) / max(len(texts), 1)


def is_repetitive(text: str) -> bool:
    """Whether a text ends in a loop: its last 2000 bytes shrink below a tenth under DEFLATE.

    DEFLATE replaces a repetition by a reference to its first occurrence. The end is enough, because
    a loop goes on until the completion is cut off. Texts below 300 bytes never count, nor do loops
    whose period is longer than about 150 bytes.
    """
    tail = text.encode("utf-8", errors="replace")[-LOOP_TAIL_BYTES:]
    if len(tail) < LOOP_MIN_BYTES:
        return False
    return len(zlib.compress(tail, 9)) < LOOP_RATIO * len(tail)
