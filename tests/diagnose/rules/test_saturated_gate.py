from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.rules.saturated_gate import BLOCKED_GATE, SATURATED_GATE
from desat.record.rows import ParameterStatistics, Reading, Row, Site, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import statistics

LSTM = ("input", "forget", "cell", "output")
GRU = ("reset", "update", "new")
OPEN = (0.0, 0.0, 0.5)
SHUT = (0.9, 0.0, 0.01)
FULL = (0.0, 0.9, 0.99)

Gate = tuple[float | None, float | None, float | None]


def layer(
    *, gates: tuple[str, ...] = LSTM, steps: Iterable[int] = SAMPLES, begins: int = 0, ends: int = 1000,
    reach: float = 20.0, length: float = 28.0, bias: float = 0.08, weight: float = 0.083, inputs: float = 1.0,
    **sick: Gate,
) -> list[Row]:  # fmt: skip
    """Rows of one recurrent layer of 48 units; `sick` gates have the given shares low, high and mean for a while."""
    kind = {LSTM: "LSTM", GRU: "GRU", ("hidden",): "RNN"}[gates]
    steps = list(steps)
    parameters = {"weight_hh_l0": (weight, len(gates) * 48 * 48), "bias_ih_l0": (bias, len(gates) * 48)}
    rows: list[Row] = [Site(0, "input", "input", "float32", None, 0, None)]
    rows += [Site(1, "rnn.l0", "recurrent", kind, "train.py:7", 1, None)]
    rows += [
        Site(2 + i, f"rnn.l0.{gate}", "gate", f"{kind} gate", "train.py:7", 1, None) for i, gate in enumerate(gates)
    ]
    rows += [Site(8 + i, f"rnn.{name}", "parameter", kind, None, 1, None) for i, name in enumerate(parameters)]
    for step in steps:
        rows.append(Step(step, 0.01 * step, 2.3, 0.01, 0.002))
        rows.append(statistics(0, "output", step, rms=inputs))
        rows += [Reading(1, "gradient_reach_steps", step, reach), Reading(1, "steps", step, length)]
        for i, gate in enumerate(gates):
            values = sick[gate] if gate in sick and begins <= step < ends else OPEN
            names = ("saturated_low", "saturated_high", "mean")
            rows += [Reading(2 + i, name, step, value) for name, value in zip(names, values, strict=True)]
        for i, (rms, elements) in enumerate(parameters.values()):
            rows.append(ParameterStatistics(8 + i, step, elements, rms, 1e-3, 0.0, 0.0, 1e-4))
    return rows


@pytest.mark.parametrize(
    ("gates", "gate", "values"),
    [
        (LSTM, "input", SHUT), (LSTM, "forget", SHUT), (LSTM, "output", SHUT), (LSTM, "cell", (0.4, 0.4, 0.0)),
        (LSTM, "forget", (0.45, 0.45, 0.5)), (GRU, "update", FULL), (GRU, "new", SHUT), (GRU, "reset", (0.4, 0.4, 0.5)),
        (("hidden",), "hidden", (0.9, 0.0, -0.95)), (("hidden",), "hidden", (0.4, 0.4, 0.0)),
    ],
)  # fmt: skip
def test_a_gate_at_its_blocking_end_is_an_error_where_nothing_is_learned(
    tmp_path: Path, gates: tuple[str, ...], gate: str, values: Gate
) -> None:
    sick: dict[str, Any] = {gate: values}
    found = examine(SATURATED_GATE, tmp_path, layer(gates=gates, **sick))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", f"rnn.l0.{gate}", (f"rnn.l0.{gate}",))
    assert found.source == "train.py:7"
    assert "since initialization" in found.cause


@pytest.mark.parametrize(
    ("gates", "gate", "values"),
    [
        (LSTM, "forget", FULL), (LSTM, "input", FULL), (LSTM, "output", FULL), (GRU, "update", SHUT),
        (GRU, "reset", SHUT), (GRU, "reset", FULL), (("hidden",), "hidden", (0.9, 0.0, 0.2)),
        (LSTM, "cell", (0.19, 0.19, 0.0)),
    ],
)  # fmt: skip
def test_an_open_forget_gate_and_its_like_are_healthy(
    tmp_path: Path, gates: tuple[str, ...], gate: str, values: Gate
) -> None:
    sick: dict[str, Any] = {gate: values}
    assert examine(SATURATED_GATE, tmp_path, layer(gates=gates, **sick)) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning, severity: str) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(input=SHUT), learning)
    assert found is not None
    assert found.severity == severity


def test_a_gate_that_lets_through_next_to_nothing_is_shut_before_its_curve_is_flat(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(input=(0.2, 0.0, 0.02)))
    assert found is not None
    assert "lets through 2.0%" in found.message
    assert examine(SATURATED_GATE, tmp_path / "sound", layer(input=(BLOCKED_GATE.value - 0.01, 0.0, 0.06))) is None


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"bias": 4.0, "input": SHUT}, "biases hold it there"),
        ({"weight": 3.3, "cell": (0.4, 0.4, 0.0)}, "recurrent weights are too large"),
        ({"inputs": 300.0, "cell": (0.4, 0.4, 0.0)}, "inputs are too large"),
        ({"input": SHUT}, "weights and biases push it"),
    ],
)
def test_the_cause_is_biases_weights_or_inputs(tmp_path: Path, values: dict, cause: str) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(**values))
    assert found is not None
    assert cause in found.cause


def test_weights_are_told_in_units_of_their_initialization(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(weight=0.83, input=SHUT))
    assert found is not None
    assert found.evidence["weight_scale"] == pytest.approx(10.0, rel=0.01)


def test_what_came_later_is_the_work_of_updates(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(begins=100, input=SHUT))
    assert found is not None
    assert (found.first_step, found.last_step) == (100, 290)
    assert "since step 100, driven there by updates" in found.cause
    assert found.remedies[0] == "clipping=1.0"


def test_what_is_over_is_a_note(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(ends=100, input=SHUT))
    assert found is not None
    assert (found.severity, found.last_step) == ("note", 90)


def test_the_worst_gate_is_named_first_and_all_are_listed(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(input=(0.6, 0.0, 0.3), output=SHUT))
    assert found is not None
    assert (found.site, found.sites) == ("rnn.l0.output", ("rnn.l0.input", "rnn.l0.output"))


def test_one_sample_is_no_certainty(tmp_path: Path) -> None:
    one = examine(SATURATED_GATE, tmp_path / "one", layer(steps=[0], input=SHUT), UNKNOWN)
    many = examine(SATURATED_GATE, tmp_path / "many", layer(input=SHUT), UNKNOWN)
    assert one is not None
    assert many is not None
    assert one.confidence < many.confidence


def test_gates_that_are_not_finite_say_nothing(tmp_path: Path) -> None:
    nothing = (None, None, None)
    rows = layer(input=nothing, forget=nothing, cell=nothing, output=nothing)
    assert examine(SATURATED_GATE, tmp_path, rows) is None


def test_a_network_without_gates_has_none(tmp_path: Path) -> None:
    rows = [row for row in layer(input=SHUT) if not (isinstance(row, Reading) and row.site > 1)]
    assert examine(SATURATED_GATE, tmp_path, rows) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "note"), (HALF_WAY, None), (LEARNED, None)]
)
def test_a_short_reach_alone_counts_where_nothing_is_learned(tmp_path: Path, learning, severity: str | None) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(reach=7.0, length=200.0), learning)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.site == "rnn.l0"
        assert "7 of 200 steps" in found.message
        assert "forget gate keeps 50%" in found.cause
        assert found.remedies[0] == "initialization=forget-bias"


@pytest.mark.parametrize(("reach", "length"), [(7.0, 28.0), (1.0, 15.0)])
def test_a_good_part_of_the_sequence_or_a_short_one_is_sound(tmp_path: Path, reach: float, length: float) -> None:
    assert examine(SATURATED_GATE, tmp_path, layer(reach=reach, length=length)) is None


def test_without_gates_the_recurrent_weights_are_the_cause_of_a_short_reach(tmp_path: Path) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(gates=("hidden",), reach=3.0, length=100.0))
    assert found is not None
    assert "recurrent weights shrink" in found.cause


HALF_SHUT = (0.15, 0.15, 0.0)


@pytest.mark.parametrize(
    ("weight", "learning", "severity"),
    [
        (1.0, HALF_WAY, "error"),
        (1.0, LEARNED, None),
        (0.4, HALF_WAY, None),
        (0.083, HALF_WAY, None),
        (0.4, HARMED, "error"),
    ],
)
def test_weights_drawn_far_too_large_count_before_a_gate_is_blocked(
    tmp_path: Path, weight: float, learning, severity: str | None
) -> None:
    found = examine(SATURATED_GATE, tmp_path, layer(weight=weight, cell=HALF_SHUT), learning)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.site == "rnn.l0.cell"
        assert "recurrent weights are too large since initialization" in found.cause
        assert found.evidence["saturated_share"] == pytest.approx(0.3)


def test_large_weights_that_drive_no_gate_are_sound(tmp_path: Path) -> None:
    assert examine(SATURATED_GATE, tmp_path, layer(weight=1.0), HARMED) is None
