import math

import numpy as np
import pytest
import torch
from torch import nn

from desat.deck.slides.improved_network import BARE, SLIDE, SLOPE, WHOLE, Block, expected_growth, network
from desat.reference.initialization import he_normal

BLOCKS = 8


def test_a_block_computes_what_it_says() -> None:
    block = Block(3, normalizes=True, skips=True).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = x @ block.linear.weight.T
    z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), x + torch.where(z > 0, z, SLOPE * z))


def test_only_what_is_wanted_is_in_the_network() -> None:
    whole, bare = network(WHOLE, 2), network(BARE, 2)
    assert sum(isinstance(module, nn.BatchNorm1d) for module in whole.modules()) == 2
    assert not any(isinstance(module, nn.BatchNorm1d) for module in bare.modules())
    assert [block.skips for block in whole[1:-1]] == [True, True]
    assert [block.skips for block in bare[1:-1]] == [False, False]
    deviations = [float(net[1].linear.weight.detach().std()) for net in (whole, bare)]
    assert deviations[0] == pytest.approx(math.sqrt(2.0 / (1.0 + SLOPE**2) / 64), rel=0.05)
    assert deviations[1] == pytest.approx(1.0 / math.sqrt(3 * 64), rel=0.05)


def test_the_improved_network_is_healthy_and_learns(fast_page) -> None:
    healthy = fast_page(SLIDE).statements[0]
    assert healthy.holds
    assert healthy.values["healthy"] == 1.0
    assert healthy.values["accuracy"] > 0.9


def test_the_expected_growth_is_that_of_a_wide_network() -> None:
    rng = np.random.default_rng(0)
    width, blocks = 1500, 6
    signal = rng.standard_normal((width, 4))
    levels = []
    for _ in range(blocks):
        z = he_normal((width, width), rng) @ signal
        levels.append(np.sqrt((z**2).mean()))
        signal = signal + np.maximum(z, 0.0)
    assert expected_growth(blocks) == pytest.approx((levels[-1] / levels[0]) ** (1 / (blocks - 1)), rel=0.03)
    assert expected_growth(2) == pytest.approx(math.sqrt(2.0))


def test_without_batch_normalization_the_signal_grows_as_expected(fast_page) -> None:
    without = fast_page(SLIDE).statements[1]
    assert without.holds
    assert without.values["growth"] == pytest.approx(expected_growth(BLOCKS), rel=0.15)
    assert without.values["whole_growth"] == pytest.approx(1.0, abs=1e-3)
    assert without.values["accuracy"] < 0.2
    assert "`exploding-signal`" in without.sentence


def test_he_and_the_residual_connection_are_spared_beside_batch_normalization(fast_page) -> None:
    spare = fast_page(SLIDE).statements[2]
    assert spare.holds
    assert spare.values["healthy"] == 1.0
    assert min(spare.values["without_he"], spare.values["without_skip"]) > 0.9


def test_without_all_three_the_signal_dies_and_so_does_the_training(fast_page) -> None:
    bare = fast_page(SLIDE).statements[3]
    assert bare.holds
    assert bare.values["accuracy"] < 0.2
    # torch's weights keep a third of the variance, a leaky rectifier about half of that; the biases add a little.
    assert (1.0 / 6.0) ** ((BLOCKS - 1) / 2) < bare.values["shrinks_to"] < 0.5
    assert "vanishing-gradient" in bare.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["accuracy", "signal", "loss"]
    assert f"improved network {page.statements[0].values['accuracy']:.1%}, healthy" in page.figures[0].alt
    assert "no finite number" in page.figures[2].alt
