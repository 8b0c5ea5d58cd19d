from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.unscaled_input import UNSCALED_INPUT
from desat.record.rows import Reading, Row, Site
from tests.diagnose.rules.cases import BORN_WRONG, HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network, statistics

INPUT = 80


def network(
    rms: float | None = 1.0, first: str = "Linear", passed: float = 0.6, uneven: float = 2.0, kind: str = "float32",
    layers: int = 2, steps: Iterable[int] = SAMPLES,
) -> list[Row]:  # fmt: skip
    """A network whose input has an rms; passed: rms(first layer's output) / rms(input); uneven: largest feature."""
    rows = deep_network(layers=layers, steps=steps)
    broken: dict[str, Any] = {"rms": None, "mean": None, "nonfinite": 1.0}
    for number, row in enumerate(rows):
        if isinstance(row, Site) and row.id == 0:
            rows[number] = row._replace(operation=first)
        elif getattr(row, "site", None) == 0 and getattr(row, "quantity", "") == "output":
            rows[number] = row._replace(rms=None if rms is None else rms * passed)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    rows.append(Site(INPUT, "input", "input", kind, "train.py:3", -1, None))
    for step in steps:
        rows.append(statistics(INPUT, "output", step, **(broken if rms is None else {"rms": rms, "mean": 0.4 * rms})))
        rows.append(Reading(INPUT, "feature_rms_largest_over_median", step, uneven))
        rows.append(Reading(INPUT, "constant_features", step, 0.4))
    return rows


@pytest.mark.parametrize(
    ("values", "cause"),
    [({"rms": 80.0}, "not scaled"), ({"rms": 1e-3}, "scaled down too far"), ({"uneven": 2000.0}, "one by one")],
)
def test_an_unscaled_input_with_harm_is_an_error(tmp_path: Path, values: dict[str, float], cause: str) -> None:
    found = examine(UNSCALED_INPUT, tmp_path, network(**values))  # pyright: ignore[reportArgumentType]
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "input", ("input", "net.0"))
    assert cause in found.cause
    assert found.source == "train.py:3"
    assert (found.first_step, found.last_step) == (0, 290)
    assert "input_rms" in found.evidence
    assert found.evidence["constant_features"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(UNSCALED_INPUT, tmp_path, network(rms=80.0), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("values", [{}, {"rms": 9.0}, {"rms": 0.03}, {"uneven": 20.0}])
def test_inputs_of_usual_size_are_sound(tmp_path: Path, values: dict[str, float]) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(**values)) is None  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("first", ["BatchNorm1d", "LayerNorm", "Embedding"])
def test_a_first_layer_that_normalizes_or_embeds_makes_it_harmless(tmp_path: Path, first: str) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(rms=80.0, uneven=1000.0, first=first)) is None


def test_a_network_that_scales_its_input_itself_is_sound(tmp_path: Path) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(rms=120.0, passed=0.6 / 255)) is None


def test_a_recurrent_layer_has_a_bounded_output_whatever_comes_in(tmp_path: Path) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(rms=120.0, passed=0.5 / 120.0, first="LSTM")) is not None


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool"])
def test_whole_numbers_are_no_input_of_a_layer_with_weights(tmp_path: Path, kind: str) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(rms=120.0, kind=kind)) is None


def test_one_layer_and_one_sample(tmp_path: Path) -> None:
    found = examine(UNSCALED_INPUT, tmp_path, network(rms=80.0, layers=1, steps=[0]), UNKNOWN)
    assert found is not None
    assert found.severity == "warning"


def test_an_input_that_is_not_finite_is_another_disease(tmp_path: Path) -> None:
    assert examine(UNSCALED_INPUT, tmp_path, network(rms=None)) is None


@pytest.mark.parametrize(("rms", "severity"), [(80.0, "error"), (11.0, "note"), (1e-4, "note")])
def test_a_large_input_makes_a_network_sure_and_wrong_from_birth(tmp_path: Path, rms: float, severity: str) -> None:
    found = examine(UNSCALED_INPUT, tmp_path, network(rms=rms), BORN_WRONG)
    assert found is not None
    assert found.severity == severity
