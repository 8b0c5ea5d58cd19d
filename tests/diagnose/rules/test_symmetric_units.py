from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.symmetric_units import SYMMETRIC_UNITS
from desat.record.rows import ParameterStatistics, Reading, Row, Site, TensorStatistics
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network

LAYER, WEIGHT = 3, 5
"""The sites of net.2 and of its weight."""


def network(*shares: float, layer: int = LAYER, layers: int = 3) -> list[Row]:
    """A network of which a layer has these shares of duplicate units, one for each sample of them."""
    steps = [0, 10, 20, 30, 160, 290]
    rows = deep_network(layers=layers, steps=SAMPLES)
    return rows + [Reading(layer, "duplicate_units", step, value) for step, value in zip(steps, shares, strict=False)]


def zeroed(rows: list[Row], weight: int = WEIGHT, until: int = 1000) -> list[Row]:
    return [
        row._replace(rms=0.0, update_rms=0.0, gradient_rms=0.0)
        if isinstance(row, ParameterStatistics) and row.site == weight and row.step < until
        else row
        for row in rows
    ]


def test_a_constant_layer(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, network(*[1.0] * 6))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "net.2", ("net.2",))
    assert "set to one constant" in found.cause
    assert "100% of the units" in found.message
    assert found.evidence["duplicate_units"] == 1.0
    assert (found.first_step, found.last_step) == (0, 290)


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, network(*[1.0] * 6), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("shares", [[0.85] * 6, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], []])
def test_a_few_doubles_and_a_symmetry_that_breaks_are_none(tmp_path: Path, shares: list[float]) -> None:
    assert examine(SYMMETRIC_UNITS, tmp_path, network(*shares)) is None


def test_layers_that_become_alike_are_told_since_when(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, network(0.0, 0.0, 0.0, 1.0, 1.0, 1.0))
    assert found is not None
    assert found.first_step == 30
    assert "became alike by step 30" in found.cause


def test_weights_that_are_all_zero_and_stay_so(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, zeroed(network()))
    assert found is not None
    assert (found.severity, found.site) == ("error", "net.2")
    assert "all zero" in found.cause
    assert found.evidence["zero"] == 1.0


def test_a_layer_that_starts_at_zero_is_healthy(tmp_path: Path) -> None:
    assert examine(SYMMETRIC_UNITS, tmp_path, zeroed(network(), until=10)) is None


def test_nonlinearities_are_not_looked_at(tmp_path: Path) -> None:
    assert examine(SYMMETRIC_UNITS, tmp_path, network(*[1.0] * 6, layer=4)) is None


def test_two_samples_are_a_warning_at_most(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, network(1.0, 1.0))
    assert found is not None
    assert found.severity == "warning"


def test_one_layer_only(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, network(*[1.0] * 6, layer=0, layers=1))
    assert found is not None
    assert found.site == "net.0"


def test_where_nothing_is_finite_nothing_is_said(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=None, update_rms=None) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=2, steps=SAMPLES, nonfinite_from=0)
    ]
    assert examine(SYMMETRIC_UNITS, tmp_path, rows) is None


def test_zero_weights_win_over_units_that_are_alike(tmp_path: Path) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, zeroed(network(*[1.0] * 6, layer=6)))
    assert found is not None
    assert found.site == "net.2"
    assert "all zero" in found.cause


def test_weights_that_the_first_step_made_from_zero(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=0.01, update_rms=0.01 if row.step == 0 else 1e-4)
        if isinstance(row, ParameterStatistics) and row.site == WEIGHT
        else row
        for row in network(*[1.0] * 6)
    ]
    found = examine(SYMMETRIC_UNITS, tmp_path, rows)
    assert found is not None
    assert found.cause == "the weights were all zero at first, so nothing tells the units apart"
    assert "not zero" in found.message


def test_units_into_which_nothing_comes_are_no_constant_weights(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=0.0) if isinstance(row, TensorStatistics) and row[:2] == (1, "output") else row
        for row in network(*[1.0] * 6)
    ]
    found = examine(SYMMETRIC_UNITS, tmp_path, rows)
    assert found is not None
    assert "nothing comes into the layer" in found.cause


def recurrent(spread: float, until: int = 1000, begins: int = 0) -> list[Row]:
    """The network with a recurrent layer behind it whose weights have this spread over its units for a while."""
    sites = [
        Site(70, "lstm", "module", "LSTM", "train.py:9", 9, None),
        Site(71, "lstm.l0", "recurrent", "LSTM", None, 9, None),
    ]
    spreads = [Reading(71, "unit_spread", step, spread if begins <= step < until else 1.0) for step in SAMPLES]
    return [*network(), *sites, *spreads]


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (HALF_WAY, "error"), (LEARNED, "note")])
def test_a_recurrent_layer_whose_units_are_nearly_alike(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(SYMMETRIC_UNITS, tmp_path, recurrent(0.05), learning)
    assert found is not None
    assert (found.severity, found.site, found.source) == (severity, "lstm", "train.py:9")
    assert "set to one constant" in found.cause
    assert "by 5.0% of their size" in found.message
    assert found.evidence["unit_spread"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "rows", [recurrent(0.6), recurrent(0.05, until=150), recurrent(0.05, begins=150)], ids=["drawn", "broken", "later"]
)
def test_a_recurrent_layer_whose_units_are_told_apart(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(SYMMETRIC_UNITS, tmp_path, rows) is None
