from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.exploding_gradient import EXPLODING_GRADIENT
from desat.record.rows import ParameterStatistics, Reading, Row, Site, TensorStatistics
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
    [(UNKNOWN, "error"), (LEARNED, "note"), (Learning("non-finite", nonfinite_since=60), "error")],
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


def recurrent(*decibels: float, operation: str = "RNN") -> list[Row]:
    """A recurrent layer before a Linear, with these gains of the gradient through its sequences of 28 steps."""
    rows = [
        row._replace(name="lstm", operation=operation) if isinstance(row, Site) and row.id == 0 else row
        for row in network(layers=2, layer_gain=1.0)
    ]
    rows.append(Site(90, "lstm.l0", "recurrent", operation, None, 0, None))
    for step, value in zip(SAMPLES, decibels, strict=False):
        rows += [Reading(90, "gradient_first_step_db", step, value), Reading(90, "steps", step, 28.0)]
    return rows


def test_through_time_it_is_the_recurrent_weights(tmp_path: Path) -> None:
    found = examine(EXPLODING_GRADIENT, tmp_path, recurrent(54.0, 54.0, 54.0))
    assert found is not None
    assert (found.site, found.sites, found.severity) == ("lstm", ("lstm", "lstm.l0"), "error")
    assert found.cause == "the recurrent weights are too large: the gradient grows by 2 dB at each step back in time"
    assert found.evidence["gradient_gain_through_time_db"] == pytest.approx(54.0)
    assert found.remedies[0] == "initialization=torch"


@pytest.mark.parametrize("decibels", [(30.0,) * 3, (-60.0,) * 3, (float("nan"),) * 3, ()])
def test_a_gradient_that_fades_through_time_or_was_not_measured_is_none(
    tmp_path: Path, decibels: tuple[float, ...]
) -> None:
    assert examine(EXPLODING_GRADIENT, tmp_path, recurrent(*decibels)) is None


def one_layer(layer: int, decibels: float) -> list[Row]:
    """A network of three layers one of whose Linear strengthens the gradient alone."""
    factor = 10 ** (decibels / 20)
    return [
        row._replace(rms=0.01 * factor)
        if isinstance(row, TensorStatistics) and row.quantity == "gradient" and row.site < 3 * layer
        else row._replace(rms=0.01)
        if isinstance(row, TensorStatistics) and row.quantity == "gradient"
        else row
        for row in network(layers=3, layer_gain=1.0)
    ]


@pytest.mark.parametrize("layer", [1, 2])
def test_a_lone_layer_is_to_blame_and_not_the_depth(tmp_path: Path, layer: int) -> None:
    rows = [row for row in one_layer(layer, 50.0) if getattr(row, "site", getattr(row, "id", None)) != 7]
    found = examine(EXPLODING_GRADIENT, tmp_path, rows)
    assert found is not None
    assert found.site == f"net.{2 * layer}"
    whose = "the last layer's weights" if layer == 2 else "the weights of net.2"
    assert found.cause == f"{whose} are too large: 50 dB of the growth come from it alone"


def test_growth_at_a_recurrent_layer_is_never_the_depth(tmp_path: Path) -> None:
    rows = [
        row._replace(operation="LSTM", name="lstm") if isinstance(row, Site) and row.id == 3 else row
        for row in one_layer(1, 50.0)
    ]
    found = examine(EXPLODING_GRADIENT, tmp_path, rows)
    assert found is not None
    assert found.cause == "the recurrent weights are too large: most of the growth comes at lstm"
