from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.rules.saturated_activation import SATURATED_ACTIVATION, SATURATED_SHARE
from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from tests.diagnose.rules.cases import (
    HALF_WAY,
    HARMED,
    LEARNED,
    SAMPLES,
    UNKNOWN,
    examine,
    spliced,
    weighing,
    with_biases,
    with_rates,
)
from tests.diagnose.rules.cases import with_input as with_network_input
from tests.records import deep_network


def network(**values: Any) -> list[Row]:
    return deep_network(**({"steps": SAMPLES, "saturated_low": 0.3, "saturated_high": 0.5} | values))


def with_input(rows: list[Row], **values: Any) -> list[Row]:
    return [
        row._replace(**values) if isinstance(row, TensorStatistics) and row.quantity == "input" else row for row in rows
    ]


def test_it_names_all_places_with_the_share_and_since_when(tmp_path: Path) -> None:
    found = examine(SATURATED_ACTIVATION, tmp_path, network(layers=3))
    assert found is not None
    assert found.sites == ("net.1", "net.3", "net.5")
    assert found.site in found.sites
    assert found.evidence["saturated_share"] == pytest.approx(0.8)
    assert (found.first_step, found.last_step) == (0, 290)
    assert "80%" in found.message
    assert "since initialization" in found.cause


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")],
    ids=["harmed", "unknown", "learns with some way to go", "learned"],
)
def test_severity_follows_harm(tmp_path: Path, learning, severity: str) -> None:
    found = examine(SATURATED_ACTIVATION, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("operation", ["ReLU", "Sigmoid"])
def test_half_of_a_rectifier_and_a_little_of_a_sigmoid_are_sound(tmp_path: Path, operation: str) -> None:
    low = 0.5 if operation == "ReLU" else SATURATED_SHARE.value - 0.01
    assert (
        examine(SATURATED_ACTIVATION, tmp_path, network(operation=operation, saturated_low=low, saturated_high=0.0))
        is None
    )


def test_the_output_of_a_network_that_learned_may_be_sure(tmp_path: Path) -> None:
    rows = network(layers=1)
    assert examine(SATURATED_ACTIVATION, tmp_path / "learned", rows, LEARNED) is None
    assert examine(SATURATED_ACTIVATION, tmp_path / "harmed", rows, HARMED) is not None


def test_what_came_later_is_the_work_of_updates(tmp_path: Path) -> None:
    rows = spliced(network(saturated_low=0.0, saturated_high=0.0), network(), 100)
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert found.first_step == 100
    assert "since step 100" in found.cause


def test_what_is_over_is_a_note_that_says_so(tmp_path: Path) -> None:
    rows = spliced(network(), network(saturated_low=0.0, saturated_high=0.0), 100)
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert (found.severity, found.last_step) == ("note", 90)
    assert "not since" in found.message


@pytest.mark.parametrize(
    ("values", "cause"),
    [({"mean": 0.1, "rms": 8.0}, "too large (rms 8"), ({"mean": -9.0, "rms": 9.1}, "shifted to a mean of -9")],
)
def test_the_cause_tells_width_from_shift(tmp_path: Path, values: dict[str, float], cause: str) -> None:
    found = examine(SATURATED_ACTIVATION, tmp_path, with_input(network(), **values))
    assert found is not None
    assert cause in found.cause


def test_shares_that_were_not_measured_are_no_symptom(tmp_path: Path) -> None:
    rows = with_input(network(), saturated_low=None, saturated_high=None, mean=None, rms=None)
    assert examine(SATURATED_ACTIVATION, tmp_path, rows) is None


def test_a_shallow_network_keeps_its_function_and_mends_its_scale(tmp_path: Path) -> None:
    shallow = examine(SATURATED_ACTIVATION, tmp_path / "shallow", network(layers=2))
    deep = examine(SATURATED_ACTIVATION, tmp_path / "deep", network(layers=8))
    assert shallow is not None
    assert deep is not None
    assert shallow.remedies[0] == "initialization=xavier"
    assert deep.remedies[:2] == ("activation=relu", "initialization=he")


def test_stuck_units_are_evidence(tmp_path: Path) -> None:
    found = examine(SATURATED_ACTIVATION, tmp_path, network(dead_units=16))
    assert found is not None
    assert found.evidence["stuck_unit_share"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (with_biases(weighing(network(), 0.125), 4.0), "the bias of net.0 is too large, its rms is 4"),
        (with_biases(weighing(network(), 1.25), 0.01), "the weights of net.0 are too large, their gain is 10"),
        (with_network_input(with_biases(weighing(network(layers=1), 0.125), 0.01), rms=50.0),
         "the network's input is too large, its rms is 50"),
        (network(), "weights or inputs are scaled too large"),
        (with_biases(weighing(network(), 0.125), 0.01), "weights or inputs are scaled too large"),
    ],
    ids=["bias", "weights", "input", "an old record without biases", "nothing stands out"],
)  # fmt: skip
def test_the_cause_at_birth_is_told_from_what_comes_in(tmp_path: Path, rows: list[Row], cause: str) -> None:
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert "since initialization" in found.cause
    assert cause in found.cause


def test_a_large_input_of_a_hidden_layer_is_traced_to_what_made_it(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=9.0)
        if isinstance(row, TensorStatistics) and (row.site, row.quantity) == (1, "output")
        else row
        for row in with_biases(weighing(weighing(network(layers=2), 0.125), 1.25, site=2), 0.01)
        if not (isinstance(row, TensorStatistics) and (row.site, row.quantity) == (1, "input"))
    ]
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert found.site == "net.3"
    assert "the weights of net.0 are too large" in found.cause


def test_the_jump_of_the_learning_rate_is_named(tmp_path: Path) -> None:
    healthy = network(saturated_low=0.0, saturated_high=0.0)
    rows = with_rates(spliced(healthy, network(), 100), 0.01, 1.0, 96)
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert found.cause.endswith("since step 100, not before: the learning rate jumped from 0.01 to 1 at step 96")


def test_one_large_update_is_named(tmp_path: Path) -> None:
    rows = [
        row._replace(update_rms=0.3) if isinstance(row, ParameterStatistics) and row.step == 90 else row
        for row in spliced(network(saturated_low=0.0, saturated_high=0.0), network(), 100)
    ]
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert "an update of 300% of the weights" in found.cause


def test_a_record_of_one_sample_without_finite_sizes_keeps_its_caution(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=None, mean=None) if isinstance(row, TensorStatistics) else row
        for row in with_biases(network(layers=1, steps=[0]), float("nan"), steps=[0])
    ]
    found = examine(SATURATED_ACTIVATION, tmp_path, rows)
    assert found is not None
    assert "weights or inputs are scaled too large" in found.cause
