"""Slide 15: what the seven techniques do for one sick network."""

import pytest
import torch

from desat.api import apply
from desat.deck.slides.techniques import ALL, FAST, SLIDE, TECHNIQUES, Reader


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


@pytest.mark.parametrize("name", ALL)
def test_each_technique_finds_something_to_change(name: str) -> None:
    model = Reader(FAST.depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    changes = apply(model, optimizer, TECHNIQUES[name], batch=torch.randn(8, 64))
    assert any(change.refused is None for change in changes)
