"""Watching never changes a result: same seed, same weights, same random state, bit for bit."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

import desat
from tests.watch.loops import classify


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.dropout(torch.sigmoid(F.relu(self.a(x), inplace=True)), 0.3, self.training))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell = kind(6, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 4),
    )  # fmt: skip


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sigmoid": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 4)), (6,)),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (6,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4)), (6,)),
    "functional": (Functional, (6,)),
    "convolutional": (convolutional, (1, 8, 8)),
    "normalized": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 4)), (6,)),
    "attention": (Attention, (5, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 6)),
    "gru": (lambda: Recurrent(nn.GRU), (5, 6)),
    "rrelu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.RReLU(), nn.PReLU(8), nn.Linear(8, 4)), (6,)),
}


def trained(kind: str, watch_in: Path | None) -> list[torch.Tensor]:
    """Everything a training leaves behind, bit by bit."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loop = classify(steps=6, shape=shape)
    if watch_in is None:
        loop(model, optimizer)
    else:
        with desat.watch(model, optimizer, every=2, run_dir=watch_in):
            loop(model, optimizer)
    state = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    randomness = [torch.get_rng_state(), torch.tensor(np.random.random()), torch.tensor(random.random())]
    return [*model.state_dict().values(), *state, *randomness]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_optimizer_and_random_state_are_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    plain, watched = trained(kind, None), trained(kind, tmp_path / "run")
    assert len(plain) == len(watched)
    for expected, found in zip(plain, watched, strict=True):
        assert torch.equal(expected, found)
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 2, 4]


def installed() -> list[object]:
    """Every place where watching hangs something."""
    return [
        dict(torch_module._global_forward_hooks),
        dict(torch_module._global_forward_pre_hooks),
        dict(torch_optimizer._global_optimizer_pre_hooks),
        dict(torch_optimizer._global_optimizer_post_hooks),
        torch.Tensor.backward,
        torch.compile,
        torch_module._has_any_global_hook,
        torch.overrides._get_current_function_mode_stack(),
    ]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = installed()
    trained("functional", tmp_path / "run")
    assert installed() == before


def test_nothing_is_left_behind_when_the_loop_raises(tmp_path: Path) -> None:
    before = installed()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())

    def broken(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.randn(3, 7))

    with pytest.raises(RuntimeError, match="shapes"), desat.watch(model, run_dir=tmp_path / "run"):
        broken(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert installed() == before
    with desat.open(tmp_path / "run") as record:
        assert record.information["status"] == "failed"


def test_nothing_is_left_behind_when_the_user_interrupts_a_forward_pass(tmp_path: Path) -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    before = installed()
    model = nn.Sequential(nn.Linear(6, 8), Interrupted())
    with pytest.raises(KeyboardInterrupt), desat.watch(model, run_dir=tmp_path / "run"):
        model(torch.randn(3, 6))
    assert installed() == before


def test_nothing_is_installed_on_an_unsampled_step(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with desat.watch(model, optimizer, every=100, run_dir=tmp_path / "run"):
        classify(steps=2)(model, optimizer)
        assert not torch_module._global_forward_hooks
        assert not torch_module._global_forward_pre_hooks
        assert not torch_optimizer._global_optimizer_pre_hooks
        assert not torch.overrides._get_current_function_mode_stack()
