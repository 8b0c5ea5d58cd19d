import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import desat
from desat.cure.family import Choice, Family
from desat.cure.patient import Patient
from desat.cure.remedies import FAMILIES
from desat.cure.remedy import Remedy, apply, parse
from desat.errors import DesatError


def deep(activation: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 512), activation(), nn.Linear(512, 512), activation(), nn.Linear(512, 10))


CHOICES = [(family, choice) for family in FAMILIES for choice in family.choices]


@given(st.sampled_from(CHOICES), st.floats(0.001, 0.999))
def test_every_remedy_that_exists_is_parsed(known: tuple[Family, Choice], number: float) -> None:
    family, choice = known
    value = number if choice.low < number < choice.high else (choice.low + min(choice.high, choice.low + 2)) / 2
    if choice.number != "needed":
        assert parse(f"{family.name}={choice.name}") == Remedy(family.name, choice.name)
    if choice.number != "none":
        assert parse(f"{family.name}={choice.name}:{value!r}") == Remedy(family.name, choice.name, value)


@pytest.mark.parametrize("text", ["activation=relu", "initialization=he"])
def test_a_remedy_is_written_as_it_is_asked_for(text: str) -> None:
    assert str(parse(text)) == text


def names_no_family(text: str) -> bool:
    """Of any text: Hypothesis takes some from the code that is tested, in which remedies are named."""
    return text.partition("=")[0] not in {family.name for family in FAMILIES}


@given(st.text().filter(names_no_family) | st.sampled_from([f"{family.name}=wrong" for family in FAMILIES]))
def test_anything_else_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(DesatError, match="expected"):
        parse(text)


@pytest.mark.parametrize("text", ["activation=relu:2", "activation=relu:", "activation=1.0", "activation=relu:nan"])
def test_a_number_where_there_is_none_is_refused(text: str) -> None:
    with pytest.raises(DesatError, match="expected"):
        parse(text)


@pytest.mark.parametrize("value", ["relu", "leaky_relu", "elu", "gelu", "silu"])
@pytest.mark.parametrize("bounded", [nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardtanh])
def test_bounded_nonlinearities_are_swapped_wherever_they_sit(value: str, bounded: type[nn.Module]) -> None:
    shared = bounded()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), bounded()) for _ in range(2)])
            self.named = nn.ModuleDict({"act": shared})
            self.act, self.head = shared, nn.Linear(4, 2)

    net = Net().eval()
    changes = desat.apply(net, None, f"activation={value}")
    assert not any(isinstance(module, bounded) for module in net.modules())
    assert net.act is net.named["act"]
    assert not net.act.training
    assert {change.site for change in changes} == {"blocks.0.1", "blocks.1.1", "named.act"}
    assert all(bounded.__name__ in change.before and change.refused is None for change in changes)


def test_a_users_own_bounded_activation_is_swapped_too() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (1 + x.abs())

    net = deep(Own)
    desat.apply(net, None, "activation=relu")
    assert [type(module) for module in net] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_an_output_that_is_a_probability_is_left_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    swapped, left = desat.apply(net, None, "activation=relu")
    assert (swapped.site, left.site) == ("1", "3")
    assert left.refused is not None
    assert isinstance(net[3], nn.Sigmoid)
    assert "left as it is" in str(left)


def test_rectifiers_are_left_alone() -> None:
    net = deep(nn.GELU)
    assert desat.apply(net, None, "activation=relu") == ()
    assert isinstance(net[1], nn.GELU)


@pytest.mark.parametrize(
    ("value", "expected"), [("leaky_relu", nn.LeakyReLU), ("prelu", nn.PReLU), ("elu", nn.ELU), ("gelu", nn.ReLU)]
)
def test_a_relu_gives_way_to_what_keeps_a_slope_below_zero(value: str, expected: type[nn.Module]) -> None:
    net = deep(nn.ReLU)
    changes = desat.apply(net, None, f"activation={value}")
    assert isinstance(net[1], expected)
    assert isinstance(net[3], expected)
    assert len(changes) == (0 if expected is nn.ReLU else 2)


@pytest.mark.parametrize(
    ("remedy", "activation", "variance"),
    [
        ("initialization=he", nn.ReLU, 2 / 512),
        ("initialization=he", nn.Tanh, 1 / 0.394294 / 512),
        ("initialization=xavier", nn.Tanh, 2 / 0.394294 / 1024),
        ("initialization=lecun", nn.ReLU, 1 / 512),
    ],
)
def test_weights_have_the_variance_of_the_paper(remedy: str, activation: type[nn.Module], variance: float) -> None:
    net = deep(activation)
    desat.apply(net, None, remedy)
    weights = net[2].weight.detach()
    assert weights.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / weights.numel()))
    assert weights.mean().item() == pytest.approx(0, abs=5 * math.sqrt(variance / weights.numel()))
    assert not net[2].bias.any()


def test_he_keeps_the_signal_of_a_convolutional_network() -> None:
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular", bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64, 10))
    images = torch.randn(16, 32, 8, 8)

    @torch.no_grad()
    def kept() -> float:
        return (net[:38](images).square().mean() / net[:2](images).square().mean()).item()

    assert kept() < 1e-6
    desat.apply(net, None, "initialization=he")
    assert 0.02 < kept() < 50


def test_a_transposed_convolution_counts_its_fan_in_on_the_input_side() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(64, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1))
    desat.apply(net, None, "initialization=he")
    assert net[0].weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.1)


def test_activation_comes_before_initialization_in_whatever_order_they_are_asked_for() -> None:
    net = deep()
    desat.apply(net, None, "initialization=he", "activation=relu")
    assert net[2].weight.var().item() == pytest.approx(2 / 512, rel=0.05)


def test_what_is_not_drawn_is_said() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Bilinear(4, 4, 4), nn.LazyLinear(3))
    changes = desat.apply(net, None, "initialization=he")
    assert [change.site for change in changes] == ["0", "1", "2"]
    assert all(change.refused for change in changes)


def test_random_numbers_parameters_and_optimizer_stay() -> None:
    net = deep()
    parameters, state = list(net.parameters()), torch.get_rng_state()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    apply(Patient(net), [parse("activation=relu"), parse("initialization=he")])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(old is new for old, new in zip(parameters, net.parameters(), strict=True))
    net(torch.randn(8, 64)).sum().backward()
    before = net[0].weight.clone()
    optimizer.step()
    assert not torch.equal(before, net[0].weight)


def test_two_runs_get_the_same_weights() -> None:
    first, second = deep(), deep()
    for net in (first, second):
        desat.apply(net, None, "initialization=he")
    assert torch.equal(first[2].weight, second[2].weight)


def test_a_cured_network_can_be_saved_loaded_and_compiled(tmp_path) -> None:
    net = deep()
    compiled = torch.compile(net, backend="eager")
    desat.apply(compiled, None, "activation=relu", "initialization=he")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    twin = deep(nn.ReLU)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    inputs = torch.randn(4, 64)
    torch.testing.assert_close(compiled(inputs), twin(inputs))
