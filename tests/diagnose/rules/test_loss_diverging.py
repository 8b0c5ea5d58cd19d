from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from desat.diagnose.learning import Learning, judge_losses
from desat.diagnose.rules.loss_diverging import LOSS_DIVERGING
from desat.record.rows import ParameterStatistics, Row
from tests.diagnose.rules.cases import LEARNED, SAMPLES, examine, with_rates
from tests.records import deep_network

DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(size=1000)


def rising(step: int) -> float:
    return 2.3 * 1.02**step + 0.05 * NOISE[step]


def jumping(step: int) -> float:
    """It falls to 0.8, jumps at step 200 and stays there."""
    return (2.3 - 1.5 * min(step, 100) / 100 if step < 200 else 2.2) + 0.05 * NOISE[step]


def network(loss=rising, update: float = 1e-3, steps: Iterable[int] = SAMPLES, layers: int = 3) -> list[Row]:
    return [
        row._replace(update_rms=update * (row.rms or 0.0)) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=layers, steps=steps, loss=loss)
    ]


def judged(loss, number: int = 291) -> Learning:
    return judge_losses(np.arange(number), np.array([loss(step) for step in range(number)], np.float64))


def test_a_loss_that_rises_is_an_error_without_a_site(tmp_path: Path) -> None:
    learning = judged(rising)
    assert learning.state == "diverging"
    found = examine(LOSS_DIVERGING, tmp_path, network(), learning)
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", None, ())
    assert found.evidence["loss_low"] == pytest.approx(2.4, abs=0.1)
    assert found.evidence["loss_end"] > 400
    assert "sign of the loss" in found.cause


def test_large_steps_are_the_cause(tmp_path: Path) -> None:
    found = examine(LOSS_DIVERGING, tmp_path, network(update=0.3), judged(rising))
    assert found is not None
    assert "30%" in found.cause
    assert found.remedies[0] == "optimizer=rate:0.1"


def test_it_says_when_a_learned_loss_jumped_back(tmp_path: Path) -> None:
    learning = judged(jumping)
    assert learning.state == "stalled"
    found = examine(LOSS_DIVERGING, tmp_path, network(jumping), learning)
    assert found is not None
    assert found.severity == "error"
    assert 193 <= found.first_step <= 207
    assert "jumped at step" in found.cause
    assert found.evidence["lost_again"] == pytest.approx(0.95, abs=0.1)


def test_a_rise_in_a_network_that_learns_is_a_note(tmp_path: Path) -> None:
    found = examine(LOSS_DIVERGING, tmp_path, network(jumping), Learning("learning", 291, 2.3, 2.2, 0.1, 0.1))
    assert found is not None
    assert found.severity == "note"


def test_the_first_steps_tell_if_the_loss_is_a_multiple_of_its_start(tmp_path: Path) -> None:
    def loss(step: int) -> float:
        return 2.3 * 1.5**step

    found = examine(LOSS_DIVERGING, tmp_path, network(loss, steps=range(20)), judged(loss, 20))
    assert found is not None
    assert found.severity == "warning"


def falling(step: int) -> float:
    return 2.3 * 0.98**step + 0.3 * abs(NOISE[step])


@pytest.mark.parametrize(
    "loss",
    [falling, lambda step: 2.3 + 0.3 * NOISE[step], lambda step: 2.3 + 0.0 * step],
    ids=["falls", "noise", "flat"],
)
def test_noise_is_no_rise(tmp_path: Path, loss) -> None:
    assert examine(LOSS_DIVERGING, tmp_path, network(loss), judged(loss)) is None


def test_a_small_overfit_wiggle_of_a_learned_loss_is_none(tmp_path: Path) -> None:
    def loss(step: int) -> float:
        return 2.3 * 0.95**step + (0.02 if step > 200 else 0.0)

    assert examine(LOSS_DIVERGING, tmp_path, network(loss), LEARNED) is None


def test_a_non_finite_loss_has_its_own_code(tmp_path: Path) -> None:
    assert examine(LOSS_DIVERGING, tmp_path, network(), Learning("non-finite", 291, 2.3, 400.0, -1.0)) is None


@pytest.mark.parametrize("rows", [network(steps=[]), network(lambda step: None), network(steps=range(3))])
def test_too_few_losses_tell_nothing(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(LOSS_DIVERGING, tmp_path, rows, Learning("unknown")) is None


@pytest.mark.parametrize(("step", "named"), [(198, True), (30, False)])
def test_the_jump_of_the_learning_rate_that_it_follows_is_named(tmp_path: Path, step: int, named: bool) -> None:
    rows = with_rates(network(jumping), 0.01, 1.0, step)
    found = examine(LOSS_DIVERGING, tmp_path, rows, judged(jumping))
    assert found is not None
    assert (f"the learning rate jumped from 0.01 to 1 at step {step}" in found.cause) == named
