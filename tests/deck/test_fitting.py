from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from desat.deck.fitting import Plan, fitted, measure
from desat.deck.history import History, accuracy_picture, loss_picture

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()
HELD = [(INPUTS[30:], TARGETS[30:])]


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(INPUTS[:30].split(10), TARGETS[:30].split(10), strict=True)


def fit(lr: float, plan: Plan, **options: float) -> tuple[nn.Module, History, list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=abs(lr), maximize=lr < 0)
    with fitted(model, optimizer, batches, HELD, plan, **options) as (record, history):
        return model, history, record.steps()["loss"].tolist()


def test_the_history_is_that_of_the_losses_and_of_the_validation() -> None:
    model, history, losses = fit(0.5, Plan(most=4, patience=4, steps=3))
    assert history.epochs == 4
    assert len(losses) == 12
    assert history.loss == pytest.approx([sum(losses[at : at + 3]) / 3 for at in (0, 3, 6, 9)], rel=1e-5)
    assert history.validation_loss == sorted(history.validation_loss, reverse=True)
    assert history.best == 3
    loss, accuracy = measure(model, HELD)
    assert (loss, accuracy) == (history.validation_loss[3], history.best_accuracy)
    assert accuracy == float((model(HELD[0][0]).argmax(-1) == HELD[0][1]).float().mean())


def test_it_ends_when_the_validation_gets_no_better_and_keeps_the_best() -> None:
    model, history, losses = fit(-0.5, Plan(most=9, patience=2, steps=3))  # climbs, so that the first is the best
    assert history.epochs == 3
    assert len(losses) == 9
    assert history.best == 0
    assert measure(model, HELD)[0] == history.validation_loss[0]


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    history = History(validation_loss=[0.5, float("nan"), 0.4, float("inf")])
    assert history.best == 2
    assert History(validation_loss=[float("nan"), 0.4]).best == 1


def test_the_gradient_is_clipped() -> None:
    moved = []
    for clip in (1e-4, 1e9):
        torch.manual_seed(0)
        before = nn.Linear(3, 2).weight.detach().clone()
        model, _, _ = fit(1.0, Plan(most=1, patience=1, steps=3), clip=clip)
        moved.append(float((model.weight - before).detach().norm()))
    assert moved[0] <= 3e-4 < moved[1]


def test_the_pictures_tell_the_history() -> None:
    history = History([2.0, 1.0], [0.5, 0.75], [1.5, 1.25], [0.625, 0.875])
    assert "from 2 to 1;" in loss_picture(history).alt
    assert "87.5 in epoch 2, which is kept" in accuracy_picture(history).alt
