from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.update_too_small import UPDATE_TOO_SMALL
from desat.record.rows import ParameterStatistics, Row, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced
from tests.records import deep_network

SLOW = Learning("slow", 300, 2.3, 2.2, 0.04, 0.03)


def network(ratio: float = 1e-7, steps: Iterable[int] = SAMPLES, layers: int = 4) -> list[Row]:
    return [
        row._replace(update_rms=ratio * (row.rms or 0.0)) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=layers, steps=steps)
    ]


def test_it_names_the_ratio_and_the_rate_that_would_fit(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_SMALL, tmp_path, network(1e-6))
    assert found is not None
    assert (found.severity, found.first_step, found.last_step) == ("error", 0, 290)
    assert len(found.sites) == 4
    assert found.evidence["update_ratio"] == pytest.approx(1e-6)
    assert found.evidence["path"] == pytest.approx(291e-6)
    assert found.evidence["fitting_learning_rate"] == pytest.approx(10.0)
    assert "gradient is too small" in found.cause
    assert found.remedies[0] == "optimizer=adam"


def test_where_a_sane_rate_would_do_the_rate_is_the_cause(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_SMALL, tmp_path, network(5e-5))
    assert found is not None
    assert "the learning rate is too small: 0.01, about 0.2" in found.cause


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (SLOW, "error"), (UNKNOWN, "error")])
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(UPDATE_TOO_SMALL, tmp_path, network(), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("learning", [LEARNED, HALF_WAY, Learning("settled", 300), Learning("diverging", 300)])
def test_a_fine_tuning_rate_on_a_network_that_learns_is_healthy(tmp_path: Path, learning: Learning) -> None:
    assert examine(UPDATE_TOO_SMALL, tmp_path, network(), learning) is None


@pytest.mark.parametrize("ratio", [4e-4, 1e-3, 0.1])
def test_weights_that_have_come_some_way_are_not_its_business(tmp_path: Path, ratio: float) -> None:
    assert examine(UPDATE_TOO_SMALL, tmp_path, network(ratio)) is None


def test_in_a_short_run_only_the_ratio_counts(tmp_path: Path) -> None:
    short = Learning("unknown", 20)
    assert examine(UPDATE_TOO_SMALL, tmp_path / "1", network(5e-5, range(20)), short) is None
    assert examine(UPDATE_TOO_SMALL, tmp_path / "2", network(5e-6, range(20)), short) is not None


def test_a_run_that_ends_in_its_warm_up_is_healthy(tmp_path: Path) -> None:
    rows = [
        row._replace(learning_rate=1e-6 * (row.step + 1)) if isinstance(row, Step) else row
        for row in network(steps=range(20))
    ]
    assert examine(UPDATE_TOO_SMALL, tmp_path, rows, Learning("unknown", 20)) is None


def test_a_run_that_moved_and_then_stopped_has_another_disease(tmp_path: Path) -> None:
    assert examine(UPDATE_TOO_SMALL, tmp_path, spliced(network(1e-3), network(0.0), 150)) is None


def test_one_slow_layer_of_four_is_not_the_network(tmp_path: Path) -> None:
    rows = [
        row._replace(update_rms=1e-9) if isinstance(row, ParameterStatistics) and row.site == 2 else row
        for row in network(1e-3)
    ]
    assert examine(UPDATE_TOO_SMALL, tmp_path, rows) is None


def test_one_layer_is_enough(tmp_path: Path) -> None:
    found = examine(UPDATE_TOO_SMALL, tmp_path, network(layers=1), replace(HARMED, losses=300))
    assert found is not None
    assert found.sites == ("net.0.weight",)


@pytest.mark.parametrize("kind", ["no samples", "non-finite"])
def test_what_was_not_measured_is_no_finding(tmp_path: Path, kind: str) -> None:
    rows = network(steps=[]) if kind == "no samples" else network()
    if kind == "non-finite":
        rows = [row._replace(update_rms=None) if isinstance(row, ParameterStatistics) else row for row in rows]
    assert examine(UPDATE_TOO_SMALL, tmp_path, rows) is None
