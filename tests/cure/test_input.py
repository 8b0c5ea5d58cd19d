"""input=standardize: what it computes, what it keeps, where it stands, and what it leaves."""

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import desat
from desat.cure.remedies.standardization import WIDEST, Standardization
from tests.warm import desat as run_desat


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))


class Net(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.first(x)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_any_split_into_batches_gives_the_mean_and_variance_of_all_numbers(
    sizes: list[int], mean: float, deviation: float
) -> None:
    rows = mean + deviation * drawn(sum(sizes), 3).double()
    module = Standardization(3, 1)
    for batch in rows.split(sizes):
        module(batch)
    numbers = rows.numpy()
    assert module.count == len(rows)
    np.testing.assert_allclose(module.mean, numbers.mean(0), rtol=1e-9, atol=1e-9 * deviation)
    np.testing.assert_allclose(module.squares / module.count, numbers.var(0), rtol=1e-6, atol=1e-9 * deviation**2)


def test_training_and_evaluation_are_standardized_by_what_was_seen() -> None:
    net, rows = mlp(), 1000 + 50 * drawn(64, 5)
    (change,) = desat.apply(net, None, "input=standardize", batch=rows)
    assert (change.refused, change.site) == (None, "0")
    first, second = rows[:40], rows[40:]
    given_to: list[Tensor] = []
    net[0].register_forward_pre_hook(lambda module, args: given_to.append(args[0]))
    net(first)
    net(second)
    net.eval()
    net(first)
    with torch.no_grad():
        net.train()(first)
    for batch, seen, received in zip((first, second, first, first), (first, rows, rows, rows), given_to, strict=True):
        known = seen.double().numpy()
        expected = (batch.double().numpy() - known.mean(0)) / known.std(0)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    assert net[0].desat_input.count == 64


def test_constants_are_zero_and_outliers_are_held() -> None:
    rows = torch.cat([torch.full((500, 1), 0.1), torch.full((500, 1), 1e6 + 0.1), drawn(500, 1)], 1)
    rows[0, 2] = 1e4
    module = Standardization(3, 1)
    for batch in rows.split(100):
        out = module(batch)
    assert (out[:, :2] == 0).all()
    assert module(rows)[0, 2] == WIDEST


def test_before_the_first_training_batch_the_input_is_left() -> None:
    module = Standardization(3, 1).eval()
    rows = drawn(4, 3)
    torch.testing.assert_close(module(rows), rows)
    assert module.count == 0


@pytest.mark.parametrize(
    ("first", "shape", "features", "kept"),
    [
        (nn.Linear(6, 2), (8, 6), 6, (0,)),
        (nn.Linear(6, 2), (8, 4, 6), 6, (0, 1)),
        (nn.LSTM(6, 2), (8, 4, 6), 6, (0, 1)),
        (nn.Conv1d(6, 2, 1), (8, 6, 4), 6, (0, 2)),
        (nn.Conv2d(3, 2, 1), (8, 3, 4, 4), 3, (0, 2, 3)),
        (nn.Conv3d(3, 2, 1), (8, 3, 4, 4, 4), 3, (0, 2, 3, 4)),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (8, 3, 4, 4), 3, (0, 2, 3)),
    ],
)
def test_features_are_those_of_the_first_layer(
    first: nn.Module, shape: tuple[int, ...], features: int, kept: tuple[int, ...]
) -> None:
    net, batch = Net(first), 7 + 3 * drawn(*shape)
    desat.apply(net, None, "input=standardize", batch=batch)
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(batch)
    assert net.desat_input.mean.shape == (features,)
    torch.testing.assert_close(seen[0].mean(kept), torch.zeros(features), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std(kept, correction=0), torch.ones(features), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        (None, "no batch"),
        (torch.arange(4).view(1, 4), "int64"),
        (torch.zeros(1, 4, dtype=torch.uint8), "uint8"),
        ((), "by position"),
        (drawn(4), "no dimension of features"),
    ],
)
def test_what_has_no_scale_of_its_own_is_refused(batch: object, word: str) -> None:
    net = Net(nn.Identity())
    (change,) = desat.apply(net, None, "input=standardize", batch=batch)
    assert word in (change.refused or "")
    assert not net.state_dict()
    assert not net._forward_pre_hooks


def test_of_several_tensors_the_first_that_is_real_is_standardized() -> None:
    class Two(nn.Module):
        def forward(self, words: Tensor, numbers: Tensor, more: Tensor) -> tuple[Tensor, ...]:
            return words, numbers, more

    net = Two()
    batch = (torch.arange(8).view(8, 1), 9 + drawn(8, 3), drawn(8, 3))
    desat.apply(net, None, "input=standardize", batch=batch)
    words, numbers, more = net(*batch)
    assert torch.equal(words, batch[0])
    assert torch.equal(more, batch[2])
    assert numbers.mean(0).abs().max() < 1e-5


def test_it_is_applied_once_and_not_where_the_first_module_is_shared() -> None:
    net, batch = mlp(), drawn(8, 5)
    desat.apply(net, None, "input=standardize", batch=batch)
    assert "already" in (desat.apply(net, None, "input=standardize", batch=batch)[0].refused or "")
    shared = nn.Linear(5, 5)
    (change,) = desat.apply(nn.Sequential(shared, nn.ReLU(), shared), None, "input=standardize", batch=batch)
    assert "several places" in (change.refused or "")


def test_parameters_random_numbers_and_gradients_of_the_input_stay() -> None:
    net, batch, state = mlp(), drawn(8, 5).requires_grad_(), torch.get_rng_state()
    parameters = list(net.parameters())
    desat.apply(net, torch.optim.SGD(net.parameters()), "input=standardize", batch=batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(old is new for old, new in zip(parameters, net.parameters(), strict=True))
    net(batch).sum().backward()
    weights = [net[0].weight, net[2].weight]
    standard = (batch - batch.mean(0)) / batch.std(0, correction=0)
    open_gates = (standard @ weights[0].T + net[0].bias > 0).float()
    expected = ((weights[1].sum(0) * open_gates) @ weights[0]) / batch.std(0, correction=0)
    torch.testing.assert_close(batch.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [mlp, lambda: Net(mlp())])
def test_a_network_with_it_can_be_saved_loaded_copied_pickled_and_compiled(make) -> None:
    net, batch = make(), 100 + 9 * drawn(32, 5)
    compiled = torch.compile(net, backend="eager")
    compiled(batch)  # what was compiled before must not run on without it
    desat.apply(compiled, None, "input=standardize", batch=batch)
    twin = make()
    desat.apply(twin, None, "input=standardize", batch=batch)
    alone = copy.deepcopy(net)
    torch.testing.assert_close(compiled(batch), alone(batch))
    assert net.state_dict().keys() == alone.state_dict().keys()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for other in (compiled, twin, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.eval()(batch), net.eval()(batch))
    (name,) = [name for name in net.state_dict() if name.endswith("desat_input.mean")]
    exact = net.state_dict()[name].clone()
    assert net.to(torch.bfloat16)(batch.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(net.state_dict()[name], exact)


SCRIPT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        received.append(x)
        return self.head(torch.tanh(self.first(x)))

received = []
torch.manual_seed(0)
scale = torch.cat([torch.full((1,), 1000.0), torch.ones(15)])
inputs, labels = scale * (500 + 100 * torch.randn(256, 16)), torch.randint(0, 4, (256,))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(12):
    batch = torch.arange(step * 32, (step + 1) * 32) % 256
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
    optimizer.step()
ours = received[-12:]
print(len(received), max(abs(x.mean().item()) for x in ours), ours[0].std(0, correction=0).mean().item())
print(int(model.desat_input.count))
"""


def test_a_script_runs_with_it_from_the_first_batch_on(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = run_desat("run", "-q", "--run-dir", "run", "--apply", "input=standardize", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split()
    assert float(printed[1]) < 0.3
    assert float(printed[2]) == pytest.approx(1.0, abs=1e-3)
    assert int(printed[3]) == 12 * 32
    with desat.open(tmp_path / "run") as record:
        assert "standardized" in record.information["applied"][0]
        assert "unscaled-input" not in [finding.code for finding in desat.Run(tmp_path / "run").diagnose().findings]
