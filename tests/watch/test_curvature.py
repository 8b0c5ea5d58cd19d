"""Curvature: the right numbers, and a training that does not notice."""

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import desat
from desat.record.reader import Record
from desat.watch.curvature import Hessian, largest_eigenvalue, sharpness, stability_limit, tridiagonal
from desat.watch.curvature_tap import EVERY, FIRST, CurvatureTurns
from desat.watch.schedule import Schedule
from tests.watch.loops import classify

Optimizer = torch.optim.Optimizer


def network(widths: list[int], seed: int) -> tuple[nn.Sequential, Callable[[], Tensor]]:
    """A small tanh network in float64, and its loss on a fixed batch."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    inputs = 2 * torch.randn(7, widths[0], dtype=torch.float64)
    targets = torch.randn(7, widths[-1], dtype=torch.float64)
    return model, lambda: nn.functional.mse_loss(model(inputs), targets)


def exact_spectrum(model: nn.Module, loss: Callable[[], Tensor]) -> np.ndarray:
    """All eigenvalues of the Hessian, ascending, by torch.autograd.functional.hessian."""
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    names = [name for name, _ in model.named_parameters()]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return loss()

    def value(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        given = {f"model.{name}": part.view_as(old) for name, part, old in zip(names, parts, parameters, strict=True)}
        return torch.func.functional_call(Loss(), given, ())

    hessian = torch.autograd.functional.hessian(value, flat)
    assert isinstance(hessian, Tensor)
    return np.linalg.eigvalsh(hessian.numpy())


def quadratic(spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A loss 1/2 x' H x with a known spectrum, and x."""
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    hessian = rotation @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ rotation.T
    x = torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
    return 0.5 * x @ hessian @ x, x


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_sharpness_is_the_largest_eigenvalue_of_the_exact_hessian(widths: list[int], seed: int) -> None:
    model, loss = network(widths, seed)
    exact = exact_spectrum(model, loss)
    found = sharpness(loss(), list(model.parameters()), iterations=2 * len(exact))
    assert found.item() == pytest.approx(exact[-1], rel=1e-6, abs=1e-9 * np.abs(exact).max())


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 1000), st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_a_few_iterations_stay_below_and_the_residual_tells_how_far(widths: list[int], seed: int, steps: int) -> None:
    model, loss = network(widths, seed)
    exact = exact_spectrum(model, loss)
    found = largest_eigenvalue(tridiagonal(Hessian(loss(), list(model.parameters())), steps).numpy())
    assert found is not None
    rounding = 1e-8 * np.abs(exact).max()
    assert found.value <= exact[-1] + rounding
    # For every approximate eigenpair an eigenvalue lies within its residual.
    assert np.abs(exact - found.value).min() <= found.residual * abs(found.value) + rounding


# In hundredths: the squares of much smaller eigenvalues would not be in the range of a float.
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=8), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_a_known_spectrum_is_found(hundredths: list[int], seed: int) -> None:
    spectrum = [value / 100 for value in hundredths]
    loss, x = quadratic(spectrum, seed)
    scale = max(abs(value) for value in spectrum)
    assert sharpness(loss, [x], iterations=20).item() == pytest.approx(max(spectrum), rel=1e-6, abs=1e-6 * scale)


def test_the_largest_algebraic_eigenvalue_counts_not_the_largest_magnitude() -> None:
    loss, x = quadratic([-9.0, 1.0, 2.0])
    assert sharpness(loss, [x], 6).item() == pytest.approx(2.0)
    loss, x = quadratic([-9.0, -3.0, -0.5])
    assert sharpness(loss, [x], 6).item() == pytest.approx(-0.5)


def test_eight_iterations_find_what_stands_out_of_a_large_spectrum() -> None:
    spectrum = [*np.linspace(-0.5, 1.0, 400), 3.0, 5.0]
    loss, x = quadratic(spectrum)
    found = largest_eigenvalue(tridiagonal(Hessian(loss, [x]), 8).numpy())
    assert found is not None
    assert found.value == pytest.approx(5.0, rel=1e-3)
    assert found.residual < 0.05


def test_what_depends_linearly_or_not_at_all_on_a_parameter_has_no_curvature() -> None:
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    assert sharpness((2 * used).sum(), [used, unused]).item() == 0.0
    assert sharpness((used**2).sum(), [used, unused], 6).item() == pytest.approx(2.0)


def test_float32_and_half_precision_parameters_are_measured() -> None:
    for dtype, precision in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        x = torch.ones(3, dtype=dtype, requires_grad=True)
        loss = (torch.tensor([1.0, 2.0, 4.0], dtype=dtype) * x**2).sum()
        found = sharpness(loss, [x])
        assert found.dtype is torch.float32
        assert found.item() == pytest.approx(8.0, rel=precision)


def test_a_loss_that_is_not_finite_has_no_sharpness() -> None:
    x = torch.zeros(2, requires_grad=True)
    assert math.isnan(sharpness((x.sum() * math.inf) ** 2, [x]).item())
    assert largest_eigenvalue(np.array([[1.0, math.inf], [0.0, 1.0]])) is None


def test_the_graph_stays_usable_and_no_gradient_changes() -> None:
    model, loss = network([3, 4, 2], 0)
    value, state = loss(), torch.get_rng_state()
    sharpness(value, list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    value.backward()
    found = [parameter.grad for parameter in model.parameters()]
    expected = torch.autograd.grad(loss(), list(model.parameters()))
    assert all(
        gradient is not None and torch.equal(gradient, other) for gradient, other in zip(found, expected, strict=True)
    )


# The limit of stability


def grows(settings: dict[str, Any], curvature: float) -> bool:
    """Whether torch's optimizer runs away on the loss curvature / 2 x^2."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], **settings)
    for _ in range(3000):
        x.grad = curvature * x.detach()
        optimizer.step()
    return not abs(x.item()) < 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1},
        {"lr": 0.3, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.5, "nesterov": True},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.4},
        {"lr": 0.1, "dampening": 0.4},
        {"lr": 0.2, "momentum": 0.8, "weight_decay": 3.0},
    ],
)
def test_sgd_runs_away_just_above_the_limit_and_not_just_below(settings: dict[str, Any]) -> None:
    x = nn.Parameter(torch.zeros(1))
    limit = stability_limit(torch.optim.SGD([x], **settings), [x])
    assert limit is not None
    assert not grows(settings, 0.98 * limit)
    assert grows(settings, 1.02 * limit)


def test_the_limit_is_left_out_where_it_is_not_known() -> None:
    x, y = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    class Own(torch.optim.SGD):
        pass

    two_rates = torch.optim.SGD([{"params": [x], "lr": 0.1}, {"params": [y], "lr": 0.2}])
    assert stability_limit(two_rates, [x, y]) is None
    assert stability_limit(two_rates, [x]) == pytest.approx(20.0)
    for optimizer in (
        None,
        torch.optim.Adam([x]),
        Own([x], lr=0.1),
        torch.optim.SGD([x], lr=0.0),
        torch.optim.SGD([x], lr=torch.tensor(0.1)),
        torch.optim.SGD([x], lr=0.1, maximize=True),
    ):
        assert stability_limit(optimizer, [x]) is None


# In a watched training


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Once(torch.autograd.Function):
    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        Once.backwards += 1
        return grad_outputs[0] * 2


class Custom(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return Once.apply(super().forward(input))  # pyright: ignore[reportReturnType]


class Checkpointed(nn.Module):
    """Recomputes a block with dropout and running statistics."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.first, self.head = nn.Linear(6, 6), nn.Linear(8, 4)
        self.reentrant = reentrant
        self.runs = 0
        self.block.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.runs += 1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.utils.checkpoint.checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)
        return self.head(x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def regularized() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 4))


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "plain": (plain, (6,), None),
    "regularized": (regularized, (6,), None),
    "lstm": (Recurrent, (5, 6), None),
    "attention": (lambda: Attention(0.1), (5, 6), None),
    "fused attention": (lambda: Attention(0.0), (5, 6), "not implemented"),
    "custom": (lambda: Custom(nn.Linear(6, 4)), (6,), "OnceBackward"),
    "checkpointed": (lambda: Checkpointed(False), (6,), "checkpointed"),
    "reentrant": (lambda: Checkpointed(True), (6,), "CheckpointFunctionBackward"),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def everything(kind: str, optimizer_name: str, run_dir: Path | None) -> list[Tensor]:
    """All that a training leaves behind: weights, gradients, buffers, state of the optimizer, randomness, calls."""
    torch.manual_seed(0)
    Once.backwards = 0
    make, shape, _ = KINDS[kind]
    model = make()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    loop = classify(steps=12, shape=shape)
    if run_dir is None:
        loop(model, optimizer)
    else:
        with desat.watch(model, optimizer, every=1, run_dir=run_dir, curvature=True):
            loop(model, optimizer)
    state = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    calls = torch.tensor([Once.backwards, getattr(model, "runs", 0)])
    state = [value if isinstance(value, Tensor) else torch.tensor(value) for value in state]
    return [*model.state_dict().values(), *gradients, *state, torch.get_rng_state(), calls]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_is_the_same_bit_for_bit(
    kind: str, optimizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = KINDS[kind][2]
    expected = everything(kind, optimizer, None)
    with caplog.at_level(logging.WARNING, "desat"):
        found = everything(kind, optimizer, tmp_path / "run")
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    said = [record.getMessage() for record in caplog.records]
    with desat.open(tmp_path / "run") as record:
        assert len(record.sites("curvature")) == (reason is None)
    if reason is None:
        assert said == []
    else:
        (message,) = said
        assert message.startswith("desat: curvature is not measured from here on, the training goes on: ")
        assert reason in message


@pytest.fixture
def curved(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a loop with curvature at every step that is due, and gives the readings, empty if there are none."""

    def run(model: nn.Module, loop: Callable[..., None], optimizer: Optimizer | None = None) -> dict[str, Any]:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run", curvature=True):
            loop(model, optimizer)
        with Record(tmp_path / "run") as record:
            sites = record.sites("curvature")
            assert [site.name for site in sites] in ([], ["loss"])
            return record.readings(sites[0]) if sites else {}

    return run


def test_readings_are_those_of_the_exact_hessian(curved) -> None:
    model, loss = network([2, 2, 1], 3)
    exact = []

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for _ in range(3):
            exact.append(exact_spectrum(model, loss)[-1])
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    readings = curved(model, loop)
    assert set(readings) == {"sharpness", "sharpness_residual", "stability_limit", "sharpness_over_limit"}
    assert readings["sharpness"]["step"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(readings["sharpness"]["value"], exact, rtol=1e-2)
    np.testing.assert_allclose(readings["stability_limit"]["value"], 3.0 / 0.1)
    np.testing.assert_allclose(
        readings["sharpness_over_limit"]["value"], readings["sharpness"]["value"] * 0.1 / 3.0, rtol=1e-12
    )


def test_the_gradients_of_the_measurement_are_not_taken_for_those_of_the_training(curved, tmp_path: Path) -> None:
    torch.manual_seed(0)
    curved(plain(), classify(), None)
    torch.manual_seed(0)
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "without"):
        classify()(model, optimizer)
    with Record(tmp_path / "run") as found, Record(tmp_path / "without") as expected:
        names = {site.name for site in expected.sites("module")}
        assert names == {site.name for site in found.sites("module")} != set()
        for kind in ("module", "nonlinearity"):
            for one, other in zip(expected.sites(kind), found.sites(kind), strict=True):
                gradients = expected.tensor(one, "gradient")
                assert (gradients["calls"] == 1).all()
                for name, column in found.tensor(other, "gradient").items():
                    np.testing.assert_array_equal(column, gradients[name])


def test_adam_has_no_limit(curved) -> None:
    model = plain()
    readings = curved(model, classify(), torch.optim.Adam(model.parameters()))
    assert set(readings) == {"sharpness", "sharpness_residual"}


def test_the_first_samples_are_measured_and_then_each_so_many_th(curved) -> None:
    steps = FIRST + 2 * EVERY + 3
    readings = curved(plain(), classify(steps=steps))
    expected = [*range(FIRST), FIRST - 1 + EVERY, FIRST - 1 + 2 * EVERY]
    assert readings["sharpness"]["step"].tolist() == expected


def test_only_what_the_optimizer_trains_is_differentiated(curved) -> None:
    model, loss = network([2, 3, 2], 1)
    head = list(model[2].parameters())
    expected = sharpness(loss(), head, 16).item()
    assert expected < 0.9 * sharpness(loss(), list(model.parameters()), 40).item()

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        loss().backward()
        optimizer.step()

    assert curved(model, loop, torch.optim.SGD(head, lr=0.1))["sharpness"]["value"] == pytest.approx([expected], 1e-6)


def test_the_scale_of_a_scaled_loss_is_taken_out(curved) -> None:
    model, inputs = plain(), torch.randn(5, 6)
    expected = sharpness(model(inputs).square().sum(), list(model.parameters()), 8).item()

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(model(inputs).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    assert curved(model, loop)["sharpness"]["value"] == pytest.approx([expected], 1e-4)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = (vars(Tensor).get("retain_grad"), Tensor.retain_grad, saved_tensors_hooks.__enter__)
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken() -> None:
        with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run", curvature=True):
            classify()(model, optimizer)
            assert Tensor.retain_grad is not before[1]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert (vars(Tensor).get("retain_grad"), Tensor.retain_grad, saved_tensors_hooks.__enter__) == before


def hooked(kind: str, calls: list[str]) -> Callable[..., None]:
    """A loop that has hooks of its own run in each backward pass."""

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        parameter = next(model.parameters())
        if kind == "parameter":
            parameter.register_hook(lambda gradient: calls.append(kind))
        if kind == "module":
            model.register_full_backward_hook(lambda *_: calls.append(kind))
        for _ in range(5):
            optimizer.zero_grad()
            output = model(torch.ones(3, 6, requires_grad=True))
            if kind == "tensor":
                output.register_hook(lambda gradient: calls.append(kind))
            if kind == "node":
                output.grad_fn.register_prehook(lambda gradients: calls.append(kind))
            if kind == "retained":
                output.retain_grad()
            if kind == "packed":
                with saved_tensors_hooks(lambda x: x, lambda x: calls.append(kind) or x):
                    output = output.exp()
            output.square().sum().backward()
            if kind == "retained":
                assert torch.equal(output.grad, 2 * output.detach())
            optimizer.step()

    return loop


@pytest.mark.parametrize("kind", ["parameter", "module", "tensor", "node", "retained", "packed"])
def test_hooks_of_the_user_run_as_often_as_without(kind: str, curved, caplog: pytest.LogCaptureFixture) -> None:
    expected: list[str] = []
    model = plain()
    hooked(kind, expected)(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found: list[str] = []
    assert curved(plain(), hooked(kind, found)) == {}
    assert found == expected
    assert [record.getMessage().count("curvature is not measured") for record in caplog.records] == [1]


def test_a_hook_at_one_step_costs_that_step_only(curved, caplog: pytest.LogCaptureFixture) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for step in range(4):
            optimizer.zero_grad()
            output = model(torch.ones(3, 6))
            if step == 1:
                output.register_hook(lambda gradient: None)
            output.square().sum().backward()
            optimizer.step()

    assert curved(plain(), loop)["sharpness"]["step"].tolist() == [0, 2, 3]
    assert caplog.records == []


def test_accumulated_gradients_are_not_taken_for_a_step(curved, caplog: pytest.LogCaptureFixture) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                model(torch.ones(3, 6)).square().sum().backward()
            optimizer.step()

    assert curved(plain(), loop) == {}
    (record,) = caplog.records
    assert "several backward passes" in record.getMessage()


def test_a_graph_that_began_before_the_step_is_left_alone(curved, caplog: pytest.LogCaptureFixture) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        carried = (torch.ones(3, requires_grad=True) + 1).sum()
        for _ in range(5):
            optimizer.zero_grad()
            (carried + model(torch.ones(3, 6)).square().sum()).backward()
            optimizer.step()

    assert curved(plain(), loop)["sharpness"]["step"].tolist() == [0]
    (record,) = caplog.records
    assert "older than the step" in record.getMessage()


def test_the_users_modes_do_not_matter(curved, caplog: pytest.LogCaptureFixture) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        torch.autograd.set_detect_anomaly(True)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.ones(3, 6)).float().square().sum()
                with torch.no_grad(), torch.device("meta"):
                    loss.backward()
            optimizer.step()
        torch.autograd.set_detect_anomaly(False)

    assert (curved(plain(), loop)["sharpness"]["value"] > 0).all()
    assert caplog.records == []


def test_another_backward_pass_of_the_users_in_between_is_no_matter_if_it_reaches_no_parameter(curved) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for _ in range(2):
            torch.ones(3, requires_grad=True).square().sum().backward()
            optimizer.zero_grad()
            model(torch.ones(3, 6)).square().sum().backward()
            optimizer.step()

    assert curved(plain(), loop)["sharpness"]["step"].tolist() == [0, 1]


# The budget


def test_curvature_keeps_to_its_share_of_the_budget() -> None:
    turns = CurvatureTurns(Schedule(budget=0.01))
    assert turns.is_due(0.0)
    assert turns.is_affordable(0.001)
    turns.paid(0.2, measured=True)
    assert not turns.is_due(30.0)
    assert turns.is_due(100.0)


def test_a_gradient_shows_that_a_measurement_is_too_dear_until_there_is_the_time() -> None:
    turns = CurvatureTurns(Schedule(budget=0.01))
    assert turns.is_due(0.0)
    assert not turns.is_affordable(0.1)
    turns.paid(0.1, measured=False)
    assert not turns.is_due(60.0)
    assert not turns.is_due(400.0)
    assert turns.is_due(600.0)


def test_a_fixed_interval_knows_no_budget() -> None:
    turns = CurvatureTurns(Schedule(every=5))
    assert turns.is_due(0.0)
    assert turns.is_affordable(100.0)
