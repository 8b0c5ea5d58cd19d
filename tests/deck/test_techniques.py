"""Slide 15: what the seven techniques do for one sick network."""

import torch

from desat.deck.slides.techniques import ALL, FAST, SLIDE, without_effect


def test_all_together_heal_what_is_sick(fast_page) -> None:
    page = fast_page(SLIDE)
    healed, alone = page.statements
    assert healed.holds
    assert healed.values["before"] < 0.3
    assert healed.values["after"] > healed.values["before"] + 0.3
    assert healed.values["errors_before"] >= 1
    assert alone.values["together"] == healed.values["after"]
    gains = [alone.values[f"gain_of_{name}"] for name in ALL]
    assert alone.holds == (healed.values["before"] + max(gains) < healed.values["after"])


def test_only_the_skip_connection_finds_nothing_to_change() -> None:
    """Its gradients vanish through time, not through layers: the remedy leaves recurrent networks."""
    assert without_effect(FAST.depth, torch.randn(8, 64)) == ("residual",)


def test_the_slide_says_so(fast_page) -> None:
    assert "`residual=skip` leaves this network as it is" in fast_page(SLIDE).statements[1].sentence
