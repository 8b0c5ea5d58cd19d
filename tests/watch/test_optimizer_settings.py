"""What a script chose for its optimizer is in the record, for each group, whatever form it has."""

from typing import Any

import pytest
import torch
from torch import nn

from desat.record.reader import Record
from desat.watch.optimizer_settings import GROUPS, settings_of, settings_parcel
from tests.watch.loops import classify


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def recorded(record: Record) -> dict[str, list[float]]:
    (site,) = record.sites("optimizer")
    names = ("learning_rate", "momentum", "beta1", "beta2", "epsilon", "weight_decay")
    return {
        name: columns["value"].tolist()
        for name, columns in record.readings(site).items()
        if name.partition("/")[0] in names
    }


def test_the_settings_of_adam_are_those_of_each_sampled_step(watched) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, betas=(0.5, 0.75), eps=0.125, weight_decay=0.0625)
    found = recorded(watched(model, classify(steps=2), optimizer))
    assert found == {
        "learning_rate": [0.25, 0.25], "beta1": [0.5, 0.5], "beta2": [0.75, 0.75], "epsilon": [0.125, 0.125],
        "weight_decay": [0.0625, 0.0625],
    }  # fmt: skip


def test_of_other_groups_what_differs_is_told(watched) -> None:
    model = network()
    groups = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "momentum": 0.5, "lr": 1},
    ]
    found = recorded(watched(model, classify(steps=1), torch.optim.SGD(groups, lr=0.125, momentum=0.75)))
    assert found == {
        "learning_rate": [0.125], "momentum": [0.75], "weight_decay": [0.0], "learning_rate/1": [1.0],
        "momentum/1": [0.5],
    }  # fmt: skip


def test_a_rate_that_is_a_tensor_is_told_as_it_was_at_the_step(watched) -> None:
    model = network()
    rate = torch.tensor(0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def halve(*_: Any) -> None:
        rate.mul_(0.5)

    optimizer.register_step_pre_hook(halve)
    record = watched(model, classify(steps=3), optimizer)
    assert recorded(record)["learning_rate"] == [0.125, 0.0625, 0.03125]


@pytest.mark.parametrize("rate", [1, torch.tensor(1.0), torch.tensor([1.0])])
def test_the_rate_of_each_step_is_known_in_any_form(watched, rate: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0]["lr"] = rate
    record = watched(model, classify(steps=2), optimizer)
    assert record.steps()["learning_rate"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"betas": None, "eps": None}, {"betas": 0.9, "eps": (None, 1e-3), "lr": "cosine"}, {"momentum": True},
        {"lr": torch.ones(2)}, {"lr": torch.ones(1, dtype=torch.bfloat16)}, {"betas": ("a", None)},
    ],
)  # fmt: skip
def test_what_is_not_one_number_is_left_out(options: dict[str, Any]) -> None:
    assert settings_of(options) == {}


def test_only_the_first_of_many_groups_are_told() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2 * GROUPS)]
    optimizer = torch.optim.SGD([{"params": [one], "lr": 1.0 + place} for place, one in enumerate(weights)])
    rows: list[Any] = list(settings_parcel(optimizer, 3, 7).rows([]))
    rates = [row.value for row in rows if row.name.startswith("learning_rate")]
    assert rates == [1.0 + place for place in range(GROUPS)]
    assert {(row.site, row.step) for row in rows} == {(3, 7)}
