from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.untrained_parameter import UNTRAINED_PARAMETER
from desat.record.rows import ParameterStatistics, Reading, Row, Site
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network

SLOW = replace(HALF_WAY, state="slow", fall=0.3)


def network(layers: int = 4, steps: Iterable[int] = SAMPLES) -> list[Row]:
    return deep_network(layers=layers, steps=steps)


def without_gradient(rows: list[Row], *weights: int) -> list[Row]:
    """No rows of the weights, by the number of their site."""
    return [row for row in rows if not isinstance(row, ParameterStatistics) or row.site not in weights]


def changed(rows: list[Row], weight: int, **values: float) -> list[Row]:
    return [
        row._replace(**values) if isinstance(row, ParameterStatistics) and row.site == weight else row for row in rows
    ]


def readings(weight: int, **values: float) -> list[Row]:
    return [Reading(weight, name, step, value) for step in SAMPLES for name, value in values.items()]


def left_out(weight: int, has_gradient: float = 1.0, change: float = 0.0) -> list[Row]:
    return readings(weight, in_optimizer=0.0, has_gradient=has_gradient, changed=change, elements=4096.0)


def test_a_weight_in_no_optimizer(tmp_path: Path) -> None:
    found = examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(), 2) + left_out(2))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "net.0.weight", ("net.0.weight",))
    assert "in no optimizer" in found.cause
    assert found.evidence["untrained_share"] == pytest.approx(0.25)
    assert "25% of the weights" in found.message
    assert (found.first_step, found.last_step) == (0, 290)


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(HARMED, "error"), (SLOW, "error"), (LEARNED, "warning"), (HALF_WAY, "warning"), (UNKNOWN, "warning")],
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(), 2) + left_out(2), learning)
    assert found is not None
    assert found.severity == severity


def test_a_weight_that_ran_but_got_no_gradient_is_cut_off(tmp_path: Path) -> None:
    """It is in the optimizer, so it was meant to be trained, and a loss that stays high is harm enough."""
    learning = replace(HALF_WAY, fall=0.3)
    found = examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(), 2, 5), learning)
    assert found is not None
    assert (found.severity, found.sites) == ("error", ("net.0.weight", "net.2.weight"))
    assert "detach" in found.cause
    assert found.evidence["cut_off"] == 2


def test_one_of_many_weights_does_not_explain_a_harm(tmp_path: Path) -> None:
    found = examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(layers=12), 2))
    assert found is not None
    assert found.severity == "warning"


def test_what_something_else_trains_is_not_untrained(tmp_path: Path) -> None:
    rows = without_gradient(network(), 2)
    assert examine(UNTRAINED_PARAMETER, tmp_path / "changes", rows + left_out(2, change=0.5)) is None
    once = [row for row in left_out(2) if row.name != "changed"]  # pyright: ignore[reportAttributeAccessIssue]
    assert examine(UNTRAINED_PARAMETER, tmp_path / "once", rows + once) is None


def test_a_weight_that_no_step_changes_while_others_move(tmp_path: Path) -> None:
    found = examine(UNTRAINED_PARAMETER, tmp_path, changed(network(), 5, update_rms=0.0))
    assert found is not None
    assert (found.severity, found.site) == ("error", "net.2.weight")
    assert "learning rate is zero" in found.cause


def test_gradients_too_small_to_move_a_float_do_not_speak_of_the_rate(tmp_path: Path) -> None:
    faint = changed(network(), 5, update_rms=0.0, gradient_rms=1e-10)
    assert examine(UNTRAINED_PARAMETER, tmp_path / "faint", faint) is None
    seen = changed(network(), 5, update_rms=0.0, gradient_rms=1e-3)
    assert examine(UNTRAINED_PARAMETER, tmp_path / "seen", seen) is not None


def test_where_nothing_moves_the_steps_are_the_matter_and_not_a_weight(tmp_path: Path) -> None:
    rows = network()
    for weight in (2, 5, 8, 11):
        rows = changed(rows, weight, update_rms=0.0)
    assert examine(UNTRAINED_PARAMETER, tmp_path, rows) is None


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "warning"), (LEARNED, "note")])
def test_a_gradient_of_exactly_zero(tmp_path: Path, learning: Learning, severity: str) -> None:
    rows = changed(network(), 2, gradient_rms=0.0, update_rms=0.0)
    found = examine(UNTRAINED_PARAMETER, tmp_path, rows, learning)
    assert found is not None
    assert found.severity == severity
    assert "exactly zero" in found.cause


def test_a_gate_that_starts_at_zero_is_none(tmp_path: Path) -> None:
    rows = [
        row._replace(gradient_rms=0.0, update_rms=0.0)
        if isinstance(row, ParameterStatistics) and row.site == 2 and row.step < 20
        else row
        for row in network()
    ]
    assert examine(UNTRAINED_PARAMETER, tmp_path, rows) is None


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "warning"), (LEARNED, "note"), (HALF_WAY, "note")])
def test_frozen_weights_are_meant(tmp_path: Path, learning: Learning, severity: str) -> None:
    rows = without_gradient(network(), 2, 5, 8)
    rows += [row for weight in (2, 5, 8) for row in readings(weight, frozen=1.0)]
    found = examine(UNTRAINED_PARAMETER, tmp_path, rows, learning)
    assert found is not None
    assert found.severity == severity


def test_what_is_under_no_grad_and_in_no_optimizer_is_frozen_too(tmp_path: Path) -> None:
    found = examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(), 2) + left_out(2, has_gradient=0.0))
    assert found is not None
    assert found.severity == "note"
    assert "frozen" in found.cause


def test_a_layer_that_never_ran_is_unused(tmp_path: Path) -> None:
    rows = [row for row in without_gradient(network(), 5) if not (isinstance(row, Site) and row.name == "net.2")]
    found = examine(UNTRAINED_PARAMETER, tmp_path, rows, LEARNED)
    assert found is not None
    assert found.severity == "note"
    assert "never run" in found.cause


def test_biases_alone_are_a_note(tmp_path: Path) -> None:
    rows = [
        row._replace(name="net.0.bias") if isinstance(row, Site) and row.name == "net.0.weight" else row
        for row in without_gradient(network(), 2)
    ]
    found = examine(UNTRAINED_PARAMETER, tmp_path, rows)
    assert found is not None
    assert found.severity == "note"


def test_two_samples_tell_nothing(tmp_path: Path) -> None:
    assert examine(UNTRAINED_PARAMETER, tmp_path, without_gradient(network(steps=[0, 1]), 2)) is None


def test_a_healthy_network_and_one_of_one_layer_have_none(tmp_path: Path) -> None:
    assert examine(UNTRAINED_PARAMETER, tmp_path / "healthy", network()) is None
    assert examine(UNTRAINED_PARAMETER, tmp_path / "one", network(layers=1)) is None


def test_gradients_that_are_not_finite_are_not_zero(tmp_path: Path) -> None:
    rows = [
        row._replace(gradient_rms=None, update_rms=None) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=2, steps=SAMPLES, nonfinite_from=0)
    ]
    assert examine(UNTRAINED_PARAMETER, tmp_path, rows) is None


SLOW = Learning("slow", 400, 2.3, 2.0, 0.13, 0.05)


@pytest.mark.parametrize(
    ("learning", "severity"),
    [
        (replace(SLOW, guessing=2.3), "error"),
        (replace(SLOW, guessing=4.6), "warning"),  # it knew something before
        (SLOW, "warning"),
        (replace(HALF_WAY, guessing=2.3), "note"),
    ],
)
def test_frozen_weights_of_a_network_that_stays_at_guessing_were_never_trained(
    tmp_path: Path, learning: Learning, severity: str
) -> None:
    rows = without_gradient(network(), 2, 5, 8)
    rows += [row for weight in (2, 5, 8) for row in readings(weight, frozen=1.0)]
    found = examine(UNTRAINED_PARAMETER, tmp_path, rows, learning)
    assert found is not None
    assert found.severity == severity
