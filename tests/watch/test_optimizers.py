"""Where epsilon outweighs the second moment, and that watching changes no optimizer's result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import desat
from desat.record.reader import Record
from desat.watch.entries import GRADIENTS, VALUES, spacing
from desat.watch.optimizers import denominators

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adam": ("Adam", {"eps": 1e-4}),
    "Adam foreach": ("Adam", {"eps": 1e-4, "foreach": True}),
    "Adam amsgrad": ("Adam", {"eps": 1e-4, "amsgrad": True}),
    "AdamW fused": ("AdamW", {"eps": 1e-4, "fused": True}),
    "NAdam": ("NAdam", {"eps": 1e-4}),
    "RAdam": ("RAdam", {"eps": 1e-4}),
    "Adamax": ("Adamax", {"eps": 1e-4}),
    "RMSprop": ("RMSprop", {"eps": 1e-4}),
    "Adagrad": ("Adagrad", {"eps": 1e-4}),
    "Adadelta": ("Adadelta", {"eps": 1e-8}),
}


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], None] = lambda: None) -> None:
    """Gradients of very different magnitudes, in a few columns none at all."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(-8, 0, 30)
    scale[:3] = 0.0
    for _ in range(3):
        optimizer.zero_grad()
        model(scale * torch.randn(8, 30, generator=generator)).square().mean().backward()
        optimizer.step()
        after()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 4))


def sampled(tensor: Tensor) -> np.ndarray:
    step = spacing(tensor.numel(), VALUES, tensor.shape[-1])
    every = spacing(-(-tensor.numel() // step), GRADIENTS, tensor.shape[-1])
    return tensor.detach().double().numpy().ravel()[::step][::every]


def expected_share(kind: str, weight: Tensor, optimizer: torch.optim.Optimizer) -> float:
    state, group = optimizer.state[weight], optimizer.param_groups[0]
    assert weight.grad is not None
    eps, gradient = group["eps"], sampled(weight.grad)
    if kind == "Adamax":
        root, least, eps = sampled(state["exp_inf"]), eps * (1 + 1e-6), 2 * eps
    elif kind == "Adadelta":
        root, least, eps = np.sqrt(sampled(state["square_avg"])), 0.0, eps**0.5
    elif kind in ("RMSprop", "Adagrad"):
        root, least = np.sqrt(sampled(state["square_avg" if kind == "RMSprop" else "sum"])), 0.0
    else:
        moment = sampled(state["max_exp_avg_sq" if "amsgrad" in kind else "exp_avg_sq"])
        correction = 1.0 if kind == "RAdam" else 1 - group["betas"][1] ** float(state["step"])
        root, least = np.sqrt(moment / correction), 0.0
    used = (root > least) | (gradient != 0)
    return float((root[used] < eps).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_entries_where_epsilon_dominates(watched, kind: str) -> None:
    model = network()
    name, options = KINDS[kind]
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
    weight = model.get_parameter("0.weight")
    expected: list[float] = []

    def watched_loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loop(model, optimizer, lambda: expected.append(expected_share(kind, weight, optimizer)))

    record: Record = watched(model, watched_loop, optimizer)
    (site,) = [one for one in record.sites("parameter") if one.name == "0.weight"]
    found = record.readings(site)["epsilon_share"]
    assert found["step"].tolist() == [0, 1, 2]
    assert found["value"].tolist() == pytest.approx(expected, abs=1e-9)
    assert min(expected) > 0.1
    assert max(expected) < 0.99


def test_without_a_second_moment_there_is_no_reading(watched) -> None:
    model = network()
    record = watched(model, loop, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert not any("epsilon_share" in record.readings(one) for one in record.sites())


def test_groups_have_their_own_epsilon(watched) -> None:
    model = network()
    groups = [
        {"params": [model.get_parameter("0.weight")], "eps": 1e9},
        {"params": [model.get_parameter("2.weight")], "eps": 1e-30},
    ]
    record = watched(model, loop, torch.optim.Adam(groups, lr=0.01))
    readings = {one.name: record.readings(one) for one in record.sites("parameter")}
    shares = {name: of["epsilon_share"]["value"].tolist() for name, of in readings.items() if "epsilon_share" in of}
    assert shares == {"0.weight": [1, 1, 1], "2.weight": [0, 0, 0]}


def test_the_state_is_only_read() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    assert denominators(optimizer, list(model.parameters())) is None
    assert not optimizer.state


def test_steps_that_are_numbers_and_states_of_other_shapes(watched) -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"eps": 1e-4, "betas": (0.9, 0.99), "lr": 0.1})

        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                flat = parameter.dim() == 1
                state["exp_avg_sq"] = torch.zeros(1) if flat else torch.full_like(parameter, 1.01e-10)

    model = network()
    record = watched(model, loop, Own(model.parameters()))
    shares = {one.name: record.readings(one).get("epsilon_share") for one in record.sites("parameter")}
    # v / (1 - 0.99^t) is 1e-8 at the first step, that is eps^2, and less at the next ones.
    assert shares["0.weight"]["value"].tolist() == [0.0, 1.0, 1.0]
    assert shares["0.bias"] is None


def trained(make: Callable[[nn.Module], torch.optim.Optimizer], watch_in: Path | None, clip: bool) -> list[Tensor]:
    model = network()
    optimizer = make(model)

    def run() -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=clip):
                loss = model(torch.randn(8, 30, generator=generator)).square().mean()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()

    if watch_in is None:
        run()
    else:
        with desat.watch(model, optimizer, every=1, run_dir=watch_in):
            run()
    state = optimizer.state_dict()["state"]
    kept = [value for entry in state.values() for value in entry.values() if isinstance(value, Tensor)]
    return [*model.state_dict().values(), *kept, torch.get_rng_state()]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "SGD"])
def test_weights_and_state_are_the_same_bit_for_bit(tmp_path: Path, kind: str, clip: bool) -> None:
    name, options = KINDS.get(kind, ("SGD", {"momentum": 0.9}))

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)

    plain, found = trained(make, None, clip), trained(make, tmp_path / "run", clip)
    assert len(plain) == len(found)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    with desat.open(tmp_path / "run") as record:
        assert len(record.steps(sampled=True)["step"]) == 6
        assert all(len(record.parameter(one)["step"]) == 6 for one in record.sites("parameter"))
