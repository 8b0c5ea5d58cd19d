"""residual: what a skip computes, where it is put, what survives it, and what it leaves."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import desat
from desat.cure.family import Change
from desat.cure.remedies.skips import NAME, Projection, Skip
from tests.warm import python


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def deep(activation: type[nn.Module] = nn.Sigmoid, width: int = 8) -> nn.Sequential:
    layers = [module for _ in range(4) for module in (nn.Linear(width, width), activation())]
    return nn.Sequential(nn.Linear(5, width), activation(), *layers, nn.Linear(width, 2))


def skipped(changes: tuple[Change, ...]) -> list[str]:
    return [change.site for change in changes if change.refused is None]


def skips(net: nn.Module) -> list[Skip | Projection]:
    return [module for module in net.modules() if isinstance(module, Skip | Projection)]


@torch.no_grad()
def scale(net: nn.Module, value: float) -> None:
    for skip in skips(net):
        skip.scale.fill_(value)


@pytest.mark.parametrize("seen", [True, False])
def test_each_block_adds_its_scaled_output_to_what_it_was_given(seen: bool) -> None:
    net, batch = deep(), drawn(16, 5)
    changes = desat.apply(net, None, "residual=skip", batch=batch if seen else None)
    assert skipped(changes) == ["2", "4", "6", "8"]
    scale(net, 0.3)
    value = torch.sigmoid(F.linear(batch, net[0].weight, net[0].bias))
    for layer in (net[2], net[4], net[6], net[8]):
        value = value + 0.3 * torch.sigmoid(F.linear(value, layer.weight, layer.bias))
    torch.testing.assert_close(net(batch), F.linear(value, net[10].weight, net[10].bias))


def test_at_the_start_the_blocks_are_passed_by_and_the_gradient_with_them() -> None:
    net, batch = deep(width=8), drawn(16, 5)
    desat.apply(net, None, "residual=skip")
    torch.testing.assert_close(net(batch), net[10](net[1](net[0](batch))))
    net(batch).sum().backward()
    alone = nn.Sequential(copy.deepcopy(net[0]), net[1], copy.deepcopy(net[10]))
    alone.zero_grad()
    alone(batch).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, alone[0].weight.grad)
    assert all(skip.scale.grad for skip in skips(net))


def test_normalization_and_dropout_between_belong_to_the_branch() -> None:
    net = nn.Sequential(
        *(m for _ in range(2) for m in (nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.0), nn.Tanh())), nn.Linear(8, 2)
    )
    batch = drawn(6, 8)
    assert skipped(desat.apply(net, None, "residual=skip", "normalization=layer", batch=batch)) == ["0", "4"]
    scale(net, 1.0)
    first = batch + torch.tanh(F.layer_norm(F.linear(batch, net[0].weight, net[0].bias), (8,)))
    second = first + torch.tanh(F.layer_norm(F.linear(first, net[4].weight, net[4].bias), (8,)))
    torch.testing.assert_close(net[:8](batch), second)


@pytest.mark.parametrize("order", [("residual=skip", "normalization=rms"), ("normalization=rms", "residual=skip")])
def test_it_goes_with_a_normalization_applied_before_or_after_it(order: tuple[str, str]) -> None:
    net, batch = deep(), drawn(6, 5)
    for remedy in order:
        desat.apply(net, None, remedy, batch=batch)
    scale(net, 1.0)
    branch = torch.sigmoid(F.rms_norm(F.linear(batch @ torch.zeros(5, 8) + 1, net[2].weight, net[2].bias), (8,)))
    torch.testing.assert_close(net[2:4](torch.ones(6, 8)), 1 + branch)


class Loop(nn.Module):
    """A ModuleList with a nonlinearity called as a function, or a module that all layers share."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.function(layer(x))
        return self.head(x)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_shared_nonlinearity_closes_the_skips_of_all_its_layers(inplace: bool) -> None:
    net, batch = Loop(nn.ReLU(inplace)), drawn(6, 8)
    assert skipped(desat.apply(net, None, "residual=skip", batch=batch)) == ["layers.0", "layers.1", "layers.2"]
    scale(net, 0.5)
    value = batch
    for layer in net.layers:
        value = value + 0.5 * torch.relu(F.linear(value, layer.weight, layer.bias))
    torch.testing.assert_close(net(batch), net.head(value))


def test_before_a_rectifier_that_is_called_as_a_function_the_skip_is_around_the_layer() -> None:
    net, batch = Loop(torch.relu), drawn(6, 8)
    assert len(skipped(desat.apply(net, None, "residual=skip", batch=batch))) == 3
    scale(net, 0.5)
    value = batch
    for layer in net.layers:
        value = torch.relu(value + 0.5 * F.linear(value, layer.weight, layer.bias))
    torch.testing.assert_close(net(batch), net.head(value))


def test_a_bounded_function_is_out_of_reach() -> None:
    net = Loop(torch.tanh)
    (change,) = desat.apply(net, None, "residual=skip", batch=drawn(6, 8))
    assert "called as a function" in (change.refused or "")
    assert not skips(net)


def test_stacked_blocks_of_the_users_are_skipped_as_wholes() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(torch.tanh(self.wide(x)))

    net, batch = nn.Sequential(Bottleneck(), Bottleneck(), nn.Linear(8, 2)), drawn(6, 8)
    assert skipped(desat.apply(net, None, "residual=skip", batch=batch)) == ["0", "1"]
    torch.testing.assert_close(net(batch), net[2](batch))
    scale(net, 2.0)
    value = batch
    for block in net[:2]:
        value = value + 2 * block.narrow(torch.tanh(block.wide(value)))
    torch.testing.assert_close(net(batch), net[2](value))


@pytest.mark.parametrize("convolutional", [True, False])
def test_where_the_features_change_a_projection_keeps_the_variance(convolutional: bool) -> None:
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1) if convolutional else nn.Linear(inputs, outputs)

    net = nn.Sequential(layer(256, 512), nn.Tanh(), layer(512, 512), nn.Tanh(), layer(512, 2))
    batch = drawn(4, 256, 6, 6) if convolutional else drawn(64, 256)
    assert "residual=projection fits" in (
        desat.apply(copy.deepcopy(net), None, "residual=skip", batch=batch)[0].refused or ""
    )
    assert skipped(desat.apply(net, None, "residual=projection", batch=batch)) == ["0", "2"]
    projected = net[:2](batch)
    assert projected.var().item() == pytest.approx(1, rel=0.1)
    projection = skips(net)[0]
    assert isinstance(projection, Projection)
    rows = batch.movedim(1, -1) @ projection.weight.flatten(1).T
    torch.testing.assert_close(projected, rows.movedim(-1, 1), rtol=1e-3, atol=1e-4)


def test_strided_convolutions_are_left() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        *(module for _ in range(2) for module in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())),
        nn.Conv2d(8, 2, 1),
    )
    for batch in (None, drawn(2, 3, 16, 16)):
        assert skipped(desat.apply(copy.deepcopy(net), None, "residual=projection", batch=batch)) == ["2", "4"]


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)


shared = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("net", "batch", "word"),
    [
        (Skipping(), drawn(4, 8), "has skip connections already"),
        (Skipping(), None, "no batch"),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False),
            None,
            "transformer",
        ),
        (nn.Sequential(nn.LSTM(8, 8)), None, "recurrent"),
        (nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), drawn(4, 8), "one block"),
        (nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(8, 2)), drawn(4, 8), "2 times"),
        (nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(8, 2)), None, "several places"),
        (
            nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)),
            None,
            "another shape",
        ),
    ],
)
def test_what_has_nothing_to_skip_is_left_with_the_reason(net: nn.Module, batch: Tensor | None, word: str) -> None:
    keys = list(net.state_dict())
    (change,) = desat.apply(net, None, "residual=skip", batch=batch)
    assert word in (change.refused or "")
    assert list(net.state_dict()) == keys
    assert not any(module._forward_hooks for module in net.modules())


def test_a_nonlinearity_that_does_not_get_the_layers_output_leaves_no_skip_there() -> None:
    class Shifted(Loop):
        def forward(self, x: Tensor) -> Tensor:
            for place, layer in enumerate(self.layers):
                x = self.function(layer(x) * 2.0 if place == 1 else layer(x))
            return self.head(x)

    net, batch = Shifted(nn.Tanh()), drawn(4, 8)
    changes = desat.apply(net, None, "residual=skip", batch=batch)
    assert skipped(changes) == ["layers.0", "layers.2"]
    assert "no hook" in next(change.refused or "" for change in changes if change.site == "layers.1")
    assert len(skips(net)) == 2
    torch.testing.assert_close(net(batch), net.head(torch.tanh(net.layers[1](batch) * 2)))


def test_it_is_applied_once() -> None:
    net = deep()
    desat.apply(net, None, "residual=skip")
    (change,) = desat.apply(net, None, "residual=skip")
    assert "already" in (change.refused or "")
    assert len(skips(net)) == 4


def test_the_optimizer_trains_scales_and_projections_and_random_numbers_stay() -> None:
    net, batch, state = deep(), drawn(16, 5), torch.get_rng_state()
    kept = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    desat.apply(net, optimizer, "residual=projection", batch=batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(net.get_parameter(name) is parameter for name, parameter in kept.items())
    before = [skip.weight.clone() for skip in skips(net) if isinstance(skip, Projection)]
    for _ in range(2):
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
    assert all(skip.scale != 0 for skip in skips(net))
    assert len(before) == 1
    assert not torch.equal(before[0], getattr(net[0], f"desat_{NAME}").weight)
    again = deep()
    desat.apply(again, None, "residual=projection", batch=batch)
    assert torch.equal(before[0], getattr(again[0], f"desat_{NAME}").weight)


def test_a_network_with_it_can_be_saved_loaded_copied_pickled_and_compiled() -> None:
    net, batch = deep(nn.ReLU), drawn(16, 5)
    compiled = torch.compile(net, backend="eager")
    compiled(batch)  # what was compiled before must not run on without it
    desat.apply(compiled, None, "residual=projection", batch=batch)
    scale(net, 0.7)
    net(batch)  # nothing of a pass may be left that cannot be copied
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    twin = deep(nn.ReLU)
    desat.apply(twin, None, "residual=projection", batch=batch)
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for other in (compiled, twin, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(batch), net(batch))
    assert net.to(torch.float64)(batch.double()).dtype == torch.float64


@pytest.mark.parametrize("segments", [2, 3, 11])
def test_checkpointed_segments_find_their_own_skips(segments: int) -> None:
    net, batch = deep(), drawn(16, 5).requires_grad_()
    desat.apply(net, None, "residual=skip")
    scale(net, 0.7)
    net(batch).sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    checkpoint_sequential(net, segments, batch, use_reentrant=False).sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_keep_their_skips(reentrant: bool) -> None:
    class Checkpointed(Loop):
        saving = False

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:

                def step(x: Tensor, layer: nn.Module = layer) -> Tensor:
                    return self.function(layer(x))

                x = checkpoint(step, x, use_reentrant=reentrant) if self.saving else step(x)
            return self.head(x)

    net, batch = Checkpointed(nn.Tanh()), drawn(6, 8).requires_grad_()
    desat.apply(net, None, "residual=skip", batch=batch)
    scale(net, 0.7)
    net(batch).sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net.saving = True
    net(batch).sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
inputs = torch.randn(256, 16)
labels = (inputs[:, 0] > 0).long()
layers = [module for _ in range(12) for module in (nn.Linear(32, 32), nn.Sigmoid())]
model = nn.Sequential(nn.Linear(16, 32), nn.Sigmoid(), *layers, nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for step in range(120):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
print(loss.item())
"""


def test_a_deep_sigmoid_network_that_does_not_learn_learns_with_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)

    def run(*arguments: str) -> float:
        done = python(*arguments, "train.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    assert run() > 0.68
    assert run("-m", "desat", "run", "-q", "--run-dir", "run", "--apply", "residual=skip") < 0.3
    with desat.open(tmp_path / "run") as record:
        assert sum("x + scale *" in change for change in record.information["applied"]) == 12
