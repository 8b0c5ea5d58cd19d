from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.clipping_dominates import CLIPPED_TO, CLIPPING_DOMINATES, CUT_VALUES
from desat.record.rows import ParameterStatistics, Reading, Row, Site, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine

CREEPING = Learning("learning", 300, 2.3, 2.0, 0.13, 0.12)
SLOW = Learning("slow", 300, 2.3, 2.2, 0.05, 0.03)


def clipped(
    factor: float | Callable[[int], float | None] | None = 1e-3, cut: float = 0.0, *, ratio: float | None = 1e-5,
    steps: Iterable[int] = SAMPLES, operation: str = "SGD", layers: int = 3,
) -> list[Row]:  # fmt: skip
    steps = list(steps)
    rows: list[Row] = [Site(0, "optimizer", "optimizer", operation, None, 0, None)]
    rows += [Site(1 + i, f"net.{i}.weight", "parameter", "Linear", None, i, None) for i in range(layers)]
    for step in range(max(steps) + 1):
        rows.append(Step(step, 0.01 * step, 2.3, 0.01, 0.002 if step in steps else None))
    for step in steps:
        value = factor(step) if callable(factor) else factor
        rows += [
            Reading(0, "clip_factor", step, value), Reading(0, "clipped_value_share", step, cut),
            Reading(0, "gradient_norm", step, 2.0),
        ]  # fmt: skip
        rows += [
            ParameterStatistics(1 + i, step, 4096, 0.1, 1e-3, 0.0, 0.0, None if ratio is None else 0.1 * ratio)
            for i in range(layers)
        ]
    return rows


@pytest.mark.parametrize("layers", [1, 3])
def test_a_limit_far_below_the_gradient_that_starves_the_network_is_an_error(tmp_path: Path, layers: int) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(layers=layers))
    assert found is not None
    assert (found.severity, found.site) == ("error", "optimizer")
    assert (found.first_step, found.last_step) == (0, 290)
    assert found.evidence["clip_limit"] == pytest.approx(2e-3)
    assert "0.002, is too low: the gradient's norm is 2" in found.cause
    assert "0.10%" in found.message
    assert "clipping=2" in found.remedies


@pytest.mark.parametrize(
    ("learning", "severity"),
    [
        (HARMED, "error"), (SLOW, "error"), (CREEPING, "error"), (HALF_WAY, "note"), (LEARNED, "note"),
        (UNKNOWN, "warning"),
    ],
)  # fmt: skip
def test_severity_follows_harm_and_slowness_is_one(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"ratio": 2e-3}, "steps are as large as usual"),
        ({"ratio": 9e-4, "steps": range(0, 2000, 10)}, "small steps have led far"),
        ({"operation": "Adam"}, "Adam divides by the gradient's size"),
        ({"ratio": None}, "the steps are not known"),
    ],
)
def test_clipping_often_alone_is_a_note(tmp_path: Path, values: dict, why: str) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(0.05, **values))
    assert found is not None, why
    assert found.severity == "note", why


def test_a_guard_against_outliers_is_no_finding(tmp_path: Path) -> None:
    assert examine(CLIPPING_DOMINATES, tmp_path / "mild", clipped(CLIPPED_TO.value + 0.01)) is None
    assert examine(CLIPPING_DOMINATES, tmp_path / "few", clipped(cut=CUT_VALUES.value - 0.01, factor=1.0)) is None
    rare = clipped(lambda step: 1e-3 if step % 40 == 0 else 1.0)
    assert examine(CLIPPING_DOMINATES, tmp_path / "rare", rare) is None


def test_clipping_by_value_that_leaves_signs_alone(tmp_path: Path) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(1.0, cut=0.95))
    assert found is not None
    assert found.severity == "error"
    assert "by value cuts 95%" in found.cause


def test_since_when(tmp_path: Path) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(lambda step: 1e-3 if step >= 30 else 1.0))
    assert found is not None
    assert (found.severity, found.first_step) == ("error", 30)
    late = examine(CLIPPING_DOMINATES, tmp_path / "late", clipped(lambda step: 1e-3 if step >= 200 else 1.0))
    assert late is not None
    assert late.severity == "note"


def test_few_samples_make_no_error(tmp_path: Path) -> None:
    found = examine(CLIPPING_DOMINATES, tmp_path, clipped(steps=[0], ratio=1e-4), UNKNOWN)
    assert found is not None
    assert found.severity == "note"


@pytest.mark.parametrize("factor", [None, np.nan])
def test_factors_that_are_not_finite_say_nothing(tmp_path: Path, factor: float | None) -> None:
    assert examine(CLIPPING_DOMINATES, tmp_path, clipped(factor)) is None


def test_without_an_optimizer_there_is_nothing(tmp_path: Path) -> None:
    assert examine(CLIPPING_DOMINATES, tmp_path, [row for row in clipped() if not isinstance(row, Reading)]) is None
