import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from desat.cure.patient import Batch, Patient


class Gated(nn.Module):
    """Runs its layers in another order than they are registered, with a gate and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.gate = nn.Linear(8, 2), nn.Linear(4, 8), nn.Linear(8, 8)
        self.act = nn.Tanh()

    def forward(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
        x = torch.tanh(self.first(x)) * factor
        x = self.act(x) * torch.sigmoid(self.gate(x)).view(x.shape)
        return self.last(x).sigmoid()


def patient(model: nn.Module, *args: object, **kwargs: object) -> Patient:
    return Patient(model, (), Batch(args, kwargs))


def test_calls_come_in_the_order_of_execution_with_gates_and_output_told() -> None:
    model = Gated()
    anatomy = patient(model, torch.randn(5, 4), factor=2.0).anatomy
    assert anatomy is not None
    assert [call.name for call in anatomy.calls] == [
        "Linear", "torch.tanh", "Tanh", "Linear", "torch.sigmoid", "Linear", "Tensor.sigmoid",
    ]  # fmt: skip
    assert [call.path for call in anatomy.calls if call.has_weights] == ["first", "gate", "last"]
    assert [call.is_gate for call in anatomy.nonlinearities] == [False, True, True, False]
    assert [anatomy.is_output(call) for call in anatomy.nonlinearities] == [False, False, False, True]
    first, tanh = anatomy.calls[:2]
    assert (first.input_shape, first.output_shape) == ((5, 4), (5, 8))
    assert anatomy.before(tanh) is first
    assert anatomy.after(first) is tanh
    assert anatomy.of(model.gate) == [anatomy.calls[3]]


def test_a_product_with_a_number_is_no_gate() -> None:
    anatomy = patient(Gated(), torch.randn(5, 4)).anatomy
    assert anatomy is not None
    assert not anatomy.nonlinearities[0].is_gate


def test_random_states_buffers_and_gradients_stay_as_they_were() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) + random.random() + float(np.random.rand())

    model = Noisy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batch = torch.ones(6, 4)
    assert patient(model, batch).anatomy is not None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_pass_that_fails_leaves_the_reason_and_no_hook() -> None:
    model = Gated()
    blind = patient(model, torch.randn(5, 3))
    assert blind.anatomy is None
    assert "RuntimeError" in (blind.blind or "")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert "batch" in (Patient(model).blind or "")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_new_parameters_are_trained_by_the_group_of_the_one_they_stand_beside(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    one = optimizer([{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.5}], lr=0.1)
    fresh = nn.Parameter(torch.zeros(3))
    treated = Patient(model, [one])
    assert treated.adopt([fresh], beside=model[1].weight)
    assert any(parameter is fresh for parameter in one.param_groups[1]["params"])
    fresh.grad = torch.ones(3)
    one.step()
    assert (fresh != 0).all()
    assert not treated.adopt([fresh], beside=nn.Parameter(torch.zeros(1)))


def test_an_optimizer_of_another_network_is_none_of_the_patients() -> None:
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert Patient(nn.Linear(2, 2), [other]).optimizers == []
