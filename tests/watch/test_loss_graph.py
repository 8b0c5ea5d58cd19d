import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.watch.loss_graph import LENGTH, NODES, chains_of, loss_of_guessing

LABELS = torch.tensor([0, 2, 1, 1])
ONES = torch.ones(4, 3)


def logits() -> Tensor:
    return nn.Linear(6, 3)(torch.randn(4, 6))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda z: F.cross_entropy(z, LABELS), "NllLoss <- LogSoftmax <- Addmm"),
        (lambda z: F.cross_entropy(z, ONES / 3), "LogSoftmax <- Addmm"),
        (lambda z: F.cross_entropy(3.0 * z.softmax(1), LABELS), "NllLoss <- LogSoftmax <- Mul <- Softmax <- Addmm"),
        (lambda z: F.cross_entropy(z.relu(), LABELS), "NllLoss <- LogSoftmax <- Relu <- Addmm"),
        (lambda z: F.nll_loss(z, LABELS), "NllLoss <- Addmm"),
        (lambda z: F.mse_loss(z[:, 0].unsqueeze(1), ONES[:, :1]), "MseLoss <- Addmm"),
        (lambda z: ((z - ONES) ** 2).mean(), "Pow <- Sub <- Addmm"),
        (lambda z: F.binary_cross_entropy(z.sigmoid(), ONES), "BinaryCrossEntropy <- Sigmoid <- Addmm"),
        (
            lambda z: F.binary_cross_entropy_with_logits(z.sigmoid(), ONES),
            "BinaryCrossEntropyWithLogits <- Sigmoid <- Addmm",
        ),
        (lambda z: 0.5 * F.cross_entropy(z, LABELS) / 4, "NllLoss <- LogSoftmax <- Addmm"),
        (lambda z: -torch.log(z.softmax(1))[range(4), LABELS].mean(), "Log <- Softmax <- Addmm"),
        (lambda z: -(ONES * (z.exp() / z.exp().sum(1, True)).log()).sum(), "Log <- Div <- Exp <- Addmm"),
    ],
)  # fmt: skip
def test_the_chain_of_a_loss(loss: Callable[[Tensor], Tensor], expected: str) -> None:
    assert [" <- ".join(chain) for chain in chains_of(loss(logits()))] == [expected]


def test_each_term_has_a_chain_and_a_weight_penalty_has_none() -> None:
    layer = nn.Linear(6, 3)
    z = layer(torch.randn(4, 6))
    penalty = sum(parameter.pow(2).sum() for parameter in layer.parameters())
    loss = F.cross_entropy(z, LABELS) + 0.1 * F.mse_loss(z, ONES) + 1e-4 * penalty
    assert chains_of(loss) == [("NllLoss", "LogSoftmax", "Addmm"), ("MseLoss", "Addmm")]


def test_a_chain_ends_where_two_values_meet() -> None:
    """A mixture of experts: its gate's softmax is not in front of the cross entropy."""
    gate, experts = logits().softmax(1), torch.stack([logits() for _ in range(3)], 1)
    mixed = (gate.unsqueeze(-1) * experts).sum(1)
    assert chains_of(F.cross_entropy(mixed, LABELS)) == [("NllLoss", "LogSoftmax", "Sum", "Mul")]


def test_no_graph_is_looked_at_beyond_its_bounds() -> None:
    loss, one = logits().mean(), torch.ones((), requires_grad=True)
    for _ in range(NODES):
        loss = loss + one
    assert chains_of(loss) == []
    deep = logits()
    for _ in range(2 * LENGTH):
        deep = deep.relu()
    assert chains_of(F.cross_entropy(deep, LABELS)) == [("NllLoss", "LogSoftmax", *["Relu"] * (LENGTH - 2))]


def test_a_loss_without_a_graph_has_no_chain() -> None:
    assert chains_of(torch.ones(())) == []
    assert chains_of(torch.ones((), requires_grad=True)) == []


def test_the_record_has_a_site_for_each_chain(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(6):
            optimizer.zero_grad()
            outputs = model(torch.randn(4, 6))
            (F.cross_entropy(outputs, LABELS) if step % 2 else F.mse_loss(outputs, ONES)).backward()
            optimizer.step()

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    sites = watched(model, loop).sites("loss")
    assert [site.operation for site in sites] == ["MseLoss <- Addmm", "NllLoss <- LogSoftmax <- Addmm"]
    assert [site.name for site in sites] == ["loss", "loss (NllLoss <- LogSoftmax <- Addmm)"]
    assert all("test_loss_graph.py:" in (site.source or "") for site in sites)


def test_what_is_no_number_is_no_loss(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.randn(4, 6)).backward(torch.ones(4, 3))
        optimizer.step()

    assert watched(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), loop).sites("loss") == ()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda z: F.cross_entropy(z, LABELS), math.log(3)),
        (lambda z: F.cross_entropy(z[0], LABELS[0]), math.log(3)),
        (lambda z: F.cross_entropy(z.reshape(2, 3, 2), LABELS.reshape(2, 2)), math.log(3)),
        (lambda z: F.cross_entropy(z, LABELS, weight=ONES[0]), math.log(3)),
        (lambda z: F.binary_cross_entropy_with_logits(z, ONES), math.log(2)),
        (lambda z: F.binary_cross_entropy_with_logits(z, ONES, pos_weight=3 * ONES[0]), None),
        (lambda z: F.binary_cross_entropy_with_logits(z, ONES, weight=3 * ONES[0]), None),
        (lambda z: F.cross_entropy(z, LABELS, reduction="sum"), None),
        (lambda z: F.cross_entropy(z, LABELS) / 4, None),
        (lambda z: F.cross_entropy(z, LABELS) + z.pow(2).mean(), None),
        (lambda z: F.cross_entropy(z[:, :1], 0 * LABELS), None),
        (lambda z: F.nll_loss(z, LABELS), None),
        (lambda z: F.mse_loss(z, torch.arange(12.0).reshape(4, 3)), 15.0),
        (lambda z: F.mse_loss(z, ONES), 0.0),
        (lambda z: F.mse_loss(z[:1], ONES[:1]), None),
        (lambda z: F.l1_loss(z, ONES), None),
    ],
)
def test_the_loss_of_guessing(loss: Callable[[Tensor], Tensor], expected: float | None) -> None:
    guessing = loss_of_guessing(loss(logits()))
    assert (None if guessing is None else float(guessing)) == (None if expected is None else pytest.approx(expected))


def test_equal_logits_cost_what_guessing_costs() -> None:
    z = torch.zeros(4, 3, requires_grad=True) * 1.0
    for loss in (F.cross_entropy(z, LABELS), F.binary_cross_entropy_with_logits(z, ONES)):
        torch.testing.assert_close(loss_of_guessing(loss), loss.detach())


def test_the_mean_of_the_targets_costs_what_guessing_costs() -> None:
    targets = torch.randn(1000, 3)
    answer = targets.mean(0).expand(1000, 3).clone().requires_grad_() * 1.0
    loss = F.mse_loss(answer, targets)
    torch.testing.assert_close(loss_of_guessing(loss), loss.detach(), rtol=2e-3, atol=0.0)


def test_hooks_of_the_users_are_not_run() -> None:
    unpacked: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor, lambda tensor: unpacked.append(tensor) or tensor
    ):
        loss_of_guessing(F.cross_entropy(logits(), LABELS))
        loss_of_guessing(F.binary_cross_entropy_with_logits(logits(), ONES))
        loss_of_guessing(F.mse_loss(logits(), ONES))
    assert not unpacked
