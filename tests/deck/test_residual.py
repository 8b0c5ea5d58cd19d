import numpy as np

from desat.deck.slides.residual import BLOCKS, SLIDE, _chain

KINDS = ("plain", "residual", "remedied")


def test_the_gradient_of_ten_blocks_is_autograd_s(fast_page) -> None:
    statement = fast_page(SLIDE).statements[0]
    assert statement.holds
    assert statement.values["error"] < 1e-12
    assert statement.values["plain"] < 1e-5 < 0.5 < statement.values["residual"] < 3.0


def test_the_chain_has_a_norm_before_each_block_and_one_behind_the_last() -> None:
    chain = _chain(3)
    for norms in (chain.plain, chain.residual):
        assert norms.shape == (BLOCKS + 1,)
        assert np.isclose(norms[-1], 1.0)
    assert (np.diff(chain.plain) > 0.0).all()


def test_a_plain_network_loses_with_depth_and_a_residual_one_does_not(fast_page) -> None:
    statement = fast_page(SLIDE).statements[1]
    assert statement.holds
    plain, residual, remedied = ([statement.values[f"{kind}_at_{depth}"] for depth in (4, 12, 24)] for kind in KINDS)
    assert plain[0] > plain[1] + 30.0 > plain[2] + 60.0
    assert min(residual + remedied) > -20.0
    # A layer of ReLU with torch's weights passes a sixth of the power at most: 1/3 by the weights, half by the ReLU.
    assert -10.0 < statement.values["by_layer"] < -10.0 * np.log10(6.0) + 0.5
    assert "12 plain layers `vanishing-gradient`" in statement.sentence


def test_with_skips_the_deep_network_learns(fast_page) -> None:
    statement = fast_page(SLIDE).statements[2]
    assert statement.holds
    assert statement.values["plain_at_24"] < 0.2
    assert min(statement.values["residual_at_24"], statement.values["remedied_at_24"]) > 0.75


def test_branches_that_are_too_large_drown_the_stream(fast_page) -> None:
    statement = fast_page(SLIDE).statements[3]
    assert statement.holds
    assert statement.values["branch_sound"] < 0.0 < 20.0 < statement.values["branch_drowned"]
    assert statement.values["accuracy_drowned"] < statement.values["accuracy_sound"]
    assert "`residual-imbalance`" in statement.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["blocks", "depth", "accuracy"]
    assert f"{page.statements[1].values['plain_at_24']:.0f} dB at 24" in page.figures[1].alt
