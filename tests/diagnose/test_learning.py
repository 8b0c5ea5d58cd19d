from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.diagnose.learning import Learning, front_is_frozen, judge_losses, noise_of
from desat.diagnose.updates import update_ratios
from desat.record.rows import ParameterStatistics, Site
from tests.records import deep_network, write_record


def judge(losses: np.ndarray, front_frozen: bool | None = None) -> Learning:
    return judge_losses(np.arange(len(losses)), np.asarray(losses, float), front_frozen)


def series(curve: Callable[[np.ndarray], np.ndarray], steps: int = 400, noise: float = 0.03) -> np.ndarray:
    return curve(np.arange(steps)) + noise * np.random.default_rng(0).standard_normal(steps)


@pytest.mark.parametrize(
    ("losses", "state", "harm"),
    [
        (series(lambda step: 2.3 * np.exp(-step / 150)), "learning", False),
        (series(lambda step: 2.3 * 0.9**step, noise=0.001), "learning", False),
        (series(lambda step: 2.303 + 0.2 * 0.8**step), "stalled", True),
        (series(lambda step: np.full(len(step), 2.3)), "stalled", True),
        (series(lambda step: 1.0 + 0.01 * step), "diverging", True),
        (series(lambda step: 2.3 - 0.0003 * step, noise=0.01), "slow", None),
        (series(lambda step: 0.8 + 7 * 0.8**step), "settled", None),
        (np.full(20, 2.3), "unknown", None),
        (np.linspace(2.5, 2.0, 20), "unknown", None),
        (np.linspace(2.5, 0.1, 20), "learning", False),
        (np.full(400, np.nan), "unknown", None),
        (np.array([]), "unknown", None),
        (np.array([2.3, 2.2]), "unknown", None),
    ],
    ids=[
        "falls", "learned and flat", "flat after its bias fell", "flat", "rises", "creeps", "flat at a tenth",
        "few and flat", "few and falling a little", "few and falling a lot", "none", "empty", "two",
    ],
)  # fmt: skip
def test_the_state_follows_the_losses(losses: np.ndarray, state: str, harm: bool | None) -> None:
    learning = judge(losses)
    assert (learning.state, learning.harm) == (state, harm)


def test_a_loss_below_zero_that_falls_is_learning() -> None:
    assert judge(series(lambda step: 1.0 - 0.01 * step)).state == "learning"


@pytest.mark.parametrize("end", [np.inf, np.nan], ids=["infinite", "nan, which a record keeps as NULL"])
def test_a_loss_that_ends_in_no_number_is_harm_since_that_step(end: float) -> None:
    learning = judge(np.r_[np.linspace(2.3, 1.0, 60), np.full(40, end)])
    assert (learning.state, learning.harm, learning.nonfinite_since) == ("non-finite", True, 60)


def test_an_overflow_that_the_loss_recovers_from_is_none() -> None:
    losses = series(lambda step: 2.3 * np.exp(-step / 150))
    losses[50] = np.inf
    assert judge(losses).state == "learning"


def test_a_loss_that_is_known_at_some_steps_only_is_no_overflow() -> None:
    losses = np.full(100, np.nan)
    losses[:90:10] = np.linspace(2.3, 1.0, 9)
    assert judge(losses).nonfinite_since is None


def test_a_plateau_begins_where_the_loss_stopped_falling() -> None:
    learning = judge(series(lambda step: 2.3 + np.maximum(0.0, 1.0 - step / 40)))
    assert learning.flat_since is not None
    assert 20 <= learning.flat_since <= 60


@pytest.mark.parametrize("losses", [np.full(20, 2.3), np.array([]), series(lambda step: 0.8 + 7 * 0.8**step)])
def test_where_the_loss_does_not_tell_a_frozen_first_layer_is_harm(losses: np.ndarray) -> None:
    assert judge(losses, front_frozen=True).harm is True
    assert judge(losses, front_frozen=False).harm is None


def test_a_frozen_first_layer_is_no_harm_where_the_loss_falls() -> None:
    assert judge(series(lambda step: 2.3 * np.exp(-step / 150)), front_frozen=True).harm is False


@given(
    st.lists(st.floats(0.01, 1e3), min_size=8, max_size=120),
    st.floats(1e-3, 1e3),
)
def test_the_unit_of_the_loss_does_not_matter(losses: list[float], unit: float) -> None:
    learning, scaled = judge(np.array(losses)), judge(unit * np.array(losses))
    assert scaled.fall == pytest.approx(learning.fall)
    assert scaled.late_fall == pytest.approx(learning.late_fall)
    assert -1 <= learning.fall <= 1


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=80))
def test_any_series_is_judged(losses: list[float | None]) -> None:
    learning = judge(np.array([np.nan if loss is None else loss for loss in losses], float))
    assert learning.harm in (True, False, None)


def test_noise_is_measured_beside_a_trend_and_outliers() -> None:
    losses = series(lambda step: 10 - 0.001 * step, steps=4000, noise=0.5)
    losses[::50] = 100
    assert noise_of(losses) == pytest.approx(0.5, rel=0.1)
    assert noise_of(losses[:1]) == 0.0


def test_update_ratios_are_by_layer_without_biases_and_without_what_is_not_trained(tmp_path: Path) -> None:
    rows = []
    for number, (name, position, gradient, update) in enumerate(
        [("a.weight", 0, None, 0.0), ("b.weight", 1, 1.0, 1e-3), ("b.bias", 1, 1.0, 9.0), ("c.weight", 2, 1.0, 1e-2)]
    ):
        rows += [
            Site(number, name, "parameter", "Linear", None, position, None),
            ParameterStatistics(number, 0, 8, 0.1, gradient, 0.0, 0.0, update),
        ]
    assert update_ratios(write_record(tmp_path / "run", rows)) == pytest.approx([1e-2, 1e-1])


@pytest.mark.parametrize(
    ("network", "frozen"),
    [({"layers": 8, "layer_gain": 0.2}, True), ({"layers": 8}, False), ({"layers": 1, "layer_gain": 0.2}, None)],
    ids=["vanishing", "healthy", "one layer"],
)
def test_the_front_is_frozen_where_its_updates_are_a_thousandth(tmp_path: Path, network, frozen: bool | None) -> None:
    assert front_is_frozen(write_record(tmp_path / "run", deep_network(**network))) is frozen


def judged(losses: list[float] | np.ndarray, guessing: float | None) -> Learning:
    return judge_losses(np.arange(len(losses)), np.asarray(losses, float), guessing=guessing)


def test_a_loss_that_falls_from_the_heights_and_stays_above_guessing_is_no_learning() -> None:
    losses = np.linspace(5000.0, 50.0, 200)
    assert judged(losses, None).state == "learning"
    assert judged(losses, 2.3).state == "guessing"
    assert judged(losses, 2.3).harm is True


def test_to_come_down_to_guessing_is_no_learning() -> None:
    losses = [*np.linspace(100.0, 2.3, 20), *[2.3, 2.29, 2.31] * 60]
    assert judged(losses, None).state == "learning"
    assert judged(losses, float(np.log(10))).state == "stalled"


def test_below_guessing_it_is_learning_whatever_it_began_with() -> None:
    losses = [*np.linspace(100.0, 2.3, 20), *np.linspace(2.3, 0.1, 180)]
    assert judged(losses, float(np.log(10))).state == "learning"


def test_a_sound_run_is_judged_alike_with_and_without_guessing() -> None:
    losses = np.linspace(2.35, 0.4, 200)
    assert judged(losses, float(np.log(10))).state == judged(losses, None).state == "learning"
