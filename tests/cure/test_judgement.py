import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from desat.cure.judgement import (
    Pair,
    has_diverged,
    judge,
    late_loss,
    loss_at_equal_steps,
    mean_and_interval,
    t_distribution,
    t_quantile,
)

STEPS = 40


def flat(value: float, steps: int = STEPS) -> np.ndarray:
    return np.full(steps, value)


def pairs(*ends: tuple[float, float]) -> list[Pair]:
    return [Pair((flat(without), flat(value))) for without, value in ends]


@given(st.floats(0.5, 0.9999), st.integers(1, 60))
def test_the_quantile_of_t_is_scipys(probability: float, degrees: int) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


@given(st.floats(-50, 50), st.integers(1, 60))
def test_the_distribution_of_t_is_scipys(t: float, degrees: int) -> None:
    assert t_distribution(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_the_interval_is_that_of_a_paired_t_test(differences: list[float]) -> None:
    mean, interval = mean_and_interval(np.array(differences))
    assert interval is not None
    error = stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), error) if error else (mean, mean)
    assert interval == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_one_pair_has_no_interval() -> None:
    assert mean_and_interval(np.array([2.0])) == (2.0, None)


def test_losses_are_compared_over_the_last_quarter_of_the_steps_both_have_done() -> None:
    falling = np.arange(100.0)[::-1]
    assert loss_at_equal_steps(falling, falling[:40]) == (falling[30:40].mean(), falling[30:40].mean())


def test_a_lower_loss_is_a_positive_effect_and_is_accepted_if_every_seed_agrees() -> None:
    judgement = judge(pairs((2.3, 1.0), (2.4, 1.2), (2.2, 0.9)))
    assert judgement.effect == pytest.approx(1.2667, abs=1e-4)
    assert judgement.accepted
    assert judgement.interval is not None
    assert 0 < judgement.interval[0] < judgement.effect < judgement.interval[1]
    assert (judgement.measure, judgement.without, judgement.value) == (
        "loss",
        pytest.approx(2.3),
        pytest.approx(31 / 30),
    )


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (((2.3, 1.0), (2.4, 2.9), (2.2, 2.1)), "not sure"),
        (((2.3, 2.4), (2.3, 2.5)), "worse"),
        (((2.3, 2.3), (2.3, 2.3)), "no better"),
        (((2.3, 2.28), (2.3, 2.28), (2.3, 2.28)), "too small: less than 2%"),
        (((2.3, 2.15),), "too small: less than 10%"),
    ],
)
def test_what_is_not_proven_is_not_accepted(ends: tuple[tuple[float, float], ...], reason: str) -> None:
    judgement = judge(pairs(*ends))
    assert not judgement.accepted
    assert judgement.reason.startswith(reason)


def test_a_large_effect_on_one_seed_is_accepted() -> None:
    assert judge(pairs((2.3, 1.0))).accepted


def test_a_new_error_outweighs_a_better_loss() -> None:
    judgement = judge(pairs((2.3, 1.0), (2.3, 1.1)), new_errors=("dead-units",))
    assert judgement.reason == "a new error: dead-units"


def test_a_loss_that_means_something_else_counts_for_nothing_but_a_metric_does() -> None:
    compared = pairs((2.3, 1.0), (2.3, 1.1))
    assert judge(compared, comparable=False).reason.startswith("not comparable")
    with_metric = [Pair(pair.losses, ((0.1,), (0.8,))) for pair in compared]
    judgement = judge(with_metric, comparable=False)
    assert (judgement.measure, judgement.accepted) == ("metric", True)


def test_the_metric_is_taken_where_both_reported_it_last() -> None:
    pair = Pair((flat(1.0), flat(1.0)), ((0.1, 0.2, 0.9), (0.1, 0.5)))
    judgement = judge([pair])
    assert (judgement.without, judgement.value) == (0.2, 0.5)
    assert not judge([pair], minimize_metric=True).accepted


def test_the_loss_is_taken_unless_every_trial_has_a_metric() -> None:
    judgement = judge([Pair((flat(2.0), flat(1.0)), ((), (0.5,)))])
    assert judgement.measure == "loss"


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.0] * 20, False),
        ([1.0] * 19 + [math.inf], True),
        ([1.0] * 17 + [math.nan] * 3, True),
        ([1.0] * 18 + [math.nan] * 2, False),
        ([1.0, math.inf] + [1.0] * 18, False),
        ([math.nan] * 5, True),
        ([], True),
    ],
    ids=["finite", "infinite at the end", "nan at the end", "two without", "infinite once", "never", "no steps"],
)
def test_divergence_is_a_loss_that_ended_as_no_number(losses: list[float], diverged: bool) -> None:
    assert has_diverged(np.array(losses)) is diverged


def test_a_diverged_trial_counts_with_its_largest_finite_loss_and_is_not_accepted() -> None:
    wild = np.array([1.0, 50.0, 3.0, math.inf])
    assert loss_at_equal_steps(flat(2.0, 4), wild) == (2.0, 50.0)
    assert late_loss(wild) == math.inf
    assert judge([Pair((flat(100.0, 4), wild))] * 2).reason == "the loss diverged with it"


def test_a_remedy_that_stops_divergence_on_every_seed_is_accepted_whatever_the_interval() -> None:
    first, second = np.array([1.0, 1e30, math.inf]), np.array([1.0, 10.0, math.inf])
    judgement = judge([Pair((first, flat(2.0, 3))), Pair((second, flat(2.0, 3)))])
    assert judgement.accepted
    assert judgement.interval is not None
    assert judgement.interval[0] < 0


def test_a_baseline_without_a_finite_loss_is_infinitely_worse_and_two_of_them_prove_nothing() -> None:
    never = flat(math.nan)
    judgement = judge([Pair((never, flat(2.0)))])
    assert (judgement.effect, judgement.accepted) == (math.inf, True)
    assert judge([Pair((never, never))]).reason == "no loss was recorded"
