import math
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import desat
from desat.cure.gain import gain_of
from desat.cure.remedy import parse
from tests.warm import desat as run_desat

DEPTH = 30

NORMAL, WEIGHTS = np.polynomial.hermite_e.hermegauss(180)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def drawn(net: nn.Module, remedy: str, batch: object = None) -> dict[str, desat.cure.family.Change]:
    return {change.site: change for change in desat.apply(net, None, remedy, batch=batch)}


def deep(activation: type[nn.Module], width: int = 128) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def first_and_last(net: nn.Sequential, inputs: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """The rms of what varies over the batch, and of the loss's gradient, after the first and the last nonlinearity."""
    kept, signal = [], inputs
    for place, layer in enumerate(net):
        signal = layer(signal)
        if place in (1, 2 * DEPTH - 1):
            signal.retain_grad()
            kept.append(signal)
    F.cross_entropy(signal, torch.arange(len(inputs)) % 10).backward()
    vary = [(one - one.mean(0)).square().mean().sqrt().item() for one in kept]
    gradients = [one.grad.square().mean().sqrt().item() for one in kept if one.grad is not None]
    return (vary[0], vary[1]), (gradients[0], gradients[1])


def test_the_gain_of_a_rectifier_is_hes() -> None:
    assert gain_of(torch.relu).before == pytest.approx(math.sqrt(2), rel=1e-6)
    leaky = gain_of(lambda z: F.leaky_relu(z, 0.2)).before
    assert leaky == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-6)


def test_selu_normalizes_itself() -> None:
    assert gain_of(F.selu).before == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("function", "half"), [(np.tanh, 0.0), (lambda z: 1 / (1 + np.exp(-z)), 0.5), (np.sin, 0.0)])
def test_the_gain_of_a_bounded_curve_is_the_inverse_of_what_it_passes_on(function, half: float) -> None:
    passed_on = np.sum(WEIGHTS * (function(NORMAL) - half) ** 2)
    known = {np.tanh: torch.tanh, np.sin: torch.sin}.get(function, torch.sigmoid)
    gain = gain_of(known)
    assert gain.before is None
    assert gain.after == pytest.approx(passed_on**-0.5, rel=1e-6)
    assert gain.offset == half


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.mish, F.elu, F.softplus])
def test_a_gain_paid_in_advance_gives_a_mean_square_of_one(function) -> None:
    gain = gain_of(function)
    assert gain.before is not None
    values = function(torch.from_numpy(gain.before * NORMAL)).numpy() - gain.offset
    assert np.sum(WEIGHTS * values**2) == pytest.approx(1.0, rel=1e-3)


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 * torch.relu(x)


def test_a_users_own_nonlinearity_has_its_own_gain() -> None:
    net = nn.Sequential(nn.Linear(512, 512), Own(), nn.Linear(512, 2))
    drawn(net, "initialization=he")
    assert net[0].weight.var().item() == pytest.approx(2 / 9 / 512, rel=0.05)


class Functional(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.first, self.second, self.third = (nn.Linear(256, 256) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.function(self.second(self.function(self.first(x)))))


@pytest.mark.parametrize(
    ("function", "first", "second", "third"),
    [
        (torch.relu, 2.0, 2.0, 1.0),
        (lambda x: F.leaky_relu(x, 0.5), 1.6, 1.6, 1.0),
        (torch.tanh, 1.0, 2.5362, 2.5362),
        (torch.sigmoid, 1.0, 23.053, 23.053),
    ],
)
def test_with_a_batch_functions_have_their_own_gain(function, first: float, second: float, third: float) -> None:
    net = Functional(function)
    drawn(net, "initialization=he", torch.randn(8, 256))
    found = [layer.weight.var().item() * 256 for layer in (net.first, net.second, net.third)]
    assert found == pytest.approx([first, second, third], rel=0.03)


def test_what_a_sigmoid_adds_to_all_is_taken_away_by_the_next_bias() -> None:
    net = Functional(torch.sigmoid)
    drawn(net, "initialization=he", torch.randn(8, 256))
    torch.testing.assert_close(net.second(torch.full((1, 256), 0.5)), torch.zeros(1, 256), atol=1e-4, rtol=0)
    assert not net.first.bias.any()


@pytest.mark.parametrize("remedy", ["he", "xavier", "orthogonal", "critical"])
def test_thirty_layers_of_sigmoids_pass_on_signal_and_gradient(remedy: str) -> None:
    inputs = torch.randn(256, 128)
    before, _ = first_and_last(deep(nn.Sigmoid), inputs)
    assert before[1] < 1e-6 * before[0]
    net = deep(nn.Sigmoid)
    drawn(net, f"initialization={remedy}", inputs)
    signal, gradient = first_and_last(net, inputs)
    assert 0.5 < signal[1] / signal[0] < 2
    assert 0.3 < gradient[0] / gradient[1] < 4


@pytest.mark.parametrize(
    ("activation", "signal_factor", "gradient_factor"),
    [(nn.ReLU, 8.0, 2.5), (nn.Tanh, 1.1, 2.0), (nn.Sigmoid, 1.1, 2.0), (nn.SiLU, 1.1, 2.0)],
)
def test_critical_keeps_signal_and_gradient_over_thirty_layers(activation, signal_factor, gradient_factor) -> None:
    inputs = torch.randn(256, 128) * 3 + 1
    net = deep(activation)
    changes = drawn(net, "initialization=critical", inputs)
    assert all(change.refused is None for change in changes.values())
    signal, gradient = first_and_last(net, inputs)
    assert 1 / signal_factor < signal[1] / signal[0] < signal_factor
    assert 1 / gradient_factor < gradient[0] / gradient[1] < gradient_factor


def test_critical_centres_each_unit_of_a_smooth_network() -> None:
    net, inputs = deep(nn.Tanh), torch.randn(64, 128) + 2
    drawn(net, "initialization=critical", inputs)
    third = net[:5](inputs)
    torch.testing.assert_close(third.mean(0), torch.zeros(128), atol=1e-5, rtol=0)


def test_critical_centres_the_channels_of_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sigmoid(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    images = torch.rand(32, 3, 8, 8)
    drawn(net, "initialization=critical", images)
    second = net[:3](images)
    torch.testing.assert_close(second.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    assert second.var().item() == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_lsuv_gives_each_layer_a_variance_of_one(activation: type[nn.Module]) -> None:
    net, inputs = deep(activation)[:10], 5 * torch.randn(256, 128)
    changes = drawn(net, "initialization=lsuv", inputs)
    for place in range(0, 10, 2):
        assert net[: place + 1](inputs).var().item() == pytest.approx(1.0, abs=0.1)
        assert changes[str(place)].after.startswith("Linear with orthogonal weights, times")


def test_lsuv_leaves_batch_statistics_and_needs_a_batch() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = net[0].weight.clone()
    assert "batch" in (drawn(net, "initialization=lsuv")[""].refused or "")
    assert torch.equal(before, net[0].weight)
    drawn(net, "initialization=lsuv", torch.randn(16, 8))
    assert not net[1].running_mean.any()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("remedy", ["lsuv", "critical"])
def test_a_batch_that_does_not_vary_leaves_the_weights_orthogonal(remedy: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    changes = drawn(net, f"initialization={remedy}", torch.zeros(4, 8))
    assert "not scaled" in changes["0"].after
    torch.testing.assert_close(net[0].weight @ net[0].weight.T, torch.eye(8))


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_orthogonal_weights_have_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Linear(*shape), nn.ReLU(), nn.Linear(shape[1], 2))
    drawn(net, "initialization=orthogonal")
    weight = net[0].weight
    square = weight.T @ weight if shape[0] <= shape[1] else weight @ weight.T
    torch.testing.assert_close(square, 2 * torch.eye(min(shape)), atol=1e-4, rtol=0)


def test_a_depthwise_convolution_is_orthogonal_in_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 2, 1))
    drawn(net, "initialization=orthogonal")
    torch.testing.assert_close(net[0].weight.flatten(1).norm(dim=1), torch.ones(16))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind, gates: int) -> None:
    net = nn.Sequential(kind(8, 16))
    changes = drawn(net, "initialization=orthogonal")
    assert "recurrent weights orthogonal" in changes["0"].after
    for name, weight in net[0].named_parameters():
        if "weight_hh" in name:
            for gate in weight.chunk(gates):
                torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
        elif "bias" in name:
            assert not weight.any()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("remedy", ["orthogonal", "torch"])
def test_recurrent_weights_that_are_computed_are_left(remedy: str) -> None:
    net = nn.Sequential(nn.utils.weight_norm(nn.GRU(4, 4), "weight_hh_l0"))
    before = [parameter.clone() for parameter in net.parameters()]
    assert "computed" in (drawn(net, f"initialization={remedy}")["0"].refused or "")
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_xavier_draws_each_gate_by_its_own_fans() -> None:
    net = nn.Sequential(nn.LSTM(64, 64, num_layers=2, bidirectional=True))
    drawn(net, "initialization=xavier")
    assert net[0].weight_hh_l1_reverse.var().item() == pytest.approx(1 / 64, rel=0.05)
    assert net[0].weight_ih_l0.var().item() == pytest.approx(1 / 64, rel=0.05)


def test_attention_is_drawn_as_torch_draws_it() -> None:
    net = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    nn.init.constant_(net.self_attn.in_proj_weight, 0.5)
    drawn(net, "initialization=xavier")
    assert net.self_attn.in_proj_weight.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * 64)), rel=0.01)
    assert net.self_attn.in_proj_weight.mean().abs().item() < 0.01


@pytest.mark.parametrize("batch", [None, torch.randn(2, 3, 64)])
def test_the_matrices_of_attention_are_orthogonal_one_by_one(batch: torch.Tensor | None) -> None:
    net = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    drawn(net, "initialization=orthogonal", batch)
    for matrix in (*net.self_attn.in_proj_weight.chunk(3), net.self_attn.out_proj.weight):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(64), atol=1e-5, rtol=0)


def test_forget_bias_is_that_of_the_forget_gate_alone() -> None:
    net = nn.Sequential(nn.LSTM(4, 8, num_layers=2))
    weights = net[0].weight_hh_l0.clone()
    inputs = net[0].bias_ih_l1[:8].clone()
    changes = drawn(net, "initialization=forget-bias")
    assert "forget gate" in changes["0"].after
    for layer in "01":
        total = getattr(net[0], f"bias_ih_l{layer}") + getattr(net[0], f"bias_hh_l{layer}")
        torch.testing.assert_close(total[8:16], torch.ones(8))
        assert not torch.allclose(total[16:24], torch.ones(8), atol=0.1)
    assert torch.equal(weights, net[0].weight_hh_l0)
    assert torch.equal(inputs, net[0].bias_ih_l1[:8])


@pytest.mark.parametrize(("kind", "opened"), [(nn.LSTMCell, 1), (nn.GRUCell, 0)])
def test_a_large_forget_bias_keeps_the_old_state(kind, opened: int) -> None:
    cell = kind(4, 8)
    drawn(nn.Sequential(cell), "initialization=forget-bias:20")
    inputs, old = torch.randn(2, 4), torch.rand(2, 8)
    if opened:
        _, state = cell(inputs, (torch.zeros(2, 8), old))
        _, without = cell(inputs, (torch.zeros(2, 8), torch.zeros(2, 8)))
        torch.testing.assert_close(state - without, old, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(cell(inputs, old), old, atol=1e-4, rtol=0)


def test_a_layer_without_gates_has_no_forget_bias() -> None:
    net = nn.Sequential(nn.RNN(4, 8), nn.LSTM(8, 8, bias=False))
    changes = drawn(net, "initialization=forget-bias:2")
    assert [change.refused for change in changes.values()] == ["it has no gates", "it has no biases"]


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.lstm, self.norm, self.head = nn.LSTM(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)


def test_torch_recovers_constant_weights_as_a_fresh_network_has_them() -> None:
    net = Everything()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.3)
    drawn(net, "initialization=torch")
    for (name, one), (_, other) in zip(net.named_parameters(), Everything().named_parameters(), strict=True):
        assert not torch.equal(one, torch.full_like(one, 0.3)), name
        if one.dim() > 1:
            assert one.std().item() == pytest.approx(other.std().item(), rel=0.35), name
        elif not other.any() or torch.equal(other, torch.ones_like(other)):
            assert torch.equal(one, other), name
    assert not net.embedding.weight[0].any()


def test_torch_leaves_what_is_frozen_computed_or_the_users_own() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    net = nn.Sequential(
        nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), Mine(), nn.Linear(4, 4)
    )
    net[0].requires_grad_(False)
    before = [parameter.clone() for parameter in net[:3].parameters()]
    changes = drawn(net, "initialization=torch")
    assert [changes[site].refused is not None for site in "0123"] == [True, True, True, False]
    assert all(torch.equal(*pair) for pair in zip(before, net[:3].parameters(), strict=True))


def test_a_subclass_gets_what_torchs_class_draws() -> None:
    class Zeros(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)

    net = nn.Sequential(Zeros(4, 4, bias=False))
    drawn(net, "initialization=torch")
    assert net[0].weight.std().item() > 0.1


CHOICES = ["xavier", "he", "lecun", "orthogonal", "lsuv", "critical", "forget-bias", "torch"]


@pytest.mark.parametrize("choice", CHOICES)
def test_random_state_and_parameters_stay_and_the_optimizer_trains_them(choice: str, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer, inputs = torch.optim.SGD(net.parameters(), lr=0.1), torch.randn(16, 8)
    parameters, state, numpy_state = list(net.parameters()), torch.get_rng_state(), np.random.get_state()[1].copy()
    desat.apply(net, optimizer, f"initialization={choice}", batch=inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(old is new for old, new in zip(parameters, net.parameters(), strict=True))
    before = net[0].weight.detach().clone()
    net(inputs).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, net[0].weight)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    twin = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(torch.compile(net.eval(), backend="eager")(inputs), twin(inputs))


@pytest.mark.parametrize("choice", CHOICES)
def test_two_networks_get_the_same(choice: str) -> None:
    first, second = Everything(), Everything()
    second.load_state_dict(first.state_dict())
    for net in (first, second):
        drawn(net, f"initialization={choice}")
        torch.rand(3)
    assert all(torch.equal(one, second.state_dict()[name]) for name, one in first.state_dict().items())


def test_every_choice_is_parsed() -> None:
    assert [parse(f"initialization={choice}").choice for choice in CHOICES] == CHOICES


SCRIPT = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = []
    for _ in range(12):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(32, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs = torch.randn(256, 32)
    labels = (inputs[:, 0] > 0).long()
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}")
"""


def test_a_script_that_cannot_learn_learns_with_critical_weights(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))

    def loss(*options: str) -> float:
        done = run_desat("run", *options, "train.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return float(next(line for line in done.stdout.splitlines() if line.startswith("loss")).split()[1])

    assert loss() > 0.68
    assert loss("--apply", "initialization=critical") < 0.4
