from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desat.errors import DesatError
from desat.watch.schedule import FIRST_MINUTE, Schedule


def simulate(schedule: Schedule, step_seconds: float, cost: float, until: float) -> tuple[list[int], float]:
    """Sampled steps and elapsed time of a run whose sampled steps cost `cost` seconds more."""
    elapsed, step, sampled = 0.0, 0, []
    while elapsed < until:
        if schedule.is_sampled(step, elapsed):
            sampled.append(step)
            elapsed += step_seconds + cost
            schedule.finished_sampled(step, step_seconds + cost, 0.8 * cost)
        else:
            elapsed += step_seconds
            schedule.finished_plain(step_seconds)
        step += 1
    return sampled, elapsed


@given(st.floats(0.002, 2.0), st.floats(0.0005, 0.5), st.sampled_from([0.01, 0.03]))
@settings(max_examples=40, deadline=None)
def test_the_budget_holds_over_any_run_of_a_minute(step_seconds: float, cost: float, budget: float) -> None:
    sampled, elapsed = simulate(Schedule(budget), step_seconds, cost, FIRST_MINUTE)
    assert len(sampled) * cost <= budget * elapsed + cost


def test_the_budget_pays_for_the_work_beside_the_training() -> None:
    schedule = Schedule(budget=0.01)
    for step in range(3):
        schedule.finished_sampled(step, 0.01, 0.001)
    assert schedule.is_sampled(3, 100.0)
    schedule.aside = 0.9985
    assert not schedule.is_sampled(3, 100.0)


def test_early_steps_are_sampled_first() -> None:
    sampled, _ = simulate(Schedule(), 0.01, 0.002, 5)
    assert sampled[:10] == [0, 1, *range(3, 11)]
    gaps = [after - before for before, after in pairwise(sampled[2:])]
    assert gaps == sorted(gaps)


def test_a_cheap_sample_is_taken_at_each_step() -> None:
    sampled, _ = simulate(Schedule(), 1.0, 0.001, 50)
    assert len(sampled) >= 49


def test_every_is_obeyed_whatever_it_costs() -> None:
    sampled, _ = simulate(Schedule(every=3), 0.01, 1.0, 5)
    assert sampled == [3 * index for index in range(len(sampled))]


def test_a_suspicious_step_is_sampled_next_if_the_budget_allows() -> None:
    schedule = Schedule()
    for step in range(64):
        schedule.finished_sampled(step, 0.01, 0.001)
    assert not schedule.is_sampled(64, 1.0)
    schedule.hurry()
    assert schedule.is_sampled(64, 1.0)
    schedule.spent = 1.0
    assert not schedule.is_sampled(64, 1.0)


@pytest.mark.parametrize(("budget", "every"), [(0.0, None), (-1.0, None), (1.5, None), (0.01, 0)])
def test_a_budget_out_of_range_is_refused(budget: float, every: int | None) -> None:
    with pytest.raises(DesatError, match="it was"):
        Schedule(budget, every)
