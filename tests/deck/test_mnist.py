import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from desat.deck.build import build_page
from desat.deck.slide import MissingNeedError, Page, Settings
from desat.deck.slides.mnist import SLIDE, expected_pooling_db, network

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "mnist-10k"
with_mnist = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no MNIST at {FOLDER}")


@cache
def page() -> Page:
    return build_page(SLIDE, Settings(fast=True, data=FOLDER))


def test_without_the_files_it_is_missing_and_says_in_a_line_how_to_get_them(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(MissingNeedError, match="--data FOLDER") as caught:
            build_page(SLIDE, Settings(fast=True, data=data))
        assert "\n" not in str(caught.value)
    assert SLIDE.uses_data


@pytest.mark.parametrize(("height", "width"), [(28, 28), (10, 10), (33, 20)])
def test_the_network_fits_images_of_any_size(height: int, width: int) -> None:
    assert network(height, width, 7)(torch.zeros(2, 1, height, width)).shape == (2, 7)


def test_a_pooling_hands_the_gradient_to_one_input_of_each_window() -> None:
    assert expected_pooling_db(28, 28) == pytest.approx(10 * math.log10(0.25) + 10 * math.log10(25 / 121))


@with_mnist
def test_it_begins_at_guessing_and_learns_to_read() -> None:
    starts, reads, _ = page().statements
    assert starts.holds
    assert starts.values["first_loss"] == pytest.approx(math.log(10), abs=0.5)
    assert reads.holds
    assert reads.values["accuracy"] > 0.8
    assert reads.values["wrong"] == pytest.approx((1 - reads.values["accuracy"]) * reads.values["images"])


@with_mnist
def test_desat_finds_nothing_wrong_with_it() -> None:
    sound = page().statements[2]
    assert sound.holds
    assert sound.values["healthy"] == 1.0
    assert sound.values["pooling_db"] == pytest.approx(-12.87, abs=0.1)
    assert min(sound.values["first_db"], sound.values["last_db"]) > -60.0


@with_mnist
def test_the_pictures_show_the_history_and_digits() -> None:
    assert [figure.name for figure in page().figures] == ["loss", "accuracy", "digits"]
    share = page().statements[1].values["accuracy"]
    assert f"{100 * share:.3g} in epoch" in page().figures[1].alt


@with_mnist
def test_another_seed_takes_other_images() -> None:
    settings = Settings(fast=True, data=FOLDER)
    other = build_page(SLIDE, replace(settings, seed=1))
    assert other.statements[0].values["first_loss"] != page().statements[0].values["first_loss"]
    assert all(statement.holds for statement in other.statements)
