from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.finding import Severity
from desat.diagnose.learning import Learning
from desat.diagnose.rules.degenerate_batchnorm import DEGENERATE_BATCHNORM
from desat.record.rows import Reading, Row, Site
from tests.diagnose.rules.cases import HARMED, LEARNED, LITTLE, SAMPLES, UNKNOWN, examine
from tests.records import deep_network

SOUND = {
    "batch_size": 32.0, "mean_mismatch": 0.1, "variance_mismatch_db": 1.0, "running_variance_smallest": 0.1,
    "running_variance_largest": 2.0, "gamma_rms": 1.0, "gamma_smallest": 0.5,
}  # fmt: skip

NOTHING: dict[str, Any] = dict.fromkeys(SOUND)


def network(steps: Iterable[int] = SAMPLES, since: int = 0, **second: Any) -> list[Row]:
    """Two batch normalizations; the second has the readings `second` from step `since` on."""
    steps = list(steps)
    rows = deep_network(layers=2, steps=steps)
    for site, name in ((100, "norm.0"), (101, "norm.1")):
        rows.append(Site(site, name, "module", "BatchNorm1d", None, site, None))
        for step in steps:
            values = SOUND | (second if site == 101 and step >= since else {})
            rows += [Reading(site, key, step, value) for key, value in values.items()]
    return rows


@pytest.mark.parametrize("learning", [HARMED, LEARNED, UNKNOWN])
def test_a_sound_layer_has_nothing(tmp_path: Path, learning: Learning) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path, network(), learning) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (LITTLE, "error"), (UNKNOWN, "warning"), (LEARNED, "warning")]
)
def test_tiny_batches(tmp_path: Path, learning: Learning, severity: Severity) -> None:
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(batch_size=2.0), learning)
    assert found is not None
    assert (found.severity, found.site, found.sites) == (severity, "norm.1", ("norm.1",))
    assert found.evidence == {"tiny_batch": 2.0}
    assert "2 elements" in found.message
    assert found.remedies[0] == "normalization=group"


def test_five_elements_are_enough(tmp_path: Path) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path, network(batch_size=5.0)) is None


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"mean_mismatch": 1.5}, "warning"),
        ({"mean_mismatch": 2.5}, "error"),
        ({"variance_mismatch_db": 8.0}, "warning"),
        ({"variance_mismatch_db": 20.0}, "error"),
    ],
)
def test_a_mismatch_breaks_evaluation_whatever_the_loss_says(
    tmp_path: Path, values: dict[str, Any], severity: Severity
) -> None:
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(**values), LEARNED)
    assert found is not None
    assert (found.severity, found.first_step) == (severity, 50)
    assert "do not follow the batches" in found.cause
    assert found.evidence == values


def test_running_statistics_have_time_to_settle(tmp_path: Path) -> None:
    early = network(steps=range(0, 50, 5), variance_mismatch_db=20.0)
    assert examine(DEGENERATE_BATCHNORM, tmp_path / "1", early) is None
    young = examine(DEGENERATE_BATCHNORM, tmp_path / "2", network(steps=range(0, 100, 5), variance_mismatch_db=20.0))
    assert young is not None
    assert young.severity == "warning"


def test_a_mismatch_of_tiny_batches_is_their_noise(tmp_path: Path) -> None:
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(batch_size=2.0, mean_mismatch=3.0), LEARNED)
    assert found is not None
    assert found.evidence == {"tiny_batch": 2.0}


UNMOVED = {"momentum": 1e-4, "running_variance_smallest": 0.99, "running_variance_largest": 1.02}


def test_running_statistics_that_cannot_follow(tmp_path: Path) -> None:
    """A network may learn all there is and say nothing in evaluation."""
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(**UNMOVED), LEARNED)
    assert found is not None
    assert (found.severity, found.sites) == ("error", ("norm.1",))
    assert found.evidence == {"still_initial": pytest.approx((1 - 1e-4) ** (SAMPLES[-1] + 1))}
    assert "momentum is too small" in found.cause
    assert found.remedies[0] == "normalization=momentum"


@pytest.mark.parametrize(
    "values",
    [
        UNMOVED | {"momentum": 0.1},
        UNMOVED | {"momentum": 0.01},
        UNMOVED | {"running_variance_largest": 30.0},
        UNMOVED | {"running_variance_smallest": 0.01},
        UNMOVED | {"momentum": None},
    ],
    ids=["usual", "slow", "trained before, large", "trained before, small", "a plain average"],
)
def test_running_statistics_that_follow_or_began_elsewhere(tmp_path: Path, values: dict[str, Any]) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path, network(**values), LEARNED) is None


def test_a_short_run_tells_nothing_of_the_momentum(tmp_path: Path) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path, network(range(0, 90, 3), **UNMOVED), LEARNED) is None


def test_a_scale_that_collapses(tmp_path: Path) -> None:
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(since=150, gamma_rms=1e-4), HARMED)
    assert found is not None
    assert (found.severity, found.first_step) == ("error", 150)
    assert "scale has collapsed" in found.cause


def test_a_scale_that_starts_at_zero_on_purpose(tmp_path: Path) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path / "1", network(gamma_rms=0.0), LEARNED) is None
    assert examine(DEGENERATE_BATCHNORM, tmp_path / "2", network(gamma_rms=0.0), HARMED) is not None


def test_nothing_to_normalize(tmp_path: Path) -> None:
    found = examine(DEGENERATE_BATCHNORM, tmp_path, network(running_variance_largest=1e-9), HARMED)
    assert found is not None
    assert found.severity == "error"
    assert "does not vary" in found.cause


@pytest.mark.parametrize("rows", [network(steps=[]), network(**NOTHING), deep_network(layers=1)])
def test_what_was_not_measured_is_no_finding(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(DEGENERATE_BATCHNORM, tmp_path, rows) is None
