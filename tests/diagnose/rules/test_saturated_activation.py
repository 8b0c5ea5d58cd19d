from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.rules.saturated_activation import SATURATED_ACTIVATION, SATURATED_SHARE
from desat.record.rows import Row, TensorStatistics
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced
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
    [(HARMED, "error"), (UNKNOWN, "warning"), (HALF_WAY, "warning"), (LEARNED, "note")],
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
