import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.watch.normalization import measure_normalization
from desat.watch.readings import Readings
from desat.watch.shipment import ship
from desat.watch.sites import Sites
from tests.watch.loops import classify


@given(
    st.integers(2, 12), st.integers(1, 6), st.lists(st.integers(1, 5), max_size=2), st.floats(0.1, 10), st.floats(-5, 5)
)
@settings(deadline=None, max_examples=40)
def test_batch_statistics_are_those_of_numpy(
    batch: int, channels: int, places: list[int], scale: float, shift: float
) -> None:
    module = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(places)](channels)
    generator = torch.Generator().manual_seed(batch)
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.copy_(torch.randn(channels, generator=generator))
    module.running_var.copy_(torch.rand(channels, generator=generator) + 0.1)
    values = scale * torch.randn(batch, channels, *places, generator=generator) + shift
    found = {name: value.item() for name, value in measure_normalization(module, values).items()}

    array = np.moveaxis(values.double().numpy(), 1, 0).reshape(channels, -1)
    mean, variance = module.running_mean.double().numpy(), module.running_var.double().numpy() + module.eps
    assert found["batch_size"] == array.shape[1]
    assert found["momentum"] == pytest.approx(0.1)
    assert found["mean_mismatch"] == pytest.approx(np.mean(np.abs(array.mean(1) - mean) / np.sqrt(variance)))
    expected = np.abs(10 * np.log10((array.var(1) + module.eps) / variance)).mean()
    assert found["variance_mismatch_db"] == pytest.approx(expected)
    assert found["running_variance_smallest"] == pytest.approx(variance.min() - module.eps)
    assert found["running_variance_largest"] == pytest.approx(variance.max() - module.eps)


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True)]
)
def test_other_normalizations_tell_of_their_scale(module: nn.Module) -> None:
    with torch.no_grad():
        module.get_parameter("weight").copy_(torch.tensor([3.0, -0.5, 0.0, 4.0]))
    found = measure_normalization(module, torch.randn(3, 4, 4))
    assert set(found) == {"gamma_rms", "gamma_smallest"}
    assert found["gamma_rms"].item() == pytest.approx((25.25 / 4) ** 0.5)
    assert found["gamma_smallest"].item() == 0.0


def test_a_layer_without_scale_or_running_statistics_has_less_to_tell() -> None:
    bare = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    assert set(measure_normalization(bare, torch.randn(3, 4))) == {"batch_size"}
    assert measure_normalization(nn.LayerNorm(4, elementwise_affine=False), torch.randn(3, 4)) == {}


def test_readings_reach_the_record(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    record = watched(model, classify(steps=3))
    (site,) = [site for site in record.sites() if site.operation == "BatchNorm1d" and site.kind == "module"]
    readings = record.readings(site)
    assert readings["batch_size"]["value"].tolist() == [8, 8, 8]
    assert readings["batch_size"]["step"].tolist() == [0, 1, 2]
    assert readings["running_variance_largest"]["value"][0] == 1.0


def test_the_last_reading_of_a_step_counts() -> None:
    readings, site = Readings(), Sites().meet("module", "a", "Linear")
    readings.add(site, {"x": torch.tensor(1.0)}, forward_pass=1)
    readings.add(site, {"x": torch.tensor(2.0)}, forward_pass=1)
    assert [(row.name, row.step, row.value) for row in ship([readings.take(7, set())])()] == [("x", 7, 2.0)]
    assert list(ship([readings.take(8, set())])()) == []


def test_readings_of_a_pass_that_did_not_learn_are_dropped() -> None:
    readings, site = Readings(), Sites().meet("module", "a", "Linear")
    readings.add(site, {"x": torch.tensor(1.0)}, forward_pass=1)
    readings.add(site, {"x": torch.tensor(2.0)}, forward_pass=2)
    readings.defer(site, "shape", torch.arange(4.0), lambda array: {"sum": float(array.sum())}, forward_pass=1)
    found = [(row.name, row.value) for row in ship([readings.take(7, {1})])()]
    assert found == [("x", 1.0), ("sum", 6.0)]


def test_a_fault_in_a_reduction_costs_its_readings_alone_and_is_told_once(caplog) -> None:
    def faulty(array: np.ndarray) -> dict[str, float]:
        raise ValueError("a fault")

    readings, site = Readings(), Sites().meet("module", "a", "Linear")
    for _ in range(2):
        readings.defer(site, "bad", torch.ones(2), faulty, forward_pass=1)
        readings.defer(site, "good", torch.ones(2), lambda array: {"sum": float(array.sum())}, forward_pass=1)
        assert [(row.name, row.value) for row in ship([readings.take(7, set())])()] == [("sum", 2.0)]
    assert len([line for line in caplog.messages if "a fault" in line]) == 1
