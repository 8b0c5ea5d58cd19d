"""Short trainings that have a disease, and their healthy twins, from watching to the finding."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import desat
from desat.diagnose.finding import Finding

Loss = Callable[[Tensor, Tensor], Tensor]
STEPS, BATCH, WIDTH = 120, 64, 32


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Images in 0 ... 16, not scaled, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def diagnosed(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> Callable[..., dict[str, Finding]]:
    """The findings of a training, by their codes."""

    def run(
        model: nn.Module,
        loss_of: Loss = F.cross_entropy,
        *,
        factor: float = 0.2,
        rate: float = 0.05,
        trained: Iterable[nn.Parameter] | None = None,
    ) -> dict[str, Finding]:
        images, labels = digits
        images = factor * (images - 5.0 * (factor != 1.0))
        optimizer = torch.optim.SGD(model.parameters() if trained is None else trained, lr=rate, momentum=0.9)
        with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run") as watched:
            for step in range(STEPS):
                chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % len(labels)
                optimizer.zero_grad()
                loss_of(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
        return {finding.code: finding for finding in watched.diagnose().findings}

    torch.manual_seed(0)
    return run


def perceptron(hidden: int = 2, last: float = 1.0) -> nn.Sequential:
    """A sound network for the digits; last: factor on the last layer's weights."""
    widths = [64, *[WIDTH] * hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    output = nn.Linear(WIDTH, 10)
    model = nn.Sequential(*layers, output)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        output.weight.mul_(last)
    return model


class Cut(nn.Module):
    """Its first part is cut off, if so told."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.front, self.back, self.cut = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10), cut

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).relu()
        return self.back(x.detach() if self.cut else x)


class Residual(nn.Module):
    """Three residual blocks, their branches times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem, self.head, self.factor = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10), factor
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + self.factor * branch(x)
        return self.head(x)


CODES = {
    "unscaled-input", "symmetric-units", "collapsed-rank", "residual-imbalance", "saturated-output", "mismatched-loss",
    "untrained-parameter",
}  # fmt: skip


@pytest.mark.parametrize("model", [perceptron, lambda: Cut(False), lambda: Residual(1.0)])
def test_sound_trainings_have_none_of_these(diagnosed, model: Callable[[], nn.Module]) -> None:
    assert CODES & set(diagnosed(model())) == set()


def test_unscaled_input(diagnosed) -> None:
    found = diagnosed(nn.Sequential(nn.Linear(64, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, 10)), factor=100.0)
    assert found["unscaled-input"].site == "input"
    assert found["unscaled-input"].evidence["input_rms"] > 100.0


def test_symmetric_units(diagnosed) -> None:
    model = perceptron()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.02)
    found = diagnosed(model)["symmetric-units"]
    assert found.severity in ("error", "warning")
    assert found.site in ("0", "2")


def test_weights_that_are_all_zero(diagnosed) -> None:
    model = perceptron()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = diagnosed(model)
    assert found["symmetric-units"].severity == "error"
    assert found["untrained-parameter"].cause == "a consequence of symmetric-units"


def test_collapsed_rank(diagnosed) -> None:
    """Biases that outweigh what the samples differ in, layer by layer."""
    model = perceptron(hidden=6)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(0.3)
                nn.init.uniform_(layer.bias, 0.5, 2.0)
    found = diagnosed(model, rate=1e-5)["collapsed-rank"]
    assert found.severity in ("error", "warning", "note")
    assert found.evidence["effective_rank"] < 1.5
    assert found.evidence["rank_before"] > 2.0


def test_residual_imbalance(diagnosed) -> None:
    found = diagnosed(Residual(300.0), rate=1e-5)["residual-imbalance"]
    assert "test_scripts_third.py" in (found.source or "")
    assert found.evidence["branch_over_stream_db"] > 30.0


def test_saturated_output(diagnosed) -> None:
    found = diagnosed(perceptron(last=100.0), rate=1e-6)["saturated-output"]
    assert found.site == "4"
    assert found.severity in ("error", "warning")


def test_a_sigmoid_at_the_end_that_is_sure_and_wrong(diagnosed) -> None:
    def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(labels, 10).float())

    found = diagnosed(nn.Sequential(*perceptron(last=1000.0), nn.Sigmoid()), loss_of, rate=1e-6)["saturated-output"]
    assert (found.severity, found.site) == ("error", "5")


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda outputs, labels: F.cross_entropy(30.0 * outputs.softmax(1) / 30.0, labels),
        lambda outputs, labels: F.nll_loss(outputs, labels),
    ],
    ids=["softmax twice", "logits as logarithms"],
)
def test_mismatched_loss(diagnosed, loss_of: Loss) -> None:
    found = diagnosed(perceptron(), loss_of, rate=0.002)["mismatched-loss"]
    assert found.severity == "error"
    assert found.sites == ("4", "loss")
    assert "test_scripts_third.py" in (found.source or "")


def test_a_part_that_is_cut_off(diagnosed) -> None:
    found = diagnosed(Cut(True))["untrained-parameter"]
    assert found.severity in ("error", "warning")
    assert found.sites == ("front.weight", "front.bias")
    assert "detach" in found.cause


def test_a_part_that_no_optimizer_has(diagnosed) -> None:
    model = perceptron()
    found = diagnosed(model, trained=[*model[4].parameters()])["untrained-parameter"]
    assert found.severity in ("error", "warning")
    assert found.site == "0.weight"
    assert "in no optimizer" in found.cause


def test_a_part_that_is_frozen_on_purpose(diagnosed) -> None:
    model = perceptron()
    model[0].requires_grad_(False)
    found = diagnosed(model)["untrained-parameter"]
    assert (found.severity, found.site) == ("note", "0.weight")
