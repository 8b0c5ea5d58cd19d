from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.diagnose.rules.dead_units import DEAD_UNITS, WINDOW
from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from tests.diagnose.rules.cases import (
    HARMED,
    LEARNED,
    SAMPLES,
    UNKNOWN,
    examine,
    spliced,
    weighing,
    with_biases,
    with_input,
    with_rates,
)
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


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (LEARNED, "note")])
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


def below_zero(rows: list[Row], rms: float = 4.0, site: int | None = None) -> list[Row]:
    """The network with Linear outputs, all or those of one, of this size below zero."""
    return [
        row._replace(rms=rms, mean=-0.95 * rms)
        if isinstance(row, TensorStatistics)
        and row.quantity == "output"
        and row.site % 3 == 0
        and site in (None, row.site)
        else row
        for row in rows
    ]


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (with_biases(below_zero(network()), 4.0), "biases hold every pre-activation below zero since initialization"),
        (with_input(with_biases(network(layers=1), 0.01), rms=1.0, mean=1.0), "what goes into net.0 is off centre"),
        (with_input(with_biases(network(layers=1), 0.01), rms=1.0), "the weights of net.0 push every pre-activation"),
        (with_input(with_biases(network(layers=1), 0.01), rms=1e-5), "the network's input is next to nothing"),
        (with_biases(weighing(below_zero(network(), 1e-3), 1e-3), 1e-3), "the weights of net.0 are too small"),
        (with_biases(weighing(network(), 0.0), 0.0), "the weights of net.0 are all zero"),
        (network(), "biases or weights push every pre-activation below zero"),
    ],
    ids=["bias", "input off centre", "weights", "faint input", "faint weights", "zero weights", "no bias recorded"],
)  # fmt: skip
def test_what_they_were_born_dead_by(tmp_path: Path, rows: list[Row], cause: str) -> None:
    found = examine(DEAD_UNITS, tmp_path, rows)
    assert found is not None
    assert cause in found.cause


def test_the_jump_of_the_learning_rate_killed_them(tmp_path: Path) -> None:
    rows = with_rates(spliced(network(dead_units=0), network(), 150), 0.01, 0.5, 143)
    found = examine(DEAD_UNITS, tmp_path, rows)
    assert found is not None
    assert found.cause == "killed by step 150: the learning rate jumped from 0.01 to 0.5 at step 143"


def test_a_bias_that_started_at_zero_is_no_large_update(tmp_path: Path) -> None:
    rows = [
        row._replace(update_rms=row.rms) if isinstance(row, ParameterStatistics) and row.site >= 500 else row
        for row in with_biases(spliced(network(dead_units=0), network(), 150), 0.01)
    ]
    found = examine(DEAD_UNITS, tmp_path, rows)
    assert found is not None
    assert "died by step 150" in found.cause


def test_samples_that_are_not_finite_keep_the_cautious_words(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=None, mean=None) if isinstance(row, TensorStatistics) else row
        for row in with_biases(network(), float("nan"))
    ]
    found = examine(DEAD_UNITS, tmp_path, rows)
    assert found is not None
    assert "biases or weights push" in found.cause
