from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.exploding_gradient import EXPLODING_GRADIENT
from desat.record.rows import ParameterStatistics, Row
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network


def network(**values: Any) -> list[Row]:
    return deep_network(**({"layers": 6, "steps": SAMPLES, "layer_gain": 4.0, "operation": "ReLU"} | values))


def growing(decibels: float, first: float = 1e-3) -> list[Row]:
    """A network whose gradients are `first` at the first samples and `decibels` above 1e-3 from step 150 on."""
    return [
        row._replace(gradient_rms=1e-3 * 10 ** (decibels / 20) if row.step >= 150 else first if row.step < 20 else 1e-3)
        if isinstance(row, ParameterStatistics)
        else row
        for row in network(layer_gain=1.0)
    ]


def test_over_the_depth_it_names_the_growth_and_who_takes_part(tmp_path: Path) -> None:
    found = examine(EXPLODING_GRADIENT, tmp_path, network())
    assert found is not None
    assert found.severity == "error"
    assert found.evidence["gradient_gain_db"] == pytest.approx(6 * 12.04, abs=0.1)
    assert found.sites == ("net.0", *(f"net.{2 * layer + 1}" for layer in range(6)))
    assert "72 dB" in found.message
    assert found.remedies[0] == "initialization=he"


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(UNKNOWN, "warning"), (LEARNED, "note"), (Learning("non-finite", nonfinite_since=60), "error")],
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(EXPLODING_GRADIENT, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    "values", [{"layer_gain": 1.2}, {"layers": 1}, {"steps": []}, {"nonfinite_from": 0}, {"layer_gain": 0.0}]
)
def test_a_sound_or_an_unmeasured_network_has_none(tmp_path: Path, values: dict[str, Any]) -> None:
    assert examine(EXPLODING_GRADIENT, tmp_path, network(**values)) is None


def test_over_time_it_names_the_growth_and_since_when(tmp_path: Path) -> None:
    found = examine(EXPLODING_GRADIENT, tmp_path, growing(80))
    assert found is not None
    assert (found.severity, found.first_step) == ("error", 150)
    assert found.evidence["gradient_growth_db"] == pytest.approx(80)
    assert found.remedies[0] == "clipping=1.0"
    assert "learning rate" in found.cause


def test_a_tenfold_gradient_is_sound(tmp_path: Path) -> None:
    assert examine(EXPLODING_GRADIENT, tmp_path, growing(20), HARMED) is None


def test_a_first_step_without_any_gradient_is_no_measure_of_growth(tmp_path: Path) -> None:
    assert examine(EXPLODING_GRADIENT, tmp_path, growing(20, first=0.0)) is None
