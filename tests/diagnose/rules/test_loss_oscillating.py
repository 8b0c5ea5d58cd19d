from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from desat.diagnose.learning import Learning, judge_losses
from desat.diagnose.rules.loss_oscillating import LOSS_OSCILLATING, turning_points
from desat.record.rows import ParameterStatistics, Row
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, examine
from tests.records import deep_network

NOISE = np.random.default_rng(0).normal(size=2000)
SAMPLES = range(0, 401, 10)


def swinging(step: int) -> float:
    return 1.5 + 0.6 * np.sin(step / 6.0) + 0.05 * NOISE[step]


def zigzag(step: int) -> float:
    return 1.5 + 0.5 * (-1.0) ** step + 0.02 * NOISE[step]


def sinking(step: int) -> float:
    return 2.3 * 0.99**step * (1.0 + 0.3 * np.sin(step / 8.0))


def network(loss=swinging, update: float = 0.03, steps: Iterable[int] = SAMPLES) -> list[Row]:
    return [
        row._replace(update_rms=update * (row.rms or 0.0)) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(layers=1, steps=steps, loss=loss)
    ]


@pytest.mark.parametrize(("loss", "how"), [(swinging, "over blocks of steps"), (zigzag, "from step to step")])
def test_a_loss_that_swings_without_falling_is_an_error(tmp_path: Path, loss, how: str) -> None:
    found = examine(LOSS_OSCILLATING, tmp_path, network(loss))
    assert found is not None
    assert (found.severity, found.site) == ("error", None)
    assert how in found.message
    assert "learning rate is too large" in found.cause
    assert found.evidence["swing_height"] > 0.3


def test_where_the_steps_are_small_the_order_of_the_data_is_suspected(tmp_path: Path) -> None:
    found = examine(LOSS_OSCILLATING, tmp_path, network(update=1e-3))
    assert found is not None
    assert "shuffled" in found.cause


def test_swings_on_the_way_down_are_a_note(tmp_path: Path) -> None:
    found = examine(LOSS_OSCILLATING, tmp_path, network(sinking), HALF_WAY)
    assert found is not None
    assert found.severity == "note"


def test_a_loss_that_only_swings_is_harmed_wherever_it_ends(tmp_path: Path) -> None:
    found = examine(LOSS_OSCILLATING, tmp_path, network(), LEARNED)
    assert found is not None
    assert found.severity == "error"


def test_a_loss_that_stays_above_what_it_had_reached_is_harmed(tmp_path: Path) -> None:
    def loss(step: int) -> float:
        return max(3.0 - step / 60.0, 1.0) + 0.5 * np.sin(step / 12.0)

    settled = Learning("settled", 401, 3.0, 1.2, 0.6, 0.0)
    found = examine(LOSS_OSCILLATING, tmp_path, network(loss), settled)
    assert found is not None
    assert found.severity == "error"


@pytest.mark.parametrize(
    "loss",
    [
        lambda step: 2.3 + 0.5 * NOISE[step],
        lambda step: 2.3 * 0.99**step + 0.2 * abs(NOISE[step]),
        lambda step: 1.5 + 0.05 * np.sin(step / 8.0),
        lambda step: 2.3 * 0.9**step + 1e-4 * (1.0 + np.sin(step / 8.0)),
        lambda step: 1.5,
    ],
    ids=["noise", "noisy fall", "small swings", "swings of what is left", "flat"],
)
def test_noise_and_small_swings_are_no_oscillation(tmp_path: Path, loss) -> None:
    assert examine(LOSS_OSCILLATING, tmp_path, network(loss), HARMED) is None


def test_noise_is_none_at_any_seed(tmp_path: Path) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).gamma(0.5, size=401)
        rows = network(lambda step, noise=noise: float(noise[step]), steps=range(0, 401, 100))
        assert examine(LOSS_OSCILLATING, tmp_path / str(seed), rows, HARMED) is None


def test_a_non_finite_loss_has_its_own_code(tmp_path: Path) -> None:
    assert examine(LOSS_OSCILLATING, tmp_path, network(), replace(HARMED, state="non-finite")) is None


@pytest.mark.parametrize("rows", [network(steps=[]), network(lambda step: None), network(steps=range(40))])
def test_too_few_losses_tell_nothing(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(LOSS_OSCILLATING, tmp_path, rows) is None


def test_turning_points_are_the_lows_and_highs() -> None:
    assert turning_points(np.array([1.0, 2.0, 3.0, 2.0, 1.0, 2.5]), 0.5, 0.1) == [0, 2, 4, 5]
    assert turning_points(np.array([3.0, 2.9, 2.95, 1.0]), 0.5, 0.1) == [0, 3]


def test_judged_by_its_own_losses_it_is_harmed() -> None:
    losses = np.array([zigzag(step) for step in range(401)])
    assert judge_losses(np.arange(401), losses).harm
