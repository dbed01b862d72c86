"""pass@k, bootstrap intervals and the paired test, against their definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.evaluation import estimates

DIFFERENCES = st.lists(st.integers(-3, 3), max_size=8)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(total, data):
    correct, k = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    answers = [True] * correct + [False] * (total - correct)
    choices = list(itertools.combinations(answers, k))
    expected = sum(map(any, choices)) / len(choices)
    assert estimates.pass_at_k(total, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_an_undefined_pass_at_k_is_refused(numbers):
    with pytest.raises(ValueError, match="is undefined"):
        estimates.pass_at_k(*numbers)


def test_the_ks_are_powers_of_two_and_the_number_of_completions():
    assert [estimates.ks_up_to(n) for n in (1, 4, 6)] == [[1], [1, 2, 4], [1, 2, 4, 6]]


@given(DIFFERENCES)
def test_the_paired_test_counts_choices_of_signs(differences):
    observed = abs(sum(differences))
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = [sum(map(math.prod, zip(choice, differences, strict=True))) for choice in signs]
    expected = sum(abs(total) >= observed for total in sums) / len(sums)
    assert estimates.paired_test(differences) == pytest.approx(expected)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_with_one_completion_the_paired_test_is_mcnemars(better, worse, same):
    differences = [1] * better + [-1] * worse + [0] * same
    assert estimates.paired_test(differences) == pytest.approx(estimates.mcnemar(better, worse))


def test_mcnemar_by_hand():
    # 1 of 10 discordant pairs: 2 * (1 + 10) / 2^10
    assert estimates.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert estimates.mcnemar(0, 0) == estimates.mcnemar(3, 3) == 1.0


def test_an_interval_is_about_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = estimates.mean_estimate(values)
    error = values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)
    assert estimates.mean_estimate(values) == found


def test_completions_of_one_problem_are_drawn_together():
    # 20 problems with 50 equal values each say no more than 20 values
    sums = np.array([[50.0 * (i % 2)] for i in range(20)])
    (clustered,) = estimates.ratio_estimates(sums, np.full((20, 1), 50))
    single = estimates.mean_estimate([i % 2 for i in range(20)])
    assert clustered == single and clustered.high - clustered.low > 0.3


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=8))
def test_problems_that_say_nothing_do_not_count(drawn):
    sums = np.array([[value * (count > 0)] for value, count in drawn])
    counts = np.array([[count] for _, count in drawn])
    (found,) = estimates.ratio_estimates(sums, counts)
    if counts.sum() == 0:
        assert math.isnan(found.value) and math.isnan(found.low)
    else:
        assert found.value == pytest.approx(sums.sum() / counts.sum())
        assert found.low <= found.high


def test_no_problem_at_all():
    assert math.isnan(estimates.mean_estimate([]).value)
