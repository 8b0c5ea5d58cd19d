import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import desat
from desat.cure import origins
from desat.cure.edit import edited
from desat.cure.patient import Patient
from desat.cure.remedies.clipping import LEAST_NORM, clip_by_unit
from desat.cure.remedy import apply, parse
from desat.record.reader import Record
from tests.warm import desat as run_desat


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def gradients(net: nn.Module, seed: int = 1, scale: float = 1.0) -> None:
    """Random gradients in the place of those that are there."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def clipped(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    optimizer.step()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def cured(remedy: str) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    (change,) = desat.apply(net, optimizer, remedy)
    assert change.refused is None
    return net, optimizer


def test_a_bare_number_is_a_norm() -> None:
    assert parse("clipping=1.0") == parse("clipping=norm:1")


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_norm_and_value_are_those_of_torch(scale: float) -> None:
    for remedy, function in (
        ("clipping=0.5", lambda ones: nn.utils.clip_grad_norm_(ones, 0.5)),
        ("clipping=value:0.2", lambda ones: nn.utils.clip_grad_value_(ones, 0.2)),
    ):
        net, optimizer = cured(remedy)
        twin = network()
        gradients(net, scale=scale)
        gradients(twin, scale=scale)
        function(twin.parameters())
        for found, parameter in zip(clipped(net, optimizer), twin.parameters(), strict=True):
            assert torch.equal(found, parameter.grad)


def unit_reference(weight: np.ndarray, gradient: np.ndarray, limit: float) -> np.ndarray:
    """Equation 3 of Brock et al. 2021, unit by unit; the first dimension counts units, a vector is one."""
    units = [slice(None)] if weight.ndim == 1 else list(range(len(weight)))
    result = gradient.copy()
    for unit in units:
        allowed = limit * max(np.sqrt((weight[unit] ** 2).sum()), LEAST_NORM)
        norm = np.sqrt((gradient[unit] ** 2).sum())
        if norm > allowed:
            result[unit] *= allowed / norm
    return result


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 2)])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_each_unit_is_clipped_by_the_norm_of_its_weights(shape: tuple[int, ...], size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(size * torch.randn(shape, generator=generator, dtype=torch.float64))
    weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.linspace(0, 0.2, 5).view(
        -1, *[1] * (len(shape) - 1)
    )
    expected = unit_reference(weight.detach().numpy(), weight.grad.numpy(), 0.05)
    clip_by_unit([weight], 0.05)
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-12)


def test_a_transposed_convolution_has_its_units_in_the_second_dimension() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    desat.apply(net, optimizer, "clipping=agc:0.01")
    gradients(net)
    expected = unit_reference(
        net[0].weight.detach().numpy().swapaxes(0, 1), net[0].weight.grad.numpy().swapaxes(0, 1), 0.01
    )
    optimizer.step()
    np.testing.assert_allclose(net[0].weight.grad.numpy().swapaxes(0, 1), expected, rtol=1e-5)


def test_the_output_layer_is_not_clipped_by_unit() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 3), nn.Linear(6, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(inputs)))

    for net, batch, head in ((network(), None, "2"), (Backwards(), torch.ones(2, 6), "head")):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        desat.apply(net, optimizer, "clipping=agc:0.01", batch=batch)
        gradients(net)
        before = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
        optimizer.step()
        spared = {name for name, parameter in net.named_parameters() if torch.equal(parameter.grad, before[name])}
        assert spared == {f"{head}.weight", f"{head}.bias"}


def test_a_percentile_of_the_norms_so_far_is_the_limit() -> None:
    net, optimizer = cured("clipping=percentile:30")
    history: list[float] = []
    for step, scale in enumerate((1.0, 5.0, 0.5, 2.0, float("nan"), 8.0, 0.1)):
        gradients(net, step, scale)
        raw = np.concatenate([parameter.grad.numpy().ravel() for parameter in net.parameters()])
        norm = float(np.sqrt((raw.astype(float) ** 2).sum()))
        after = np.concatenate([grad.numpy().ravel() for grad in clipped(net, optimizer)])
        if np.isnan(scale):
            assert np.isnan(after).all()
            continue
        history.append(norm)
        expected = raw * min(1.0, np.percentile(history, 30) / norm)
        np.testing.assert_allclose(after, expected, rtol=1e-4)


def test_a_long_history_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("desat.cure.remedies.clipping.HISTORY", 3)
    net, optimizer = cured("clipping=percentile:50")
    for step, scale in enumerate((1000.0, 1000.0, 1.0, 1.0, 1.0)):
        gradients(net, step, scale)
        clipped(net, optimizer)
    gradients(net, 7, 1000.0)
    norm = torch.cat([grad.flatten() for grad in clipped(net, optimizer)]).norm()
    assert norm < 20


def test_a_step_with_a_closure_is_clipped_after_it_has_run() -> None:
    results = []
    for by_keyword in (False, True):
        net, optimizer = cured("clipping=0.5")

        def closure(net: nn.Module = net) -> Tensor:
            gradients(net, scale=10.0)
            return torch.tensor(3.0)

        loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        assert loss == 3.0
        results.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).norm().item())
    assert results == pytest.approx([0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "remedy", ["clipping=0.01", "clipping=value:0.001", "clipping=agc:0.001", "clipping=percentile:50"]
)
def test_a_scalers_scale_does_not_count(remedy: str, fused: bool) -> None:
    weights = []
    for scale in (1.0, 1024.0):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
        desat.apply(net, optimizer, remedy)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for seed in range(3):
            inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            scaler.scale(net(inputs).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*weights)
    assert not torch.equal(
        weights[0], torch.cat([parameter.detach().flatten() for parameter in network().parameters()])
    )


def test_each_of_several_optimizers_clips_what_it_steps_with() -> None:
    net = network()
    optimizers = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[2].parameters(), lr=0.1)]
    first, second = apply(Patient(net, optimizers), [parse("clipping=0.5")])
    assert (first.site, second.site) == ("optimizer 1", "optimizer 2")
    gradients(net, scale=10.0)
    untouched = net[2].weight.grad.clone()
    optimizers[0].step()
    assert torch.cat([p.grad.flatten() for p in net[0].parameters()]).norm() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(net[2].weight.grad, untouched)


def test_what_is_unsafe_is_refused() -> None:
    net = network()
    sparse = nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True))
    clipped_already = torch.optim.SGD(net.parameters(), lr=0.1)
    desat.apply(net, clipped_already, "clipping=1.0")
    for model, optimizer, reason in (
        (net, torch.optim.LBFGS(net.parameters()), "line"),
        (sparse, torch.optim.SGD(sparse.parameters(), lr=0.1), "sparse"),
        (net, clipped_already, "already"),
        (net, None, "hand it over"),
    ):
        (change,) = desat.apply(model, optimizer, "clipping=1.0")
        assert change.refused is not None
        assert reason in change.refused
        assert optimizer is clipped_already or not optimizer or not optimizer._optimizer_step_pre_hooks


def test_random_numbers_stay_and_compiled_networks_train_alike() -> None:
    weights = []
    for compiled in (False, True):
        net = network()
        state = torch.get_rng_state()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        run = torch.compile(net, backend="eager") if compiled else net
        desat.apply(run, optimizer, "clipping=percentile:50")
        for seed in range(3):
            run(torch.ones(4, 6) * seed).square().mean().backward()
            optimizer.step()
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(net[0].weight.detach())
    torch.testing.assert_close(*weights)


@pytest.fixture
def noted() -> Iterator[None]:
    origins.install()
    yield
    origins.uninstall()


PLAIN = """import torch
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    net(torch.ones(4, 6)).square().mean().backward()
    optimizer.step()
"""
SCALED = """import torch
from torch.optim import SGD

class Trainer:
    def __init__(self, net):
        self.optimizer = SGD(net.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu")

    def step(self, loss):
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)

trainer = Trainer(net)
optimizer = trainer.optimizer
trainer.step(net(torch.ones(4, 6)).square().mean())
"""


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(
    ("script", "remedy", "before", "lines"),
    [
        (
            PLAIN,
            "clipping=0.5",
            "    optimizer.step()\n",
            "    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)\n",
        ),
        (
            PLAIN,
            "clipping=value:0.1",
            "    optimizer.step()\n",
            "    torch.nn.utils.clip_grad_value_(net.parameters(), 0.1)\n",
        ),
        (
            SCALED,
            "clipping=2",
            "        self.scaler.step(self.optimizer)\n",
            "        self.scaler.unscale_(self.optimizer)\n"
            "        torch.nn.utils.clip_grad_norm_("
            '[p for group in self.optimizer.param_groups for p in group["params"]], 2)\n',
        ),
        (PLAIN, "clipping=agc:0.1", "", ""),
        (PLAIN + "optimizer.step()\n", "clipping=1.0", "", ""),
        (PLAIN.replace("    optimizer.step()", "    if True: optimizer.step()"), "clipping=1.0", "", ""),
    ],
)
def test_the_line_is_written_before_the_step(tmp_path: Path, script: str, remedy: str, before: str, lines: str) -> None:
    path = tmp_path / "train.py"
    path.write_text(script)
    net = network()
    optimizer = runpy.run_path(str(path), {"net": net})["optimizer"]
    (change,) = desat.apply(net, optimizer, remedy)
    assert change.refused is None
    result = edited(script, change.edits)
    assert result == (script.replace(before, lines + before) if lines else script)
    path.write_text(result)
    runpy.run_path(str(path), {"net": net})


def test_a_whole_script_is_run_with_another_optimizer_and_clipping(tmp_path: Path) -> None:
    script = PLAIN.replace("import torch\n", "import torch\nnet = torch.nn.Linear(6, 2)\n")
    (tmp_path / "train.py").write_text(script)
    ended = run_desat(
        "run", "--run-dir", "run", "--apply", "clipping=0.25", "--apply", "optimizer=adam", "train.py", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    information = Record(tmp_path / "run").information
    assert (
        information["applied"][1]
        == "the optimizer: gradients as they come -> gradients clipped at a common norm of 0.25"
    )
    assert information["edits"][1]["text"].startswith("torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(bad: float) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    (change,) = desat.apply(net, optimizer, "clipping=finite")
    assert change.refused is None
    before = [parameter.detach().clone() for parameter in net.parameters()]
    gradients(net)
    next(net.parameters()).grad[0, 0] = bad  # pyright: ignore
    optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))
    assert not optimizer.state


def test_large_gradients_are_finite_though_their_norm_is_not() -> None:
    net, optimizer = cured("clipping=finite")
    before = [parameter.detach().clone() for parameter in net.parameters()]
    gradients(net, scale=1e30)
    optimizer.step()
    assert not any(map(torch.equal, before, net.parameters()))


def test_steps_with_finite_gradients_are_as_they_were() -> None:
    net, optimizer = cured("clipping=finite")
    twin = network()
    reference = torch.optim.SGD(twin.parameters(), lr=0.1)
    for seed in range(3):
        gradients(net, seed)
        gradients(twin, seed)
        optimizer.step()
        reference.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
