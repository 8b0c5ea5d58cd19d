from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.diagnose.rules.dead_units import DEAD_UNITS, WINDOW
from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced
from tests.records import deep_network


def network(**values: Any) -> list[Row]:
    return deep_network(**({"layers": 2, "steps": SAMPLES, "operation": "ReLU", "dead_units": 48} | values))


def test_units_that_were_never_on_are_dead_since_initialization(tmp_path: Path) -> None:
    found = examine(DEAD_UNITS, tmp_path, network())
    assert found is not None
    assert found.evidence["dead_units"] == 48
    assert found.evidence["dead_share"] == pytest.approx(0.75)
    assert found.sites == ("net.1", "net.3")
    assert "48 of 64 units" in found.message
    assert "since initialization" in found.cause


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "warning"), (LEARNED, "note")])
def test_severity_follows_harm(tmp_path: Path, learning, severity: str) -> None:
    found = examine(DEAD_UNITS, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("values", [{"dead_units": 31}, {"operation": "Sigmoid", "dead_units": 64}])
def test_a_few_dead_units_and_stuck_sigmoids_are_not_its_business(tmp_path: Path, values: dict[str, Any]) -> None:
    assert examine(DEAD_UNITS, tmp_path, network(**values)) is None


def test_units_that_take_turns_are_alive(tmp_path: Path) -> None:
    on, off = np.packbits(np.zeros(64, bool)).tobytes(), np.packbits(np.ones(64, bool)).tobytes()
    rows = [
        row._replace(saturated_units=off if row.step % 20 else on)
        if isinstance(row, TensorStatistics) and row.quantity == "input"
        else row
        for row in network()
    ]
    assert examine(DEAD_UNITS, tmp_path, rows) is None


def test_it_says_which_update_killed_them(tmp_path: Path) -> None:
    rows = spliced(network(dead_units=0), network(), 150)
    large = [
        row._replace(update_rms=0.5) if isinstance(row, ParameterStatistics) and row.step == 140 else row
        for row in rows
    ]
    found = examine(DEAD_UNITS, tmp_path, large)
    assert found is not None
    assert found.first_step == 150
    assert "killed by step 150" in found.cause
    assert found.evidence["update_ratio"] == pytest.approx(5.0)


def test_without_a_large_update_they_died_slowly(tmp_path: Path) -> None:
    found = examine(DEAD_UNITS, tmp_path, spliced(network(dead_units=0), network(), 150))
    assert found is not None
    assert "died by step 150" in found.cause


def test_fewer_samples_than_the_window_are_a_warning_at_most(tmp_path: Path) -> None:
    found = examine(DEAD_UNITS, tmp_path, network(steps=range(int(WINDOW.value) - 1)))
    assert found is not None
    assert found.severity == "warning"


def test_units_that_came_back_are_alive(tmp_path: Path) -> None:
    assert examine(DEAD_UNITS, tmp_path, spliced(network(), network(dead_units=0), 280)) is None
