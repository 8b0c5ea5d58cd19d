import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import desat
from desat.diagnose.link_budget import Link, LinkBudget
from desat.diagnose.propagation import measure_propagation, trainable_depth
from tests.records import deep_network, write_record


def budget(*gains: float, share: str = "weight") -> LinkBudget:
    return LinkBudget(0, tuple(Link(str(place), "Linear", share, gain) for place, gain in enumerate(gains)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("gain", "layers"), [(-3.0, 11), (3.0, 11), (-20.0, 5)])
def test_depth_is_six_depth_scales_of_the_gain_per_layer(gain: float, layers: int) -> None:
    chi = 10 ** (gain / 10)
    found = trainable_depth(budget(*[gain] * (layers - 1)), layers)
    assert found == pytest.approx(6 / abs(math.log(chi)))


def test_a_gain_of_one_bears_any_depth() -> None:
    assert trainable_depth(budget(0.0, 0.0, 0.0), 4) == math.inf


def test_pooling_does_not_count() -> None:
    links = (*budget(-3.0, -3.0).links, *budget(-40.0, share="other").links)
    assert trainable_depth(LinkBudget(0, links), 3) == pytest.approx(6 / abs(math.log(10**-0.3)))


def test_too_few_layers_or_no_gradient_say_nothing(tmp_path: Path) -> None:
    assert trainable_depth(budget(-3.0), 2) is None
    assert trainable_depth(None, 9) is None
    with write_record(tmp_path / "run", deep_network(layers=1, steps=[0])) as record:
        assert measure_propagation(record).trainable_depth is None


def test_a_network_that_is_too_deep_for_its_gain_is_told(tmp_path: Path) -> None:
    with write_record(tmp_path / "deep", deep_network(layers=12, layer_gain=0.3)) as record:
        assert measure_propagation(record).is_too_deep
    with write_record(tmp_path / "sound", deep_network(layers=12)) as record:
        assert not measure_propagation(record).is_too_deep


def test_the_depth_of_a_wide_random_tanh_network_is_that_of_mean_field_theory(tmp_path: Path) -> None:
    """chi = sigma_w^2 E[tanh'(sqrt(q) z)^2] at the fixed point q of the forward variance (equations 3 and 7)."""
    torch.manual_seed(0)
    weight_variance, layers = 0.8, 20
    network = [nn.Linear(400, 400, bias=False) for _ in range(layers)]
    for layer in network:
        nn.init.normal_(layer.weight, std=math.sqrt(weight_variance / 400))
    model = nn.Sequential(*[module for layer in network for module in (layer, nn.Tanh())])
    with desat.watch(model, every=1, run_dir=tmp_path / "run"):
        model(torch.randn(64, 400)).square().sum().backward()
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    variance = 1.0
    for _ in range(60):
        variance = weight_variance * np.average(np.tanh(np.sqrt(variance) * points) ** 2, weights=weights)
    slope = np.average((1 - np.tanh(np.sqrt(variance) * points) ** 2) ** 2, weights=weights)
    with desat.open(tmp_path / "run") as record:
        found = measure_propagation(record).trainable_depth
    assert found == pytest.approx(6 / abs(math.log(weight_variance * slope)), rel=0.25)
