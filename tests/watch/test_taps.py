import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from desat.record.reader import Record
from desat.record.rows import Site
from tests.watch.loops import classify


def site(record: Record, name: str) -> Site:
    return next(site for site in record.sites() if site.name == name)


def rms(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def test_activations_gradients_and_updates_are_those_of_autograd(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    twin.load_state_dict(model.state_dict())
    record = watched(model, classify(steps=1))

    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(8, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator)
    z = twin[0](inputs)
    a = twin[1](z)
    logits = twin[2](a)
    for tensor in (z, a, logits):
        tensor.retain_grad()
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    tanh = site(record, "1")
    assert record.tensor(tanh, "input")["rms"][0] == pytest.approx(rms(z), rel=1e-5)
    assert record.tensor(tanh, "input")["gain"][0] == pytest.approx((1 - a**2).mean().item(), abs=0.005)
    assert record.tensor(tanh, "output")["maximum"][0] == pytest.approx(a.max().item(), rel=1e-6)
    for name, tensor in (("0", z), ("1", a), ("2", logits)):
        assert tensor.grad is not None
        assert record.tensor(site(record, name), "gradient")["rms"][0] == pytest.approx(rms(tensor.grad), rel=1e-5)
    weight = record.parameter(site(record, "0.weight"))
    assert twin[0].weight.grad is not None
    assert weight["gradient_rms"][0] == pytest.approx(rms(twin[0].weight.grad), rel=1e-5)
    assert weight["update_rms"][0] == pytest.approx(0.1 * rms(twin[0].weight.grad), rel=1e-4)
    assert record.steps()["loss"][0] == pytest.approx(loss.item())


def test_functional_nonlinearities_are_seen_with_file_and_line(watched) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.bn1, self.fc2 = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.relu(self.bn1(self.fc1(x))).sigmoid())

    record = watched(Net(), classify())
    relu, sigmoid = record.sites("nonlinearity")
    assert relu.operation == "torch.relu"
    assert sigmoid.operation == "Tensor.sigmoid"
    assert relu.source is not None
    assert relu.source.rpartition(":")[0].endswith("test_taps.py")
    assert relu.name == f"{relu.source} torch.relu after bn1"
    assert len(record.tensor(relu, "gradient")["rms"]) == 3


def test_one_activation_object_or_line_that_serves_several_layers_is_several_sites(watched) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
            self.act, self.head = nn.Sigmoid(), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.tanh(self.act(layer(x)))
            return self.head(x)

    names = [found.name for found in watched(Net(), classify()).sites("nonlinearity")]
    assert [name for name in names if name.startswith("act")] == ["act", "act after layers.1", "act after layers.2"]
    assert sum("torch.tanh" in name for name in names) == 1 or sum("torch.tanh" in name for name in names) == 3


def test_a_module_called_several_times_is_pooled(watched) -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = torch.tanh(self.cell(x))
            return self.head(x)

    record = watched(Unrolled(), classify())
    assert len(record.sites("nonlinearity")) == 1
    cell = record.tensor(site(record, "cell"), "output")
    assert cell["calls"].tolist() == [5, 5, 5]
    assert cell["elements"].tolist() == [5 * 8 * 6] * 3


def test_an_inplace_activation_is_measured_before_it_overwrites_its_input(watched) -> None:
    record = watched(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)), classify())
    relu = site(record, "1")
    assert (record.tensor(relu, "input")["minimum"] < 0).all()
    assert (record.tensor(relu, "output")["minimum"] == 0).all()


def test_units_that_are_saturated_on_every_sample_are_kept(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        model[0].weight[2].zero_()
        model[0].bias[2] = -1.0
    record = watched(model, classify())
    steps, flags = record.saturated_units(site(record, "1"))
    assert steps.tolist() == [0, 1, 2]
    assert flags[:, 2].all()
    assert not flags[:, [0, 1, 3, 4]].all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_is_counted_once(watched, reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.block, self.first(x), use_reentrant=reentrant))

    record = watched(Net(), classify())
    assert record.tensor(site(record, "block.1"), "input")["calls"].tolist() == [1, 1, 1]


def test_gradient_accumulation_pools_the_passes_of_a_step(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for index in range(8):
            model(torch.randn(4, 6)).square().mean().backward()
            if index % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), loop)
    assert record.tensor(site(record, "0"), "output")["calls"].tolist() == [4, 4]
    assert record.tensor(site(record, "0"), "gradient")["calls"].tolist() == [4, 4]


@pytest.mark.parametrize("grad", [False, True])
def test_an_evaluation_between_steps_is_not_training(watched, grad: bool) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            classify(steps=1)(model, optimizer)
            with torch.set_grad_enabled(grad):
                model(torch.full((8, 6), 1000.0))

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), loop)
    tanh = record.tensor(site(record, "1"), "input")
    assert tanh["calls"].tolist() == [1, 1, 1]
    assert (tanh["rms"] < 100).all()


def test_an_evaluation_between_forward_and_backward_of_accumulated_passes_is_not_training(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss = model(torch.ones(4, 6)).square().mean()
        model(torch.full((4, 6), 1000.0))
        loss.backward()
        model(torch.ones(4, 6)).square().mean().backward()
        optimizer.step()

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), loop)
    assert record.tensor(site(record, "1"), "input")["calls"].tolist() == [2]
    assert (record.tensor(site(record, "1"), "input")["rms"] < 100).all()


def test_without_a_torch_optimizer_the_backward_pass_ends_the_step(tmp_path) -> None:
    import subprocess
    import sys

    code = """
import torch, desat
from torch import nn
model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
with desat.watch(model, every=1, run_dir="run"):
    for _ in range(4):
        model(torch.randn(8, 6)).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
print(desat.open("run").steps()["step"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 1.0, 2.0, 3.0]"


def test_two_optimizers_make_one_step_each_cycle(watched) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.critic = nn.Linear(3, 6), nn.Linear(6, 1)

    pair = Pair()
    critic_optimizer = torch.optim.SGD(pair.critic.parameters(), lr=0.1)
    generator_optimizer = torch.optim.SGD(pair.generator.parameters(), lr=0.1)

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            for turn in (critic_optimizer, generator_optimizer):
                turn.zero_grad()
                pair.critic(torch.tanh(pair.generator(torch.randn(8, 3)))).mean().backward()
                turn.step()

    record = watched(pair, loop, critic_optimizer)
    assert record.steps()["step"].tolist() == [0, 1, 2, 3]
    assert {found.name for found in record.sites("parameter")} == {
        "generator.weight", "generator.bias", "critic.weight", "critic.bias",
    }  # fmt: skip


def test_hidden_modules_and_modules_added_in_mid_run_are_met(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        classify()(model, optimizer)
        model[1] = nn.Sequential(nn.Sigmoid())
        classify()(model, optimizer)

    record = watched(model, loop)
    assert record.tensor(site(record, "1.0"), "input")["step"].tolist() == [3, 4, 5]


def test_non_finite_values_are_counted_and_kept_out_of_the_means(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        inputs = torch.ones(4, 6)
        inputs[0, 0] = float("nan")
        model(inputs).sum().backward()
        optimizer.step()

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), loop)
    first = record.tensor(site(record, "0"), "output")
    assert first["nonfinite"][0] == pytest.approx(0.25)
    assert np.isfinite(first["rms"][0])
    assert np.isnan(record.parameter(site(record, "0.weight"))["update_rms"][0])


def test_torch_func_and_user_hooks_live_beside_the_taps(watched) -> None:
    seen = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        handle = model[0].register_forward_hook(lambda *_: seen.append("user"))
        torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(torch.randn(3, 6))
        classify()(model, optimizer)
        handle.remove()

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), loop)
    assert seen == ["user"] * 4
    assert record.tensor(site(record, "1"), "input")["step"].tolist() == [0, 1, 2]


def test_a_fault_in_a_tap_stops_neither_the_training_nor_the_other_taps(watched, monkeypatch, caplog) -> None:
    from desat.watch import measurements

    plain = measurements.measure

    def faulty(tensor: torch.Tensor, *rest: object) -> object:
        if tensor.shape[-1] == 5:
            raise RuntimeError("a fault")
        return plain(tensor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measurements, "measure", faulty)
    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), classify())
    assert len(record.tensor(site(record, "2"), "output")["step"]) == 3
    assert len([line for line in caplog.messages if "a fault" in line]) == 2
