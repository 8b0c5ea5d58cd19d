from collections.abc import Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.update_too_large import UPDATE_TOO_LARGE
from desat.record.rows import ParameterStatistics, Row, Site
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine, with_rates
from tests.records import deep_network

SPOILED = Learning("learning", 300, 1000.0, 2.4, 0.99, 0.0)


def thrown(step: int) -> float:
    return 2.3 if step <= 50 else 9.0 if step < 80 else 2.4


def network(
    ratio: float = 0.5, first: int = 50, last: int = 60, loss=thrown, steps: Iterable[int] = SAMPLES, layers: int = 3
):
    """The steps of the second layer change it by `ratio` between two steps; the last one's are 0.2 then."""
    large = {f"net.{2 * min(1, layers - 1)}.weight": ratio, f"net.{2 * layers - 2}.weight": min(ratio, 0.2)}
    rows = deep_network(layers=layers, steps=steps, operation="ReLU", loss=loss)
    names = {row.id: row.name for row in rows if isinstance(row, Site)}
    return [
        row._replace(update_rms=(row.rms or 0.0) * large[names[row.site]])
        if isinstance(row, ParameterStatistics) and first <= row.step <= last and names[row.site] in large
        else row
        for row in rows
    ]


def test_it_names_the_layer_the_step_and_the_rate(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_LARGE, tmp_path, network())
    assert found is not None
    assert (found.severity, found.site) == ("error", "net.2.weight")
    assert found.sites == ("net.2.weight", "net.4.weight")
    assert (found.first_step, found.last_step) == (50, 60)
    assert found.evidence["update_ratio"] == pytest.approx(0.5)
    assert (found.evidence["loss_before"], found.evidence["loss_peak"]) == (2.3, 9.0)
    assert found.evidence["fitting_learning_rate"] == pytest.approx(0.01 * 1e-3 / 0.5)
    assert "learning rate is too large" in found.cause
    assert "50%" in found.message


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (SPOILED, "error"), (Learning("unknown", 40), "error")]
)
def test_a_loss_that_does_not_come_back_is_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(UPDATE_TOO_LARGE, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


def test_few_losses_are_a_warning(tmp_path: Path) -> None:
    def loss(step: int) -> float:
        return 2.3 if step <= 2 else 9.0

    found = examine(UPDATE_TOO_LARGE, tmp_path, network(first=2, last=3, loss=loss, steps=range(20)), UNKNOWN)
    assert found is not None
    assert found.severity == "warning"


@pytest.mark.parametrize("learning", [LEARNED, HALF_WAY])
def test_a_network_that_recovers_and_learns_has_nothing(tmp_path: Path, learning: Learning) -> None:
    def loss(step: int) -> float:
        return 2.3 if step <= 50 else 4.0 if step < 60 else 2.3 * 0.98 ** (step - 60)

    assert examine(UPDATE_TOO_LARGE, tmp_path, network(loss=loss), learning) is None


def test_large_steps_that_do_no_damage_are_no_cause_of_a_plateau(tmp_path: Path) -> None:
    assert examine(UPDATE_TOO_LARGE, tmp_path, network(loss=lambda step: 2.3 + 0.01 * (step % 7))) is None


def test_large_steps_that_last_in_a_network_that_learns_are_a_note(tmp_path: Path) -> None:
    def loss(step: int) -> float:
        return 2.3 if step <= 50 else 9.0 if step < 80 else 0.2

    found = examine(UPDATE_TOO_LARGE, tmp_path, network(last=300, loss=loss), LEARNED)
    assert found is not None
    assert found.severity == "note"


@pytest.mark.parametrize("ratio", [0.09, 1e-3])
def test_below_the_threshold_there_is_nothing(tmp_path: Path, ratio: float) -> None:
    assert examine(UPDATE_TOO_LARGE, tmp_path, network(ratio)) is None


def test_one_layer_is_enough(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_LARGE, tmp_path, network(layers=1))
    assert found is not None
    assert found.sites == ("net.0.weight",)


@pytest.mark.parametrize("kind", ["no samples", "no losses", "non-finite"])
def test_what_was_not_measured_is_no_finding(tmp_path: Path, kind: str) -> None:
    rows: list[Row] = network(steps=[]) if kind == "no samples" else network()
    if kind == "no losses":
        rows = network(loss=lambda step: None)
    if kind == "non-finite":
        rows = [row._replace(update_rms=None) if isinstance(row, ParameterStatistics) else row for row in rows]
    assert examine(UPDATE_TOO_LARGE, tmp_path, rows) is None


def test_a_weight_that_starts_at_zero_is_left_out(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=0.001 * (row.step + 1), update_rms=0.001) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=3, steps=range(300), loss=lambda step: 2.3 if step < 1 else 9.0)
    ]
    assert examine(UPDATE_TOO_LARGE, tmp_path, rows) is None


def test_the_rate_is_that_of_the_largest_step(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_LARGE, tmp_path, with_rates(network(), 0.001, 0.3, 50))
    assert found is not None
    assert found.evidence["learning_rate"] == pytest.approx(0.3)
    assert "these weights: 0.3, about" in found.cause
