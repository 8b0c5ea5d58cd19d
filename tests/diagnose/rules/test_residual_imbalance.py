from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.residual_imbalance import RESIDUAL_IMBALANCE
from desat.record.rows import Reading, Row, Site
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network

Course = Callable[[int], float | None]


def network(*sums: float | Course, steps: Iterable[int] = SAMPLES) -> list[Row]:
    """A network with residual sums of these ratios in dB, constant or by the step."""
    rows = deep_network(layers=2, steps=steps)
    for number, ratio in enumerate(sums):
        rows.append(Site(50 + number, f"sum {number}", "residual", "torch.Tensor.add", "net.py:7", 50 + number, None))
        for step in steps:
            value = ratio(step) if callable(ratio) else ratio
            rows.append(Reading(50 + number, "branch_over_stream_db", step, value))
    return rows


def test_streams_that_drown(tmp_path: Path) -> None:
    found = examine(RESIDUAL_IMBALANCE, tmp_path, network(0.0, 24.0, 28.0))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "sum 2", ("sum 1", "sum 2"))
    assert found.source == "net.py:7"
    assert found.evidence["branch_over_stream_db"] == pytest.approx(28.0)
    assert "2 of 3" in found.message
    assert "25 times" in found.message
    assert "scaled too large" in found.cause


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (LEARNED, "note")])
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(RESIDUAL_IMBALANCE, tmp_path, network(40.0, 40.0), learning)
    assert found is not None
    assert found.severity == severity


def test_one_sum_that_drowns_nearly_all_is_enough(tmp_path: Path) -> None:
    found = examine(RESIDUAL_IMBALANCE, tmp_path, network(50.0, 3.0, 0.0, -3.0))
    assert found is not None
    assert found.sites == ("sum 0",)


@pytest.mark.parametrize("sums", [(25.0, 0.0, 0.0), (25.0, 0.0), (19.0, 19.0), (-39.0, -39.0), (-60.0, 0.0, 0.0), ()])
def test_a_loud_first_branch_and_quiet_ones_are_balanced(tmp_path: Path, sums: tuple[float, ...]) -> None:
    assert examine(RESIDUAL_IMBALANCE, tmp_path, network(*sums)) is None


def test_branches_that_outgrow_the_stream_are_told_since_when(tmp_path: Path) -> None:
    found = examine(RESIDUAL_IMBALANCE, tmp_path, network(*[lambda step: 0.0 if step < 150 else 35.0] * 2))
    assert found is not None
    assert found.first_step == 150
    assert "since step 150" in found.cause


def test_branches_that_do_nothing_are_a_warning_at_most(tmp_path: Path) -> None:
    found = examine(RESIDUAL_IMBALANCE, tmp_path, network(-897.0, -60.0))
    assert found is not None
    assert found.severity == "warning"
    assert "next to nothing" in found.cause


@pytest.mark.parametrize("course", [lambda step: -897.0 if step < 20 else -20.0, lambda step: -100.0 + step / 10])
def test_branches_that_start_at_zero_and_grow_are_healthy(tmp_path: Path, course: Course) -> None:
    assert examine(RESIDUAL_IMBALANCE, tmp_path, network(course, course)) is None


def test_two_samples_tell_nothing(tmp_path: Path) -> None:
    assert examine(RESIDUAL_IMBALANCE, tmp_path, network(40.0, 40.0, steps=[0, 1])) is None


def test_numbers_that_are_not_finite_tell_nothing(tmp_path: Path) -> None:
    assert examine(RESIDUAL_IMBALANCE, tmp_path, network(lambda step: None, lambda step: None)) is None
