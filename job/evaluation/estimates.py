"""What graded completions say about a model: pass@k, 95 % intervals, and tests of a difference.

All random numbers have a fixed seed, so equal completions give equal figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 3407
CHUNK = 500  # resamples that are held in memory at once
PERCENTILES = (2.5, 97.5)  # the ends of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval. All are NaN where nothing was measured."""

    value: float
    low: float
    high: float


def pass_at_k(total: int, correct: int, k: int) -> float:
    """The chance that at least one of k completions is correct.

    The estimate is unbiased: 1 - C(total - correct, k) / C(total, k). M. Chen et al., Evaluating
    large language models trained on code, 2021, https://arxiv.org/abs/2107.03374, section 2.1.

    Args:
        total: completions of the problem.
        correct: how many of them are correct.

    Raises:
        ValueError: if k is not between 1 and `total`, or `correct` not between 0 and `total`.
    """
    if not 1 <= k <= total or not 0 <= correct <= total:
        raise ValueError(f"pass@{k} of {correct} correct among {total} completions is undefined")
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def ks_up_to(completions: int) -> list[int]:
    """The k for which pass@k is reported: powers of two up to `completions`, and that itself."""
    ks = {completions}
    k = 1
    while k <= completions:
        ks.add(k)
        k *= 2
    return sorted(ks)


def ratio_estimates(sums: np.ndarray, counts: np.ndarray) -> list[Estimate]:
    """Means over all values, with bootstrap intervals over problems.

    Values of one problem depend on each other, so whole problems are drawn with replacement, and
    the interval is that of the percentiles (B. Efron and R. Tibshirani, An introduction to the
    bootstrap, 1993, chapter 13). If all problems have the same mean, the interval has no width,
    however few problems there are.

    Args:
        sums: (problems, figures), the sum of each problem's values.
        counts: (problems, figures), how many values each sum has. 0 where a problem says nothing.

    Returns:
        One Estimate for each figure.
    """
    if len(sums) == 0:
        return [Estimate(math.nan, math.nan, math.nan)] * sums.shape[1]
    figures = sums.shape[1]
    totals = resampled_totals(np.hstack([sums, counts]).astype(float))
    estimates = []
    for i in range(figures):
        count = counts[:, i].sum()
        drawn_counts = totals[:, figures + i]
        has_values = drawn_counts > 0
        if count == 0 or not has_values.any():
            estimates.append(Estimate(math.nan, math.nan, math.nan))
            continue
        means = totals[has_values, i] / drawn_counts[has_values]
        low, high = np.percentile(means, PERCENTILES)
        estimates.append(Estimate(float(sums[:, i].sum() / count), float(low), float(high)))
    return estimates


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a problem, with its bootstrap interval; see `ratio_estimates`."""
    column = np.asarray(values, dtype=float).reshape(-1, 1)
    return ratio_estimates(column, np.ones_like(column))[0]


def resampled_totals(columns: np.ndarray) -> np.ndarray:
    """The sum of each column over problems that are drawn with replacement, RESAMPLES times.

    Args:
        columns: (problems, columns)

    Returns:
        (RESAMPLES, columns)
    """
    rng = np.random.default_rng(SEED)
    count = len(columns)
    totals = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.integers(count, size=(CHUNK, count))
        # How often each problem was drawn, resample by resample
        places = drawn + count * np.arange(CHUNK)[:, None]
        times = np.bincount(places.ravel(), minlength=CHUNK * count).reshape(CHUNK, count)
        totals.append(times @ columns)
    return np.concatenate(totals)


def mcnemar(better: int, worse: int) -> float:
    """The p-value of McNemar's exact test, two-sided.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, Psychometrika 12, 1947, 153-157, with the binomial in place of chi squared.

    Args:
        better: problems that only the second model solves.
        worse: problems that only the first model solves.
    """
    discordant = better + worse
    tail = sum(math.comb(discordant, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_test(differences: Sequence[int]) -> float:
    """The p-value of McNemar's exact test, extended to several completions a problem.

    One verdict a problem would throw completions away: a majority does not notice a rise from 10 %
    to 40 %. So a problem counts with its difference, which is the completions that the second model
    solves less those that the first one solves. If both models were equally good at each problem,
    every difference would be as likely as its opposite. The p-value is the share, among all choices
    of signs, of those whose sum is as far from 0 as the observed one or farther (R. A. Fisher, The
    design of experiments, 1935, section 21). With one completion a problem the differences are
    -1, 0 and 1, and this is exactly `mcnemar`.

    Args:
        differences: one whole number for each problem.
    """
    sizes = [abs(difference) for difference in differences if difference != 0]
    largest = sum(sizes)
    # The chance of each sum, from -largest to largest. Signs are added one problem at a time.
    chances = np.zeros(2 * largest + 1)
    chances[largest] = 1.0
    for size in sizes:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    distances = np.abs(np.arange(-largest, largest + 1))
    is_as_far = distances >= abs(sum(differences))
    return float(min(1.0, chances[is_as_far].sum()))
