from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from desat.record.reader import Record
from desat.watch.left_out import ENTRIES, LeftOutTap, changed_share
from desat.watch.modules import Network
from desat.watch.sites import Sites
from tests.watch.loops import classify


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def readings(record: Record) -> dict[str, dict[str, list[float]]]:
    """By parameter and name of the reading, of what is not trained by an optimizer."""
    found = {site.name: record.readings(site) for site in record.sites("parameter")}
    wanted = {"frozen", "in_optimizer", "has_gradient", "elements", "changed"}
    return {
        site: {name: series["value"].tolist() for name, series in named.items() if name in wanted}
        for site, named in found.items()
        if wanted & set(named)
    }


def test_where_all_is_trained_there_is_nothing_to_say(watched) -> None:
    assert readings(watched(network(), classify())) == {}


def test_a_frozen_layer_is_noted_in_the_optimizer_or_not(watched) -> None:
    model = network()
    model[0].requires_grad_(False)
    found = readings(watched(model, classify(steps=1)))
    assert found == {
        "0.weight": {"frozen": [1.0], "elements": [48.0]},
        "0.bias": {"frozen": [1.0], "elements": [8.0]},
    }


def test_a_layer_that_was_left_out_has_gradients_and_stays_as_it_is(watched) -> None:
    model = network()
    found = readings(watched(model, classify(steps=3), torch.optim.SGD(model[2].parameters(), lr=0.1)))
    assert list(found) == ["0.weight", "0.bias"]
    assert found["0.weight"] == {
        "in_optimizer": [0.0] * 3,
        "has_gradient": [1.0] * 3,
        "elements": [48.0] * 3,
        "changed": [0.0] * 2,
    }


def test_a_site_of_it_has_the_place_of_its_module(watched) -> None:
    model = network()
    record = watched(model, classify(steps=1), torch.optim.SGD(model[2].parameters(), lr=0.1))
    positions = {site.name: site.position for site in record.sites()}
    assert positions["0.weight"] == positions["0"]
    assert record.grid("parameter", "rms").sites[0].name == "2.weight"


def test_what_an_optimizer_holds_that_is_not_watched_is_not_left_out(watched) -> None:
    model = network()
    other = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert readings(watched(model, classify(), torch.optim.SGD(model[2].parameters(), lr=0.1))) == {}
    assert other.param_groups


def test_what_is_updated_by_hand_is_seen_to_change(watched) -> None:
    model = network()
    first = model[0]

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
            for parameter in first.parameters():
                parameter.data.sub_(0.1)

    found = readings(watched(model, loop, torch.optim.SGD(model[2].parameters(), lr=0.1)))
    assert found["0.weight"]["changed"] == [1.0, 1.0]


def test_without_an_optimizer_nothing_is_left_out(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            F.cross_entropy(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()

    assert LeftOutTap(Network(network()), Sites()).look(0, 1, []) == []
    model = network()
    assert readings(watched(model, loop, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))) == {}


@pytest.mark.parametrize("change", [lambda: nn.Linear(900, 700), lambda: nn.Linear(3, 1)])
def test_a_sample_is_bounded_and_of_its_own_memory(change: Callable[[], nn.Linear]) -> None:
    layer = change()
    tap = LeftOutTap(Network(layer), Sites())
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    (first,), (second,) = tap.look(0, 1, [optimizer]), tap.look(1, 2, [optimizer])
    assert [len(tensor) for tensor in (*first.tensors, *second.tensors)] == [1, 1, 2, 2]
    assert all(tensor.shape[1] <= ENTRIES for tensor in first.tensors)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    assert not own & {tensor.untyped_storage().data_ptr() for tensor in (*first.tensors, *second.tensors)}


def test_the_share_that_has_changed() -> None:
    assert changed_share(np.array([[1.0, 2.0, 3.0, 4.0]])) is None
    assert changed_share(np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 3.0, 4.0]])) == pytest.approx(0.25)
