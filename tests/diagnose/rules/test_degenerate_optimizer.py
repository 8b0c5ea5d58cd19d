from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.old_gradients import ADAPTED_STEP, MOMENTUM_GAIN
from desat.diagnose.rules.degenerate_optimizer import DEGENERATE_OPTIMIZER, EPSILON_SHARE, UNSTEPPED
from desat.record.rows import ParameterStatistics, Reading, Row, Site, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine

SLOW = Learning("slow", 300, 2.3, 2.2, 0.05, 0.03)

Series = Callable[[int], float | None] | float | None


def optimized(
    *, epsilon_share: Series = None, rate: Series = 0.01, gradient: float | None = 1e-3, update: Series = 1e-4,
    steps: Iterable[int] = SAMPLES, operation: str = "Adam", layers: int = 3,
) -> list[Row]:  # fmt: skip
    """Rows of layers with weights of rms 0.1."""
    steps = list(steps)
    rows: list[Row] = [Site(0, "optimizer", "optimizer", operation, None, 0, None)]
    rows += [Site(1 + i, f"net.{i}.weight", "parameter", "Linear", None, i, None) for i in range(layers)]
    rows += [Step(step, 0.01 * step, 2.3, _at(rate, step), None) for step in range(max(steps) + 1)]
    for step in steps:
        for i in range(layers):
            rows.append(ParameterStatistics(1 + i, step, 4096, 0.1, gradient, 0.0, 0.0, _at(update, step)))
            if epsilon_share is not None:
                rows.append(Reading(1 + i, "epsilon_share", step, _at(epsilon_share, step)))
    return rows


def _at(series: Series, step: int) -> float | None:
    return series(step) if callable(series) else series


def test_healthy_steps_are_no_finding(tmp_path: Path) -> None:
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, optimized(epsilon_share=0.0)) is None


@pytest.mark.parametrize("layers", [1, 3])
def test_an_epsilon_that_outweighs_the_gradients_is_an_error(tmp_path: Path, layers: int) -> None:
    rows = optimized(epsilon_share=1.0, gradient=1e-3, update=1e-7, layers=layers)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows)
    assert found is not None
    assert (found.severity, found.site) == ("error", "optimizer")
    assert found.evidence["epsilon"] == pytest.approx(100.0)
    assert "epsilon, about 1e+02, is too large" in found.cause
    assert found.evidence["small_gradients"] == 0.0
    assert "100% of the weights" in found.message


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(HARMED, "error"), (SLOW, "error"), (UNKNOWN, "warning"), (HALF_WAY, None), (LEARNED, None)],
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str | None) -> None:
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, optimized(epsilon_share=1.0, update=1e-7), learning)
    assert (found.severity if found else None) == severity


def test_gradients_too_small_for_the_usual_epsilon_are_the_cause_themselves(tmp_path: Path) -> None:
    rows = optimized(epsilon_share=0.9, gradient=1e-12, update=1e-6)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows)
    assert found is not None
    assert "gradients (their rms is 1e-12) are so small" in found.cause
    assert found.evidence["small_gradients"] == 1.0


def test_an_epsilon_that_leaves_steps_large_enough_is_a_note(tmp_path: Path) -> None:
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, optimized(epsilon_share=1.0, update=1e-2))
    assert found is not None
    assert found.severity == "note"
    below = optimized(epsilon_share=EPSILON_SHARE.value - 0.01, update=1e-7)
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "below", below) is None


def test_since_when(tmp_path: Path) -> None:
    rows = optimized(epsilon_share=lambda step: 1.0 if step >= 100 else 0.0, update=1e-7)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows)
    assert found is not None
    assert found.first_step == 100


@pytest.mark.parametrize("share", [np.nan, None])
def test_shares_and_steps_that_are_not_finite_say_nothing(tmp_path: Path, share: float | None) -> None:
    rows = optimized(epsilon_share=lambda step: share, gradient=None, update=None, rate=None)
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, rows) is None


def test_a_rate_of_zero_is_an_error_as_soon_as_it_cannot_be_a_warm_up(tmp_path: Path) -> None:
    rows = optimized(rate=0.0, update=0.0, steps=range(int(UNSTEPPED.value)), operation="SGD")
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows, UNKNOWN)
    assert found is not None
    assert found.severity == "error"
    assert found.cause == "the learning rate is zero"
    few = optimized(rate=0.0, update=0.0, steps=range(3), operation="SGD")
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "few", few, UNKNOWN) is None


def test_a_rate_of_zero_in_one_group_or_an_unknown_rate_is_none(tmp_path: Path) -> None:
    other = optimized(rate=0.0, update=1e-4, operation="SGD")
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "other", other) is None
    unknown = optimized(rate=None, update=0.0, operation="SGD")
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "unknown", unknown) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "warning"), (HALF_WAY, "error"), (LEARNED, None)]
)
def test_a_rate_that_decayed_before_anything_was_learned(tmp_path: Path, learning, severity: str | None) -> None:
    rows = optimized(rate=lambda step: 0.1 if step < 20 else 1e-5, update=lambda step: 1e-3 if step < 20 else 1e-7)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows, learning)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.first_step == 20
        assert "decayed to 1e-05 by step 20" in found.cause


@pytest.mark.parametrize(
    "rate",
    [
        lambda step: 0.05 * (1.0 + np.cos(np.pi * step / 290)),
        lambda step: 0.1 * 0.1 ** (step // 100),
        lambda step: 0.1 * min(1.0, (step + 1) / 200),
    ],
    ids=["cosine", "stepwise", "warm-up"],
)
def test_customary_schedules_are_sound(tmp_path: Path, rate: Callable[[int], float]) -> None:
    rows = optimized(rate=rate, update=lambda step: 1e-3 * rate(step))
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, rows) is None


def test_momentum_that_never_forgets(tmp_path: Path) -> None:
    rows = optimized(operation="SGD", rate=0.01, gradient=1e-3, update=5e-4)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path / "sick", rows)
    assert found is not None
    assert found.severity == "error"
    assert found.evidence["step_gain"] == pytest.approx(50.0)
    assert "momentum is too near 1" in found.cause
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "learns", rows, HALF_WAY) is None
    usual = optimized(operation="SGD", update=1e-5 * (MOMENTUM_GAIN.value - 1.0))
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "usual", usual) is None


def test_betas_that_do_not_belong_together(tmp_path: Path) -> None:
    found = examine(DEGENERATE_OPTIMIZER, tmp_path / "sick", optimized(update=0.05))
    assert found is not None
    assert "beta2 forgets" in found.cause
    usual = optimized(update=0.01 * (ADAPTED_STEP.value - 0.1))
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "usual", usual) is None
    assert examine(DEGENERATE_OPTIMIZER, tmp_path / "other", optimized(update=0.05, operation="RMSprop")) is None


def with_settings(rows: list[Row], **settings: float) -> list[Row]:
    return rows + [Reading(0, name, step, value) for step in SAMPLES for name, value in settings.items()]


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (SLOW, "error"), (HALF_WAY, "error"), (LEARNED, None)]
)
def test_betas_that_cross_and_forget_nothing_are_told_before_the_steps_tell(
    tmp_path: Path, learning: Learning, severity: str | None
) -> None:
    rows = with_settings(optimized(update=1e-3), beta1=0.999, beta2=0.9)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows, learning)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert "beta2 forgets the gradient's size sooner than beta1 its direction: (0.999, 0.9)" in found.cause
        assert found.evidence["memory_steps"] == pytest.approx(1000.0)
        assert found.evidence["step_gain"] == pytest.approx(0.1)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.95), (0.9, 0.5), (0.99, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("learning", [HARMED, HALF_WAY])
def test_other_betas_alone_are_no_finding(tmp_path: Path, betas: tuple[float, float], learning: Learning) -> None:
    rows = with_settings(optimized(update=1e-3), beta1=betas[0], beta2=betas[1])
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, rows, learning) is None


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (HALF_WAY, None)])
def test_a_first_moment_longer_than_the_run_counts_with_harm_alone(
    tmp_path: Path, learning: Learning, severity: str | None
) -> None:
    rows = with_settings(optimized(update=1e-3), beta1=0.999, beta2=0.9999)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows, learning)
    assert (found.severity if found else None) == severity
    assert found is None or "beta1 is too near 1: 0.999" in found.cause


def test_large_steps_under_sound_betas_come_from_elsewhere(tmp_path: Path) -> None:
    rows = with_settings(optimized(update=0.05), beta1=0.9, beta2=0.999)
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, rows) is None


def heavy(momentum: float, *, gradient: float = 0.05, update: float = 1e-3) -> list[Row]:
    """Weights of 0.1 and a rate of 0.01: with the usual momentum, this gradient changes them by 5 % a step."""
    rows = optimized(operation="SGD", rate=0.01, gradient=gradient, update=update)
    return with_settings(rows, momentum=momentum)


@pytest.mark.parametrize(
    ("momentum", "learning", "severity"),
    [
        (0.99, HARMED, "error"), (0.99, UNKNOWN, "warning"), (0.99, SLOW, "warning"), (0.99, HALF_WAY, None),
        (1.0, HALF_WAY, "error"), (1.0, LEARNED, None), (0.9, HARMED, None), (0.95, HARMED, None),
    ],
)  # fmt: skip
def test_momentum_that_makes_sound_steps_too_large(
    tmp_path: Path, momentum: float, learning: Learning, severity: str | None
) -> None:
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, heavy(momentum), learning)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.cause.startswith(f"momentum is too near 1: {momentum:g}")
        assert found.evidence["update_ratio_at_customary_momentum"] == pytest.approx(0.05)


@pytest.mark.parametrize("gradient", [1e-4, 1.0], ids=["small steps all the same", "too large with any momentum"])
def test_momentum_is_not_blamed_where_it_makes_no_difference(tmp_path: Path, gradient: float) -> None:
    assert examine(DEGENERATE_OPTIMIZER, tmp_path, heavy(0.99, gradient=gradient, update=1e-6)) is None


def test_an_epsilon_is_told_as_it_was_chosen(tmp_path: Path) -> None:
    rows = with_settings(optimized(epsilon_share=1.0, gradient=1e-3, update=1e-7), epsilon=3.0)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows)
    assert found is not None
    assert found.evidence["epsilon"] == 3.0
    usual = with_settings(optimized(epsilon_share=1.0, gradient=1e-3, update=1e-7), epsilon=1e-8)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path / "usual", usual)
    assert found is not None
    assert found.evidence["small_gradients"] == 1.0


@pytest.mark.parametrize(("update", "severity"), [(6e-5, "error"), (1.5e-2, "note")])
def test_a_large_epsilon_that_starves_a_network_which_learns_a_little(
    tmp_path: Path, update: float, severity: str
) -> None:
    little = Learning("learning", 300, 2.3, 1.8, 0.2, 0.15)
    rows = with_settings(optimized(epsilon_share=1.0, gradient=1e-3, update=update), epsilon=1.0)
    found = examine(DEGENERATE_OPTIMIZER, tmp_path, rows, little)
    assert (found.severity if found else "note") == severity
