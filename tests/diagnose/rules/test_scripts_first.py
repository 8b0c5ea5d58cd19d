"""Short real trainings, each with a disease of these rules, and its healthy twin."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import desat
from desat.diagnose.finding import Diagnosis, Finding

Batches = Callable[[int], Tensor]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return torch.tensor(images / 16.0).float()[order], torch.tensor(labels)[order]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def perceptron(depth: int = 4, scale: float | None = None, norm: bool = False, bounded: bool = False) -> nn.Sequential:
    """scale: standard deviation of the weights; None: as He et al. draw them."""
    layers: list[nn.Module] = []
    for inputs in [64] * depth:
        layer = nn.Linear(inputs, 64)
        if scale is None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=scale)
        nn.init.zeros_(layer.bias)
        layers += [layer, *([nn.BatchNorm1d(64)] if norm else []), nn.Tanh() if bounded else nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Attentive(nn.Module):
    """Digits as sequences of eight rows; scale: what the logits are multiplied by."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(256, 10)
        self.norm, self.scale = nn.LayerNorm(32), scale

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(self.embed(images.view(-1, 8, 8)))).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        return self.head((weights @ value).flatten(1))


def train(
    directory: Path,
    digits: tuple[Tensor, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch: int = 32,
    steps: int = 250,
    batches: Batches | None = None,
) -> Diagnosis:
    images, labels = digits
    generator = torch.Generator().manual_seed(0)
    with desat.watch(model, optimizer, every=5, run_dir=directory) as run:
        for step in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=generator) if batches is None else batches(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return run.diagnose()


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate)


def sgd(model: nn.Module, rate: float, momentum: float = 0.0, maximize: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, maximize=maximize)


def only(diagnosis: Diagnosis, code: str) -> Finding:
    """The finding of a code, which must be no consequence of another."""
    (found,) = [each for each in diagnosis.findings if each.code == code]
    assert not found.cause.startswith("a consequence of"), diagnosis.findings
    return found


def assert_sound(diagnosis: Diagnosis, code: str) -> None:
    assert [each for each in diagnosis.findings if each.severity != "note" or each.code == code] == []


def test_a_learning_rate_that_is_too_large(tmp_path: Path, digits) -> None:
    model = perceptron()
    found = only(train(tmp_path / "sick", digits, model, adam(model, 0.1)), "update-too-large")
    assert (found.severity, found.first_step) == ("error", 0)
    assert found.evidence["fitting_learning_rate"] < 0.01
    model = perceptron()
    assert_sound(train(tmp_path / "sound", digits, model, adam(model)), "update-too-large")


def test_a_learning_rate_that_is_too_small(tmp_path: Path, digits) -> None:
    model = perceptron()
    found = only(train(tmp_path / "sick", digits, model, sgd(model, 1e-5)), "update-too-small")
    assert found.severity == "error"
    assert "the learning rate is too small: 1e-05" in found.cause
    model = perceptron()
    assert_sound(train(tmp_path / "sound", digits, model, sgd(model, 0.03)), "update-too-small")


def test_a_loss_that_is_climbed(tmp_path: Path, digits) -> None:
    model = perceptron(depth=1)
    found = only(train(tmp_path / "sick", digits, model, sgd(model, 0.005, maximize=True)), "loss-diverging")
    assert found.severity == "error"
    assert "sign of the loss" in found.cause
    model = perceptron(depth=1)
    assert_sound(train(tmp_path / "sound", digits, model, sgd(model, 0.05)), "loss-diverging")


def test_data_in_the_order_of_their_labels(tmp_path: Path, digits) -> None:
    by_label = torch.argsort(digits[1], stable=True)

    def batches(step: int) -> Tensor:
        return by_label[(16 * step) % 1440 :][:16]

    model = perceptron(depth=2, scale=0.07, bounded=True)
    sick = train(tmp_path / "sick", digits, model, adam(model, 3e-3), batches=batches, steps=540)
    found = only(sick, "loss-oscillating")
    assert found.severity == "error"
    assert found.evidence["swinging_share"] > 0.4
    model = perceptron(depth=2, scale=0.07, bounded=True)
    sound = train(tmp_path / "sound", digits, model, adam(model, 3e-3), batch=16, steps=540)
    assert_sound(sound, "loss-oscillating")


def test_weights_that_were_drawn_too_small(tmp_path: Path, digits) -> None:
    model = perceptron(depth=6, scale=0.01)
    found = only(train(tmp_path / "sick", digits, model, sgd(model, 0.1, momentum=0.9)), "vanishing-signal")
    assert (found.severity, found.first_step) == ("error", 0)
    assert "drawn too small" in found.cause
    model = perceptron(depth=6)
    assert_sound(train(tmp_path / "sound", digits, model, sgd(model, 0.01, momentum=0.9)), "vanishing-signal")


def test_weights_that_were_drawn_too_large(tmp_path: Path, digits) -> None:
    model = perceptron(depth=6, scale=1.0)
    found = only(train(tmp_path / "sick", digits, model, sgd(model, 0.01)), "exploding-signal")
    assert (found.severity, found.first_step) == ("error", 0)
    assert "drawn too large" in found.cause
    model = perceptron(depth=6)
    assert_sound(train(tmp_path / "sound", digits, model, sgd(model, 0.01, momentum=0.9)), "exploding-signal")


def test_batches_too_small_to_normalize_by(tmp_path: Path, digits) -> None:
    model = perceptron(norm=True)
    found = only(train(tmp_path / "sick", digits, model, adam(model), batch=2), "degenerate-batchnorm")
    assert found.evidence["tiny_batch"] == 2.0
    assert len(found.sites) == 4
    model = perceptron(norm=True)
    assert_sound(train(tmp_path / "sound", digits, model, adam(model)), "degenerate-batchnorm")


def test_running_statistics_that_do_not_follow(tmp_path: Path, digits) -> None:
    model = perceptron(norm=True, scale=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1e-3
    found = only(train(tmp_path / "sick", digits, model, adam(model)), "degenerate-batchnorm")
    assert found.severity == "error"
    assert "the momentum is too small" in found.cause


def test_logits_without_their_division(tmp_path: Path, digits) -> None:
    model = Attentive(scale=300.0)
    found = only(train(tmp_path / "sick", digits, model, adam(model)), "collapsed-attention")
    assert found.severity in ("error", "warning")
    assert "from the start" in found.cause
    model = Attentive(scale=32**-0.5)
    assert_sound(train(tmp_path / "sound", digits, model, adam(model)), "collapsed-attention")
