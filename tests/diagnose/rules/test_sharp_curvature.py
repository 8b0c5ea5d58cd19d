from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.sharp_curvature import OVER_LIMIT, SHARP_CURVATURE, UNCONVERGED
from desat.record.rows import Reading, Row, Site, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine

DIVERGING = Learning("diverging", 300, 2.3, 9.0, -0.74, -0.7)
NON_FINITE = Learning("non-finite", 3, nonfinite_since=3)


def curved(
    over: float | Callable[[int], float] = 5.0, *, residual: float | None = 0.01, steps: Iterable[int] = SAMPLES,
    loss: Callable[[int], float] = lambda step: 2.3, limit: float | None = 20.0, rate: float | None = 0.1,
) -> list[Row]:  # fmt: skip
    steps = list(steps)
    rows: list[Row] = [Site(0, "loss", "curvature", "loss", "train.py:30", 0, None)]
    rows += [Step(step, 0.01 * step, loss(step), rate, None) for step in range(max(steps) + 1)]
    for step in steps:
        ratio = over(step) if callable(over) else over
        rows += [Reading(0, "sharpness", step, 20.0 * ratio), Reading(0, "sharpness_residual", step, residual)]
        if limit is not None:
            rows += [Reading(0, "stability_limit", step, limit), Reading(0, "sharpness_over_limit", step, ratio)]
    return rows


@pytest.mark.parametrize("learning", [HARMED, DIVERGING, NON_FINITE])
def test_a_loss_too_sharp_for_its_steps_that_does_not_fall_is_an_error(tmp_path: Path, learning: Learning) -> None:
    found = examine(SHARP_CURVATURE, tmp_path, curved(), learning)
    assert found is not None
    assert (found.severity, found.site, found.source) == ("error", "loss", "train.py:30")
    assert (found.first_step, found.last_step) == (0, 290)
    assert found.evidence["sharpness_over_limit"] == pytest.approx(5.0)
    assert found.evidence["fitting_learning_rate"] == pytest.approx(0.02)
    assert "5.0 times" in found.message
    assert "learning rate 0.1 is too large" in found.cause


@pytest.mark.parametrize("learning", [HALF_WAY, LEARNED])
def test_a_falling_loss_at_or_beyond_the_edge_of_stability_is_a_note_at_most(tmp_path: Path, learning) -> None:
    found = examine(SHARP_CURVATURE, tmp_path / "beyond", curved(), learning)
    assert found is not None
    assert found.severity == "note"
    assert examine(SHARP_CURVATURE, tmp_path / "edge", curved(1.1), learning) is None


def test_far_beyond_the_limit_from_the_start_it_is_an_error_though_harm_is_not_known(tmp_path: Path) -> None:
    found = examine(SHARP_CURVATURE, tmp_path, curved(), UNKNOWN)
    assert found is not None
    assert found.severity == "error"


def test_at_the_edge_of_stability_something_else_is_to_blame(tmp_path: Path) -> None:
    assert examine(SHARP_CURVATURE, tmp_path, curved(OVER_LIMIT.value - 0.01)) is None


@pytest.mark.parametrize("residual", [UNCONVERGED.value + 0.01, float("inf"), None])
def test_estimates_that_have_not_converged_say_nothing(tmp_path: Path, residual: float | None) -> None:
    assert examine(SHARP_CURVATURE, tmp_path, curved(residual=residual)) is None


def test_without_a_limit_nothing_is_over_it(tmp_path: Path) -> None:
    assert examine(SHARP_CURVATURE, tmp_path / "none", curved(limit=None)) is None
    assert examine(SHARP_CURVATURE, tmp_path / "no curvature", [Step(0, 0.0, 1.0, 0.1, None)]) is None


def test_sharpness_that_is_not_finite_says_nothing(tmp_path: Path) -> None:
    assert examine(SHARP_CURVATURE, tmp_path, curved(float("nan"))) is None


def test_what_is_over_is_to_blame_only_for_a_loss_it_threw_up(tmp_path: Path) -> None:
    def early(step: int) -> float:
        return 6.0 if step <= 20 else 0.01

    thrown = examine(SHARP_CURVATURE, tmp_path / "thrown", curved(early, loss=lambda step: 2.3 if step < 5 else 50.0))
    calm = examine(SHARP_CURVATURE, tmp_path / "calm", curved(early))
    assert thrown is not None
    assert calm is not None
    assert (thrown.severity, calm.severity) == ("error", "note")
    assert (thrown.first_step, thrown.last_step) == (0, 20)
    assert examine(SHARP_CURVATURE, tmp_path / "learned", curved(early), LEARNED) is None


def test_a_fall_from_the_peak_it_was_thrown_to_is_no_cure(tmp_path: Path) -> None:
    def peak(step: int) -> float:
        return 2.3 if step in (0, 1) or step > 60 else 80.0

    rows = curved(lambda step: 6.0 if step <= 20 else 0.01, loss=peak)
    found = examine(SHARP_CURVATURE, tmp_path / "back", rows, Learning("learning", 300, 80.0, 2.29, 0.97, 0.9))
    assert found is not None
    assert found.severity == "error"
    better = Learning("learning", 300, 80.0, 0.5, 0.97, 0.9)
    assert examine(SHARP_CURVATURE, tmp_path / "below", rows, better) is None


def test_since_when(tmp_path: Path) -> None:
    found = examine(SHARP_CURVATURE, tmp_path, curved(lambda step: 4.0 if step >= 100 else 0.5))
    assert found is not None
    assert found.first_step == 100
    assert "since step 100" in found.cause


def test_a_single_measurement_is_less_sure(tmp_path: Path) -> None:
    one = examine(SHARP_CURVATURE, tmp_path / "one", curved(steps=[0], rate=None), UNKNOWN)
    many = examine(SHARP_CURVATURE, tmp_path / "many", curved(), UNKNOWN)
    assert one is not None
    assert many is not None
    assert one.confidence < many.confidence
    assert "learning_rate" not in one.evidence
