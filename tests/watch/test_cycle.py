"""With whose step a step of the training ends."""

import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import nn

import desat
from desat.watch.cycle import Cycle
from tests.watch.loops import classify


def optimizer(*shared: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD(shared or [nn.Parameter(torch.zeros(2))], lr=0.1)


def ends(order: Iterable[torch.optim.Optimizer], *watched: torch.optim.Optimizer, cycle: Cycle | None = None) -> str:
    """One letter for each optimizer's step: `|` where a step of the training ends with it, `-` where not."""
    known = {id(one) for each in watched for group in each.param_groups for one in group["params"]}
    cycle = cycle or Cycle(None, lambda: known)
    return "".join("|" if cycle.ends_with(one) else "-" for one in order)


def test_one_optimizer_ends_each_step() -> None:
    a = optimizer()
    assert ends([a] * 4, a) == "||||"


def test_two_that_take_turns_make_one_step() -> None:
    a, b = optimizer(), optimizer()
    assert ends([a, b] * 4, a, b) == "-|-|-|-|"


def test_one_that_steps_more_often_counts_alone() -> None:
    critic, generator = optimizer(), optimizer()
    assert ends([critic, critic, critic, generator] * 3, critic, generator) == "-||-|||-|||-"


def test_one_whose_network_has_not_run_is_not_waited_for() -> None:
    a, b = optimizer(), optimizer()
    assert ends([a, a, a], a) == "|||"
    assert b is not None


def test_a_fixed_one_is_all_that_counts() -> None:
    a, b = optimizer(), optimizer()
    assert ends([b, a, b, b, a], a, b, cycle=Cycle(a, set)) == "-|--|"


def test_a_wrapper_of_the_same_parameters_is_not_waited_for() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    inner, wrapper = optimizer(parameter), optimizer(parameter)
    assert ends([inner, inner, inner], inner, wrapper) == "|||"


@pytest.mark.parametrize("alive", [False, True])
def test_trainings_one_after_another(alive: bool) -> None:
    known: set[int] = set()
    cycle, kept = Cycle(None, lambda: known), []
    for _ in range(3):
        one = optimizer()
        known |= {id(parameter) for group in one.param_groups for parameter in group["params"]}
        kept += [one] * alive
        assert ends([one] * 3, cycle=cycle) == "|||"
        del one


def test_the_rate_is_that_of_the_first_optimizer_of_the_cycle() -> None:
    a, b = optimizer(), optimizer()
    cycle = Cycle(None, set)
    assert cycle.leader is None
    for one in (a, b, a, b):
        cycle.ends_with(one)
    assert cycle.leader is a
    fresh = optimizer()
    del a, b, one
    cycle.ends_with(fresh)
    assert cycle.leader is fresh


def test_an_optimizer_for_each_parameter_that_steps_in_the_backward_pass(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    turns = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        turns[parameter].step()
        turns[parameter].zero_grad()

    for parameter in turns:
        parameter.register_post_accumulate_grad_hook(step)

    class Nothing:
        def zero_grad(self) -> None: ...
        def step(self) -> None: ...

    with desat.watch(model, every=1, run_dir=tmp_path / "run"):
        classify(steps=4)(model, Nothing())
    with desat.open(tmp_path / "run") as record:
        assert record.steps()["step"].tolist() == [0, 1, 2, 3]
        for one in record.sites("parameter"):
            assert record.parameter(one)["step"].tolist() == [0, 1, 2, 3]
        for one, quantity in itertools.product(record.sites("module"), ("output", "gradient")):
            assert record.tensor(one, quantity)["calls"].tolist() == [1] * 4
