from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.rules.vanishing_gradient import LOST_GRADIENT, VANISHING_GRADIENT
from desat.record.rows import ParameterStatistics, Row, Site, TensorStatistics
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced
from tests.records import deep_network


def network(**values: Any) -> list[Row]:
    return deep_network(**({"layers": 8, "steps": SAMPLES, "layer_gain": 0.2} | values))


def test_it_names_the_loss_in_decibels_its_share_and_who_takes_part(tmp_path: Path) -> None:
    found = examine(VANISHING_GRADIENT, tmp_path, network())
    assert found is not None
    assert found.evidence["gradient_loss_db"] == pytest.approx(8 * -13.98, abs=0.1)
    assert found.evidence["nonlinearity_share"] == pytest.approx(1.0)
    assert "nonlinearity" in found.cause
    assert "100%" in found.cause
    assert found.sites == ("net.0", *(f"net.{2 * layer + 1}" for layer in range(8)))
    assert found.remedies[:2] == ("activation=relu", "initialization=he")
    assert "112 dB" in found.message


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (LEARNED, "note")])
def test_severity_follows_harm(tmp_path: Path, learning, severity: str) -> None:
    found = examine(VANISHING_GRADIENT, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("values", [{"layer_gain": 0.9}, {"layers": 1}, {"steps": []}, {"nonfinite_from": 0}])
def test_a_sound_or_an_unmeasured_network_has_none(tmp_path: Path, values: dict[str, Any]) -> None:
    assert examine(VANISHING_GRADIENT, tmp_path, network(**values)) is None


def test_weights_that_lose_it_are_told_from_nonlinearities(tmp_path: Path) -> None:
    swapped = []
    for row in network(operation="ReLU"):
        if isinstance(row, Site) and row.kind != "parameter":
            linear = row.kind == "nonlinearity"
            row = row._replace(
                kind="module" if linear else "nonlinearity", operation="Linear" if linear else "ReLU", curve=None
            )
        swapped.append(row)
    found = examine(VANISHING_GRADIENT, tmp_path, swapped)
    assert found is not None
    assert "weight" in found.cause
    assert found.remedies[0] == "initialization=he"


def test_a_feature_map_that_spreads_the_gradient_thin_is_sound(tmp_path: Path) -> None:
    rows = [row._replace(gradient_rms=1e-3) if isinstance(row, ParameterStatistics) else row for row in network()]
    assert examine(VANISHING_GRADIENT, tmp_path / "learned", rows, LEARNED) is None
    assert examine(VANISHING_GRADIENT, tmp_path / "harmed", rows, HARMED) is not None


def test_it_is_told_since_when(tmp_path: Path) -> None:
    found = examine(VANISHING_GRADIENT, tmp_path, spliced(network(layer_gain=1.0), network(), 100))
    assert found is not None
    assert (found.first_step, found.last_step) == (100, 290)
    assert "since step 100" in found.message


def test_a_network_that_recovered_gets_a_note(tmp_path: Path) -> None:
    found = examine(VANISHING_GRADIENT, tmp_path, spliced(network(), network(layer_gain=1.0), 100))
    assert found is not None
    assert (found.severity, found.last_step) == ("note", 90)


def test_a_gradient_of_zero_is_finite_evidence(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=0.0)
        if isinstance(row, TensorStatistics) and row.quantity == "gradient" and row.site < 6
        else row
        for row in network()
    ]
    found = examine(VANISHING_GRADIENT, tmp_path, rows)
    assert found is not None
    assert -1000 < found.evidence["gradient_loss_db"] < LOST_GRADIENT.value


def test_confidence_grows_with_the_loss_and_with_the_samples(tmp_path: Path) -> None:
    little = examine(VANISHING_GRADIENT, tmp_path / "little", network(layers=5))
    much = examine(VANISHING_GRADIENT, tmp_path / "much", network(layers=12))
    once = examine(VANISHING_GRADIENT, tmp_path / "once", network(layers=12, steps=[0]))
    assert little is not None
    assert much is not None
    assert once is not None
    assert little.confidence < much.confidence
    assert once.confidence < much.confidence
