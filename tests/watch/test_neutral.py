"""Watching never changes a result: same seed, same weights, same random state, bit for bit."""

import contextlib
import os
import random
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
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


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.b(self.act(self.bn(self.a(x))))
        out += x
        return self.act(out)


class ByHand(nn.Module):
    """Attention as it is written in textbooks, causal, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.out = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.query(x) @ self.key(x).transpose(1, 2) / 6**0.5
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        weights = F.dropout(logits.masked_fill(later, float("-inf")).softmax(-1), 0.2, self.training)
        x = x + self.head(weights @ self.value(x))
        x = x + F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
        return self.out(x.mean(1))


class Words(nn.Module):
    """An embedding and a bag of embeddings with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8, sparse=True)
        self.bag = nn.EmbeddingBag(30, 8, mode="mean", sparse=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x.abs() * 10).long().clamp(max=29)
        return self.head(torch.tanh(self.words(tokens).mean(1) + self.bag(tokens)))


class Half(nn.Module):
    """A network in bfloat16 between inputs and a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 4)).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.bfloat16()).float()


class Random(nn.Module):
    """A layer of the user's own that draws from every generator, as stochastic depth does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()) + 0.1 * torch.rand(()))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(6, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 6, nonlinearity="relu")
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, hidden, last = None, None, None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            hidden = self.gru(state[0], hidden)
            last = self.rnn(hidden, last)
        return self.head(last)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 4),
    )  # fmt: skip


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), ResidualBlock(), ResidualBlock(), nn.Flatten(), nn.Linear(144, 4))


def autoencoder() -> nn.Module:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(8, 4), nn.LogSigmoid())
    return nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 3)), decoder)


def reparametrized() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Linear(6, 8)), nn.Softplus(), spectral_norm(nn.Linear(8, 8)), nn.GELU(),
        orthogonal(nn.Linear(8, 8)), nn.Hardswish(), spectral_norm(nn.Linear(8, 4)),
    )  # fmt: skip


def spectral_recurrence() -> nn.Module:
    model = Recurrent(nn.LSTM)
    spectral_norm(model.cell, "weight_hh_l0")
    return model


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.PReLU(4), nn.Flatten(), nn.LazyLinear(8), nn.SiLU(),
        nn.LazyLinear(4), nn.RReLU(),
    )  # fmt: skip


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6,)
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam


KINDS = {
    "sigmoid": Kind(lambda: nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 4))),
    "relu": Kind(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), optimizer=torch.optim.LBFGS),
    "dropout": Kind(lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4))),
    "functional": Kind(Functional),
    "convolutional": Kind(convolutional, (1, 8, 8)),
    "residual": Kind(residual, (1, 8, 8), torch.optim.RMSprop),
    "normalized": Kind(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 4))),
    "attention": Kind(Attention, (5, 6), torch.optim.AdamW),
    "by hand": Kind(ByHand, (5, 6), torch.optim.AdamW),
    "lstm": Kind(lambda: Recurrent(nn.LSTM), (5, 6)),
    "gru": Kind(lambda: Recurrent(nn.GRU), (5, 6)),
    "rnn": Kind(lambda: Recurrent(nn.RNN), (5, 6)),
    "cells": Kind(Cells, (5, 6)),
    "autoencoder": Kind(autoencoder, optimizer=torch.optim.NAdam),
    "words": Kind(Words, optimizer=torch.optim.SGD),
    "bfloat16": Kind(Half),
    "random": Kind(lambda: nn.Sequential(nn.Linear(6, 8), Random(), nn.Tanh(), Random(), nn.Linear(8, 4))),
    "rrelu": Kind(lambda: nn.Sequential(nn.Linear(6, 8), nn.RReLU(), nn.PReLU(8), nn.Linear(8, 4))),
    "reparametrized": Kind(reparametrized),
    "spectral recurrence": Kind(spectral_recurrence, (5, 6)),
    "lazy": Kind(lazy, (1, 8, 8)),
}


def everything(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """Everything a training leaves behind, bit by bit."""
    states = [entry for optimizer in optimizers for entry in optimizer.state_dict()["state"].values()]
    values = [value for entry in states for value in entry.values()]
    kept = [torch.as_tensor(value) for value in values if isinstance(value, (torch.Tensor, float, int))]
    weights = [value for model in models for value in model.state_dict().values()]
    gradients = [one.grad for model in models for one in model.parameters() if one.grad is not None]
    numbers = [*np.random.get_state()[1], hash(random.getstate())]
    return [*weights, *gradients, *kept, torch.get_rng_state(), torch.tensor(np.array(numbers, np.int64))]


def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def trained(kind: str, watch_in: Path | None) -> list[torch.Tensor]:
    seeded()
    make, shape, make_optimizer = KINDS[kind]
    model = make()
    optimizer = make_optimizer(model.parameters(), lr=0.01)
    loop = classify(steps=6, shape=shape)
    if make_optimizer is torch.optim.LBFGS:
        loop = with_closure
    if watch_in is None:
        loop(model, optimizer)
    else:
        with desat.watch(model, optimizer, every=2, run_dir=watch_in):
            loop(model, optimizer)
    return everything([model], [optimizer])


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs, labels = torch.randn(8, 6), torch.randint(0, 4, (8,))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)


def train_gan(watch_in: Path | None) -> list[torch.Tensor]:
    seeded()
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Tanh())
    critic = nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1))
    pair = nn.ModuleDict({"generator": generator, "critic": critic})
    turns = [torch.optim.Adam(one.parameters(), lr=0.01) for one in (critic, generator)]
    with contextlib.ExitStack() as stack:
        if watch_in is not None:
            stack.enter_context(desat.watch(pair, every=2, run_dir=watch_in))
        for _ in range(6):
            for number, optimizer in enumerate(turns):
                optimizer.zero_grad()
                fake = critic(generator(torch.randn(8, 3)))
                (
                    F.softplus(-fake) if number else F.softplus(fake) + F.softplus(-critic(torch.randn(8, 6)))
                ).mean().backward()
                optimizer.step()
    return everything([pair], turns)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_weights_optimizer_and_random_state_are_the_same_bit_for_bit(kind: str, tmp_path: Path, caplog: Any) -> None:
    assert_same(trained(kind, None), trained(kind, tmp_path / "run"))
    assert not caplog.messages
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 2, 4]


def test_two_networks_with_two_optimizers_are_the_same_bit_for_bit(tmp_path: Path, caplog: Any) -> None:
    assert_same(train_gan(None), train_gan(tmp_path / "run"))
    assert not caplog.messages
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 2, 4]


def assert_same(plain: list[torch.Tensor], watched: list[torch.Tensor]) -> None:
    assert len(plain) == len(watched)
    for expected, found in zip(plain, watched, strict=True):
        assert expected.dtype == found.dtype
        assert expected.layout == found.layout
        if expected.layout is not torch.strided:
            expected, found = expected.to_dense(), found.to_dense()
        assert torch.equal(expected, found)


def installed() -> list[object]:
    """Every place where watching hangs something."""
    return [
        dict(torch_module._global_forward_hooks),
        dict(torch_module._global_forward_pre_hooks),
        dict(torch_module._global_forward_hooks_always_called),
        dict(torch_module._global_forward_hooks_with_kwargs),
        dict(torch_module._global_backward_hooks),
        dict(torch_optimizer._global_optimizer_pre_hooks),
        dict(torch_optimizer._global_optimizer_post_hooks),
        torch.Tensor.backward,
        torch.compile,
        torch.amp.GradScaler.scale,
        torch.amp.GradScaler.step,
        torch.Tensor.retain_grad,
        torch_module._has_any_global_hook,
        torch.overrides._get_current_function_mode_stack(),
    ]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = installed()
    trained("functional", tmp_path / "run")
    assert installed() == before


def test_no_hook_and_no_memory_is_left_on_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    outputs: list[torch.Tensor] = []
    batches: list[weakref.ref[torch.Tensor]] = []

    def loop(optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            batch = torch.randn(5, 6)
            batches.append(weakref.ref(batch))
            outputs.append(model(batch))
            outputs[-1].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert len(batches) == 1 or batches[-2]() is None, "the batch before is still held"

    with desat.watch(model, every=1, run_dir=tmp_path / "run"):
        loop(torch.optim.SGD(model.parameters(), lr=0.1))
    assert not any(output._backward_hooks for output in outputs)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_a_script_that_forks_trains_unwatched_in_the_child(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = installed()
    with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run"):
        classify(steps=2)(model, optimizer)
        child = os.fork()
        if not child:
            os._exit(0 if installed() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        classify(steps=1)(model, optimizer)
    with desat.open(tmp_path / "run") as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 1, 2]


def test_a_model_that_is_traced_while_a_step_is_sampled_is_traced_without_the_taps(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = operations(model)
        with desat.watch(model, every=1, run_dir=tmp_path / "run"):
            watched = operations(model)
    assert watched == plain


def operations(model: nn.Module) -> list[str]:
    traced: Any = torch.jit.trace(model, torch.randn(3, 6))
    return [node.kind() for node in traced.inlined_graph.nodes()]


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
