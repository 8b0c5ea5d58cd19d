import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.nonlinearity import SATURATION_LIMIT, TABLE_RANGE, TABLE_SIZE, Curve, curve_of, gains, measure_curve


class Softsign(nn.Module):
    """A user's own activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (1 + x.abs())


def curve(module: nn.Module) -> Curve:
    found = curve_of(module)
    assert found is not None
    return found


def sigmoid_limit() -> float:
    """Where s(1 - s) is 5 % of its maximum 1/4, solved by hand."""
    s = (1 + math.sqrt(1 - SATURATION_LIMIT)) / 2
    return math.log(s / (1 - s))


@pytest.mark.parametrize(
    ("module", "limit"),
    [
        (nn.Sigmoid(), sigmoid_limit()),
        (nn.Tanh(), math.atanh(math.sqrt(1 - SATURATION_LIMIT))),
        (nn.Softsign(), math.sqrt(1 / SATURATION_LIMIT) - 1),
        (Softsign(), math.sqrt(1 / SATURATION_LIMIT) - 1),
        (nn.Hardtanh(), 1.0),
        (nn.Hardsigmoid(), 3.0),
    ],
)
def test_bounded_functions_saturate_where_the_derivative_says(module: nn.Module, limit: float) -> None:
    found = curve(module)
    assert found.shape == "bounded"
    assert found.low == pytest.approx(-limit, abs=1e-6)
    assert found.high == pytest.approx(limit, abs=1e-6)


@pytest.mark.parametrize(
    ("module", "low"),
    [
        (nn.ReLU(), 0.0),
        (nn.ReLU(inplace=True), 0.0),
        (nn.ELU(), math.log(0.05)),
        (nn.GELU(), -2.2786),
        (nn.SiLU(), -3.9299),
    ],
)
def test_rectifiers_saturate_at_one_end(module: nn.Module, low: float) -> None:
    found = curve(module)
    assert found.shape == "rectifier"
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == math.inf


def test_a_function_that_saturates_to_the_right_is_a_rectifier_too() -> None:
    found = curve(nn.LogSigmoid())
    assert (found.shape, found.low) == ("rectifier", -math.inf)
    assert found.high == pytest.approx(math.log(19), abs=1e-4)


@pytest.mark.parametrize(
    "module", [nn.LeakyReLU(0.01), nn.LeakyReLU(0.2), nn.PReLU(), nn.Softshrink(), nn.Tanhshrink()]
)
def test_functions_with_slope_at_both_ends_are_open(module: nn.Module) -> None:
    assert curve(module).shape == "open"


@pytest.mark.parametrize("module", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Tanhshrink()])
def test_inner_saturated_intervals_are_found_and_end_where_the_gain_is_at_the_limit(module: nn.Module) -> None:
    found = curve(module)
    (inner,) = [interval for interval in found.intervals if all(map(math.isfinite, interval))]
    ends = gains(module, torch.tensor(inner, dtype=torch.float64))
    torch.testing.assert_close(ends, torch.full_like(ends, SATURATION_LIMIT * found.peak_gain), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Softmax(dim=0), nn.Softmax(dim=-1), nn.LayerNorm(4), nn.Dropout(), nn.Identity(), nn.Linear(1, 1),
        nn.LazyLinear(3), nn.Flatten(0), nn.BatchNorm1d(4), nn.Sequential(nn.ReLU()), nn.MaxPool1d(2), nn.GLU(),
        nn.LogSoftmax(dim=0),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_what_is_no_elementwise_nonlinearity_has_no_curve(module: nn.Module) -> None:
    assert curve_of(module) is None


def test_a_constant_and_a_straight_line_have_no_curve() -> None:
    assert measure_curve(lambda z: 3 * z + 1) is None
    assert measure_curve(lambda z: torch.full_like(z, 2.0)) is None


def test_a_function_that_fails_has_no_curve() -> None:
    def broken(z: torch.Tensor) -> torch.Tensor:
        raise ValueError("only for my data")

    assert measure_curve(broken) is None


@given(
    st.sampled_from([torch.sigmoid, torch.tanh, F.gelu, F.silu, F.elu, F.softplus]),
    st.floats(0.1, 100),
    st.floats(-3, 3),
)
@settings(max_examples=30, deadline=None)
def test_scale_and_offset_of_the_output_do_not_move_the_saturated_ends(function, scale: float, offset: float) -> None:
    plain, changed = measure_curve(function), measure_curve(lambda z: scale * function(z) + offset)
    assert plain is not None
    assert changed is not None
    assert changed.shape == plain.shape
    assert changed.low == pytest.approx(plain.low, abs=1e-6)
    assert changed.peak_gain == pytest.approx(scale * plain.peak_gain, rel=1e-6)


@given(st.floats(-7, 7))
def test_the_table_holds_the_gain(z: float) -> None:
    found = curve(nn.Tanh())
    index = round((z + TABLE_RANGE) * (TABLE_SIZE - 1) / (2 * TABLE_RANGE))
    assert found.table[index].item() == pytest.approx(1 - math.tanh(z) ** 2, abs=0.02)


def test_gains_are_those_of_autograd() -> None:
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    s = torch.sigmoid(z)
    torch.testing.assert_close(gains(torch.sigmoid, z), s * (1 - s))


def test_measuring_a_curve_leaves_no_trace() -> None:
    class Noisy(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            print("forward", torch.rand(()))
            return torch.tanh(x)

    module = Noisy()
    state = torch.random.get_rng_state()
    assert curve(module).shape == "bounded"
    assert module.calls == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()
