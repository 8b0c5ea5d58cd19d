from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.saturated_output import SATURATED_OUTPUT
from desat.record.rows import Row, Site, TensorStatistics
from tests.diagnose.rules.cases import (
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
from tests.records import deep_network

LOGITS = 6
"""The site of the last layer of three."""
CHAIN = "NllLoss <- LogSoftmax <- Addmm"


def flat(share: float, steps: Iterable[int] = SAMPLES) -> list[Row]:
    """A network of one hidden layer whose output, a sigmoid, is saturated to a share."""
    return [
        row._replace(saturated_low=share)
        if isinstance(row, TensorStatistics) and (row.site, row.quantity) == (4, "input")
        else row
        for row in deep_network(layers=2, steps=steps)
    ]


def wide(
    deviation: float | None, loss: Callable[[int], float | None], chain: str = CHAIN, layers: int = 3
) -> list[Row]:
    """A classifier whose last layer puts out logits of this standard deviation."""
    last = 3 * (layers - 1)
    rows = [
        row._replace(rms=deviation, mean=None if deviation is None else 0.0)
        if isinstance(row, TensorStatistics) and row.site == last and row.quantity == "output"
        else row
        for row in deep_network(layers=layers, steps=SAMPLES, operation="ReLU", loss=loss)
    ]
    return [*rows, Site(90, "loss", "loss", chain, "train.py:9", 90, None)]


def test_an_output_that_is_flat_while_the_loss_does_not_fall(tmp_path: Path) -> None:
    found = examine(SATURATED_OUTPUT, tmp_path, flat(0.9))
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", "net.3", ("net.3",))
    assert found.evidence["saturated_share"] == pytest.approx(0.9)
    assert "90% of what goes into the output" in found.message
    assert "from initialization" in found.cause


@pytest.mark.parametrize(("share", "learning"), [(0.45, HARMED), (0.9, LEARNED)])
def test_one_that_is_right_or_not_flat_is_sound(tmp_path: Path, share: float, learning: Learning) -> None:
    assert examine(SATURATED_OUTPUT, tmp_path, flat(share), learning) is None


def test_hidden_layers_are_not_its_business(tmp_path: Path) -> None:
    assert examine(SATURATED_OUTPUT, tmp_path, deep_network(layers=3, steps=SAMPLES)) is None
    hidden = [row for row in flat(0.9) if not (isinstance(row, TensorStatistics) and row.site == 4)]
    assert examine(SATURATED_OUTPUT, tmp_path / "hidden", hidden) is None


@pytest.mark.parametrize("chain", [CHAIN, "BinaryCrossEntropyWithLogits <- Addmm"])
def test_logits_that_are_wide_and_wrong(tmp_path: Path, chain: str) -> None:
    found = examine(SATURATED_OUTPUT, tmp_path, wide(50.0, lambda step: 60.0, chain))
    assert found is not None
    assert (found.severity, found.site) == ("error", "net.4")
    assert found.evidence["logit_deviation"] == pytest.approx(50.0)
    assert found.evidence["loss_over_deviation"] == pytest.approx(1.2)
    assert (found.first_step, found.last_step) == (0, 290)


@pytest.mark.parametrize(("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (LEARNED, "note")])
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(SATURATED_OUTPUT, tmp_path, wide(50.0, lambda step: 60.0), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    ("deviation", "loss", "chain"),
    [
        (12.0, 0.1, CHAIN),  # sure and right
        (3.0, 4.0, CHAIN),
        (50.0, 60.0, "MseLoss <- Addmm"),
        (50.0, 60.0, "NllLoss <- LogSoftmax <- Softmax <- Addmm"),
        (None, 60.0, CHAIN),
    ],
)
def test_logits_that_are_right_or_no_logits(tmp_path: Path, deviation: float | None, loss: float, chain: str) -> None:
    assert examine(SATURATED_OUTPUT, tmp_path, wide(deviation, lambda step: loss, chain)) is None


def test_logits_that_grew_are_told_since_when(tmp_path: Path) -> None:
    rows = spliced(wide(1.0, lambda step: 60.0), wide(50.0, lambda step: 60.0), 150)
    found = examine(SATURATED_OUTPUT, tmp_path, rows)
    assert found is not None
    assert found.first_step == 150
    assert "since step 150, not before" in found.cause


def test_one_layer_and_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    assert examine(SATURATED_OUTPUT, tmp_path / "one", wide(50.0, lambda step: 60.0, layers=1)) is not None
    assert examine(SATURATED_OUTPUT, tmp_path / "none", wide(50.0, lambda step: None)) is None
    broken = deep_network(layers=2, steps=SAMPLES, nonfinite_from=0, loss=lambda step: None)
    assert examine(SATURATED_OUTPUT, tmp_path / "broken", broken) is None


def test_one_sample(tmp_path: Path) -> None:
    found = examine(SATURATED_OUTPUT, tmp_path, flat(0.9, steps=[0]), UNKNOWN)
    assert found is not None
    assert found.severity == "warning"


def test_the_last_layers_weights_are_told_from_what_comes_to_it(tmp_path: Path) -> None:
    rows = with_biases(weighing(wide(50.0, lambda step: 60.0), 0.125), 0.01)
    last = examine(SATURATED_OUTPUT, tmp_path / "last", weighing(rows, 6.25, site=8))
    assert last is not None
    assert "from initialization on: the last layer's weights are too large, their gain is 50" in last.cause
    large = [
        row._replace(rms=40.0)
        if isinstance(row, TensorStatistics) and (row.site, row.quantity) == (4, "output")
        else row
        for row in weighing(rows, 5.0, site=5)
    ]
    before = examine(SATURATED_OUTPUT, tmp_path / "before", large)
    assert before is not None
    assert "the weights of net.2 are too large" in before.cause
    by_growth = examine(SATURATED_OUTPUT, tmp_path / "growth", wide(50.0, lambda step: 60.0))
    assert by_growth is not None
    assert "the last layer's weights are too large, their gain is 50" in by_growth.cause
    alone = examine(SATURATED_OUTPUT, tmp_path / "alone", wide(50.0, lambda step: 60.0, layers=1))
    assert alone is not None
    assert "the last layer's weights, or what comes to it" in alone.cause


def test_the_jump_of_the_learning_rate_is_named(tmp_path: Path) -> None:
    rows = spliced(wide(1.0, lambda step: 60.0), wide(50.0, lambda step: 60.0), 150)
    found = examine(SATURATED_OUTPUT, tmp_path, with_rates(rows, 0.01, 0.3, 145))
    assert found is not None
    assert "not before: the learning rate jumped from 0.01 to 0.3 at step 145" in found.cause
