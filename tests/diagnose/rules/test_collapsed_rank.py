from collections.abc import Callable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.collapsed_rank import COLLAPSED_RANK
from desat.record.rows import ParameterStatistics, Reading, Row, Site, TensorStatistics
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, LITTLE, SAMPLES, UNKNOWN, examine, with_biases
from tests.records import deep_network

OCCASIONS = [0, 10, 20, 30, 150, 290]
Course = Callable[[int], float]


def network(*ranks: float | Course | None, occasions: list[int] = OCCASIONS) -> list[Row]:
    """A chain of Linear and Sigmoid, with these effective ranks of the outputs in turn."""
    rows = deep_network(layers=(len(ranks) + 1) // 2, steps=SAMPLES)
    for place, rank in enumerate(ranks):
        for step in occasions if rank is not None else ():
            value = rank(step) if callable(rank) else rank
            rows.append(Reading(3 * (place // 2) + place % 2, "effective_rank", step, value))
    return rows


def narrowed(rows: list[Row], width: int) -> list[Row]:
    """The second layer is so many units wide, by its bias."""
    bias = Site(70, "net.2.bias", "parameter", "Linear", None, 2, None)
    return [*rows, bias, *(ParameterStatistics(70, step, width, 0.1, 1e-3, 0.0, 0.0, 1e-4) for step in SAMPLES)]


def test_a_network_that_collapses_on_its_way(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, network(20.0, 15.0, 5.0, 1.2, 1.1, 1.1, 3.0, 3.0))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "net.3", ("net.3", "net.4", "net.5"))
    assert found.evidence["effective_rank"] == pytest.approx(1.1)
    assert found.evidence["rank_before"] == pytest.approx(20.0)
    assert "from initialization" in found.cause
    assert (found.first_step, found.last_step) == (0, 290)


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, network(20.0, 15.0, 1.2, 1.1, 3.0, 3.0), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    "ranks",
    [
        (20.0, 15.0, 5.0, 1.6, 3.0, 3.0),
        (2.0, 2.0, 1.4, 1.4, 1.4, 1.4),  # an input of few directions
        (20.0, 15.0, 0.0, 0.0, 3.0, 3.0),  # zeros are dead units
        (1.0, 1.0, 1.0, 1.0),
        (None, None, None, None),
    ],
)
def test_few_directions_are_not_one(tmp_path: Path, ranks: tuple[float | None, ...]) -> None:
    assert examine(COLLAPSED_RANK, tmp_path, network(*ranks)) is None


def test_a_last_layer_may_collapse_in_training_but_not_before(tmp_path: Path) -> None:
    guesses = network(20.0, 15.0, lambda step: 5.0 if step < 20 else 1.1)
    assert examine(COLLAPSED_RANK, tmp_path / "guesses", guesses) is None
    assert examine(COLLAPSED_RANK, tmp_path / "born", network(20.0, 15.0, 1.1)) is not None


@pytest.mark.parametrize(("final", "cause"), [(1e-3, "weight decay"), (0.1, "updates have made")])
def test_a_collapse_in_training_has_its_cause_in_the_weights(tmp_path: Path, final: float, cause: str) -> None:
    rows = [
        row._replace(rms=final) if isinstance(row, ParameterStatistics) and row.step > 100 else row
        for row in network(20.0, 15.0, *[lambda step: 5.0 if step < 100 else 1.1] * 2, 3.0, 3.0)
    ]
    found = examine(COLLAPSED_RANK, tmp_path, rows)
    assert found is not None
    assert found.first_step == 150
    assert cause in found.cause


def test_a_bottleneck_is_named_as_such(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, narrowed(network(20.0, 15.0, 1.9, 2.0, 3.0, 3.0), 2), HARMED)
    assert found is not None
    assert (found.site, found.evidence["width"]) == ("net.2", 2)
    assert "2 units" in found.cause
    assert found.severity == "error"


def test_what_collapses_behind_a_bottleneck_does_so_by_it(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, narrowed(network(20.0, 15.0, None, 1.0, 1.1, 3.0), 1))
    assert found is not None
    assert (found.site, found.evidence["width"]) == ("net.2", 1)


@pytest.mark.parametrize(("width", "learning"), [(2, LEARNED), (4, HARMED)])
def test_a_bottleneck_is_the_user_s_choice(tmp_path: Path, width: int, learning: Learning) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, narrowed(network(20.0, 15.0, 3.9, 3.9, 3.0, 3.0), width), learning)
    assert found is None or found.severity == "note"


def test_one_sample_is_a_warning_at_most(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, network(20.0, 15.0, 1.1, 1.1, 3.0, 3.0, occasions=[0]))
    assert found is not None
    assert found.severity == "warning"


def test_one_layer_only_and_none_measured(tmp_path: Path) -> None:
    assert examine(COLLAPSED_RANK, tmp_path / "one", network(1.0)) is None
    assert examine(COLLAPSED_RANK, tmp_path / "none", deep_network(layers=2, steps=SAMPLES, nonfinite_from=0)) is None


COPIED = (20.0, 18.0, 1.1, 1.1, 3.0, 3.0)
"""The ranks of a network whose second layer gets one direction, though the first puts out many."""


def test_features_that_are_copies_of_one_another(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, with_biases(network(*COPIED), 0.01))
    assert found is not None
    assert found.site == "net.2"
    assert found.cause.startswith("the features that go into net.2 are copies of one another")
    assert found.evidence["rank_just_before"] == pytest.approx(18.0)


def test_a_bias_that_outweighs_what_samples_differ_in(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, with_biases(network(*COPIED), 2.0))
    assert found is not None
    assert found.cause.startswith("the bias of net.2 outweighs what the samples differ in since initialization")


@pytest.mark.parametrize(
    "rows",
    [
        network(*COPIED),
        with_biases(network(20.0, 3.0, 1.4, 1.1, 3.0, 3.0), 0.01),
        with_biases(network(20.0, None, 1.1, 1.1, 3.0, 3.0, occasions=[0, 10]), float("nan")),
        with_biases([
            row._replace(elements=640) if isinstance(row, TensorStatistics) and row[:2] == (3, "output") else row
            for row in network(*COPIED)
        ], 0.01),
        with_biases([
            row._replace(mean=0.99) if isinstance(row, TensorStatistics) and row[:2] == (1, "output") else row
            for row in network(*COPIED)
        ], 0.01),
    ],
    ids=["no bias recorded", "little by little", "not finite", "positions left out", "an input off centre"],
)  # fmt: skip
def test_what_is_not_known_keeps_the_cautious_words(tmp_path: Path, rows: list[Row]) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, rows)
    assert found is not None
    assert "each layer makes the samples more alike" in found.cause


def with_a_loss(rows: list[Row], chain: str) -> list[Row]:
    return [*rows, Site(90, "loss", "loss", chain, None, 100, None)]


@pytest.mark.parametrize(
    ("chain", "learning", "severity"),
    [
        ("NllLoss <- LogSoftmax <- Addmm", HALF_WAY, "error"),
        ("NllLoss <- LogSoftmax <- Addmm", LEARNED, "note"),
        ("MseLoss <- Addmm", LITTLE, "error"),
        ("MseLoss <- Addmm", HALF_WAY, "warning"),  # a narrow code is customary
    ],
)
def test_a_bottleneck_that_loses_most_directions_is_one_from_birth(
    tmp_path: Path, chain: str, learning: Learning, severity: str
) -> None:
    rows = with_a_loss(narrowed(network(20.0, 18.0, 2.9, 2.9, 3.0, 3.0), 3), chain)
    found = examine(COLLAPSED_RANK, tmp_path, rows, learning)
    assert found is not None
    assert (found.severity, found.site) == (severity, "net.2")


def test_a_bottleneck_for_few_directions_loses_little(tmp_path: Path) -> None:
    rows = narrowed(network(7.0, 7.0, 2.9, 2.9, 3.0, 3.0), 3)
    found = examine(COLLAPSED_RANK, tmp_path, rows, HALF_WAY)
    assert found is not None
    assert found.severity == "note"


@pytest.mark.parametrize(("just_before", "severity"), [(18.0, "error"), (4.5, "note")])
def test_copies_are_told_by_how_far_the_rank_falls(tmp_path: Path, just_before: float, severity: str) -> None:
    rows = with_biases(network(20.0, just_before, 1.36, 3.0, 3.0, 3.0), 0.01)
    found = examine(COLLAPSED_RANK, tmp_path, rows, HALF_WAY)
    assert found is not None
    assert found.severity == severity
    assert "copies of one another" in found.cause


def test_one_direction_is_said_in_words(tmp_path: Path) -> None:
    found = examine(COLLAPSED_RANK, tmp_path, network(20.0, 15.0, 1.01, 1.01, 3.0, 3.0))
    assert found is not None
    assert "lie along one direction," in found.message
