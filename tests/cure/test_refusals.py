"""What a remedy must leave alone, and say so: nothing is reported as changed that was not."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import desat


def reasons(model: nn.Module, remedy: str) -> dict[str, str | None]:
    return {change.site: change.refused for change in desat.apply(model, None, remedy)}


class SqueezeExcitation(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * self.scale(x)


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
def test_a_gate_after_a_rectifier_is_left(gate: type[nn.Module]) -> None:
    net = nn.Sequential(SqueezeExcitation(gate()), SqueezeExcitation(gate()), nn.Flatten(), nn.Linear(8, 2))
    left = reasons(net, "activation=relu")
    assert list(left) == ["0.scale.4", "1.scale.4"]
    assert all("gate" in (reason or "") for reason in left.values())
    assert isinstance(net.get_submodule("0.scale.4"), gate)


def test_a_module_called_gate_is_left() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.update_gate, self.head = nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)

    assert "gate" in (reasons(Gated(), "activation=relu")["update_gate"] or "")


def test_blocks_that_end_in_a_sigmoid_are_no_gates() -> None:
    block = [nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid()) for _ in range(2)]
    assert set(reasons(nn.Sequential(*block, nn.Linear(4, 2)), "activation=relu").values()) == {None}


def test_a_shared_module_that_is_a_gate_in_one_place_stays_in_all() -> None:
    shared = nn.Sigmoid()
    net = nn.Sequential(nn.Linear(8, 8), shared, SqueezeExcitation(shared), nn.Linear(8, 2))
    assert reasons(net, "activation=relu")["1"] is not None
    assert net[1] is shared


def test_an_activation_compiled_by_itself_is_left_because_it_would_run_on_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Sigmoid(), backend="eager"), nn.Linear(4, 4))
    (change,) = desat.apply(net, None, "activation=relu")
    assert "torch.compile" in (change.refused or "")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_left() -> None:
    net = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)))
    assert "torch.jit" in (reasons(net, "activation=relu")["1"] or "")


def test_layers_of_unknown_shape_are_no_obstacle_to_a_swap() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.Sigmoid(), nn.LazyLinear(2))
    assert reasons(net, "activation=relu") == {"1": None}


def test_a_parametrized_layer_has_weights_but_they_are_not_drawn() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), parametrizations.weight_norm(nn.Linear(4, 4)))
    before = net[2].weight.clone()
    assert reasons(net, "activation=relu") == {"1": None}
    assert "computed" in (reasons(net, "initialization=he")["2"] or "")
    assert torch.equal(net[2].weight, before)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_weights_that_are_computed_before_each_forward_pass_are_not_drawn() -> None:
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert "computed" in (reasons(net, "initialization=he")["0"] or "")


def test_frozen_weights_are_kept() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    assert "frozen" in (reasons(net, "initialization=he")["0"] or "")
    assert torch.equal(net[0].weight, before)


def test_weights_shared_with_an_embedding_are_kept() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    net[1].weight = net[0].weight
    before = net[0].weight.clone()
    assert "shares" in (reasons(net, "initialization=he")["1"] or "")
    assert torch.equal(net[0].weight, before)


def test_weights_that_are_no_real_numbers_in_memory_are_kept() -> None:
    net = nn.Sequential(nn.Linear(4, 4, dtype=torch.cfloat), nn.Linear(4, 4, device="meta"))
    assert all("not drawn" in (reason or "") for reason in reasons(net, "initialization=he").values())


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("remedy", ["initialization=he", "initialization=xavier"])
def test_groups_count_in_the_fans(kind: type[nn.Conv2d], remedy: str) -> None:
    net = nn.Sequential(kind(128, 128, 3, groups=4), nn.ReLU(), nn.Conv2d(128, 1, 1))
    desat.apply(net, None, remedy)
    weights = net[0].weight.detach()
    assert weights.var().item() == pytest.approx(2 / (128 / 4 * 9), rel=5 * math.sqrt(2 / weights.numel()))


def test_a_nonlinearity_called_as_a_function_is_taken_for_a_rectifier_by_he() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(512, 512), nn.Linear(512, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(x)))

    net = Functional()
    desat.apply(net, None, "initialization=he")
    assert net.hidden.weight.var().item() == pytest.approx(2 / 512, rel=0.05)
    assert net.head.weight.var().item() == pytest.approx(1 / 512, rel=0.25)


def test_between_the_layers_of_a_sequential_nothing_is_called() -> None:
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 2))
    desat.apply(net, None, "initialization=he")
    assert net[0].weight.var().item() == pytest.approx(1 / 512, rel=0.05)
