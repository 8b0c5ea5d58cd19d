from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from desat.reference import optimizers
from desat.reference.optimizers import adagrad_step, adam_step, adamw_step, momentum_step, rmsprop_step, sgd_step


class Case(NamedTuple):
    step: Callable[..., tuple[np.ndarray, Any]]
    oracle: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    torch_options: dict[str, Any]


CASES = {
    "sgd": Case(sgd_step, torch.optim.SGD, {"learning_rate": 0.05}, {"lr": 0.05}),
    "sgd with decay": Case(
        sgd_step, torch.optim.SGD, {"learning_rate": 0.05, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.1}
    ),
    "momentum": Case(
        momentum_step, torch.optim.SGD, {"learning_rate": 0.02, "momentum": 0.8}, {"lr": 0.02, "momentum": 0.8}
    ),
    "nesterov with decay": Case(
        momentum_step,
        torch.optim.SGD,
        {"learning_rate": 0.02, "nesterov": True, "weight_decay": 0.1},
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adagrad": Case(adagrad_step, torch.optim.Adagrad, {}, {}),
    "adagrad with decay": Case(
        adagrad_step,
        torch.optim.Adagrad,
        {"learning_rate": 0.3, "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.3, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop": Case(rmsprop_step, torch.optim.RMSprop, {}, {}),
    "rmsprop with decay": Case(
        rmsprop_step,
        torch.optim.RMSprop,
        {"learning_rate": 0.03, "decay": 0.9, "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.03, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "adam": Case(adam_step, torch.optim.Adam, {}, {}),
    "adam with decay": Case(
        adam_step,
        torch.optim.Adam,
        {"learning_rate": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    ),
    "adamw": Case(adamw_step, torch.optim.AdamW, {}, {}),
    "adamw with decay": Case(
        adamw_step,
        torch.optim.AdamW,
        {"learning_rate": 0.1, "weight_decay": 0.3},
        {"lr": 0.1, "weight_decay": 0.3},
    ),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
EVERY_STEP = pytest.mark.parametrize(
    "step", [sgd_step, momentum_step, adagrad_step, rmsprop_step, adam_step, adamw_step]
)
ADAPTIVE = pytest.mark.parametrize("step", [adagrad_step, rmsprop_step, adam_step])
PARAMETERS = arrays.arrays(np.float64, (3, 2), elements=st.floats(-1e4, 1e4))


def slope(parameter: Tensor, number: int) -> Tensor:
    """The gradient of a curved valley, with noise that is the same for both."""
    noise = np.random.default_rng(number).standard_normal(tuple(parameter.shape))
    return parameter**3 - torch.sin(3.0 * parameter) + torch.from_numpy(noise)


def arrays_of(state: Any) -> list[np.ndarray]:
    if not is_dataclass(state):
        return []
    values = [getattr(state, field.name) for field in fields(state)]
    return [value for value in values if isinstance(value, np.ndarray)]


@EVERY_CASE
def test_fifty_steps_are_those_of_torch(case: Case) -> None:
    begin = np.random.default_rng(0).standard_normal((4, 3))
    tensor = torch.from_numpy(begin.copy()).requires_grad_()
    optimizer = case.oracle([tensor], **case.torch_options)
    parameter, state = begin, None
    for number in range(50):
        tensor.grad = slope(tensor.detach(), number)
        optimizer.step()
        gradient = slope(torch.from_numpy(parameter), number).numpy()
        parameter, state = case.step(parameter, gradient, state, **case.options)
        np.testing.assert_allclose(parameter, tensor.detach().numpy(), atol=1e-10)
    assert np.abs(parameter - begin).max() > 1e-3


@EVERY_CASE
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e4])
def test_extreme_gradients_are_followed_as_by_torch(case: Case, size: float) -> None:
    begin = np.array([0.0, 1.0, -1e4])
    tensor = torch.from_numpy(begin.copy()).requires_grad_()
    optimizer = case.oracle([tensor], **case.torch_options)
    parameter, state = begin, None
    for number in range(5):
        gradient = size * np.array([1.0, -1.0, number])
        tensor.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        parameter, state = case.step(parameter, gradient, state, **case.options)
    np.testing.assert_allclose(parameter, tensor.detach().numpy(), rtol=1e-9, atol=1e-9)


@EVERY_STEP
@given(parameter=PARAMETERS, gradient=PARAMETERS)
@settings(deadline=None, max_examples=20)
def test_nothing_that_is_given_is_changed_or_shared(
    step: Callable[..., tuple[np.ndarray, Any]], parameter: np.ndarray, gradient: np.ndarray
) -> None:
    _, state = step(parameter, gradient, weight_decay=0.1)
    given_arrays = [parameter, gradient, *arrays_of(state)]
    copies = [array.copy() for array in given_arrays]
    stepped, later = step(parameter, gradient, state, weight_decay=0.1)
    for array, copy in zip(given_arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert not any(np.shares_memory(array, new) for new in [stepped, *arrays_of(later)])
    again, _ = step(parameter, gradient, state, weight_decay=0.1)
    np.testing.assert_array_equal(again, stepped)


@EVERY_STEP
def test_without_a_gradient_and_decay_nothing_moves(step: Callable[..., tuple[np.ndarray, Any]]) -> None:
    parameter = np.array([1.0, -2.0, 0.0])
    stepped, _ = step(parameter, np.zeros(3), weight_decay=0.0)
    np.testing.assert_array_equal(stepped, parameter)


@ADAPTIVE
@given(gradient=st.floats(1e-2, 1e4), factor=st.floats(1.0, 1e4))
@settings(deadline=None, max_examples=15)
def test_adaptive_steps_do_not_see_the_scale_of_the_gradient(
    step: Callable[..., tuple[np.ndarray, Any]], gradient: float, factor: float
) -> None:
    one, other, state, other_state = np.zeros(1), np.zeros(1), None, None
    for number in range(4):
        direction = np.array([gradient * (1.0 + number)])
        one, state = step(one, direction, state)
        other, other_state = step(other, factor * direction, other_state)
    np.testing.assert_allclose(other, one, rtol=1e-4)
    assert one[0] < 0.0


@given(st.floats(1e-2, 1e6), st.booleans())
@settings(deadline=None, max_examples=15)
def test_adams_first_step_is_the_learning_rate(size: float, negative: bool) -> None:
    gradient = -size if negative else size
    stepped, state = adam_step(np.zeros(1), np.array([gradient]), learning_rate=0.01)
    assert stepped[0] == pytest.approx(-0.01 * np.sign(gradient), rel=1e-5)
    assert state.steps == 1


def test_numbers_without_axes_are_stepped() -> None:
    parameter, state = momentum_step(np.array(1.0), np.array(0.5), learning_rate=0.1)
    parameter, _ = momentum_step(parameter, np.array(0.5), state, learning_rate=0.1)
    assert float(parameter) == pytest.approx(1.0 - 0.05 - 0.095)


@EVERY_STEP
def test_shapes_and_rates_that_do_not_fit_are_refused(step: Callable[..., tuple[np.ndarray, Any]]) -> None:
    with pytest.raises(ValueError, match=r"parameter's shape \(2, 3\), got shape \(3,\)"):
        step(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"learning rate of at least 0, got -1\.0"):
        step(np.zeros(3), np.zeros(3), learning_rate=-1.0)
    with pytest.raises(ValueError, match="weight decay of at least 0, got nan"):
        step(np.zeros(3), np.zeros(3), weight_decay=float("nan"))


def test_states_and_decay_rates_that_do_not_fit_are_refused() -> None:
    zeros = np.zeros(3)
    with pytest.raises(ValueError, match=r"state whose velocity has the shape \(3,\), got shape \(2,\)"):
        momentum_step(zeros, zeros, optimizers.MomentumState(np.zeros(2)))
    with pytest.raises(ValueError, match=r"state whose squares has the shape \(3,\), got shape \(2,\)"):
        adagrad_step(zeros, zeros, optimizers.SquaresState(np.zeros(2)))
    with pytest.raises(ValueError, match=r"state whose second moment has the shape \(3,\), got shape \(2,\)"):
        adam_step(zeros, zeros, optimizers.AdamState(1, zeros, np.zeros(2)))
    with pytest.raises(ValueError, match=r"momentum in \[0, 1\), got 1.0"):
        momentum_step(zeros, zeros, momentum=1.0)
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got -0.1"):
        rmsprop_step(zeros, zeros, decay=-0.1)
    with pytest.raises(ValueError, match=r"second beta in \[0, 1\), got 1.0"):
        adamw_step(zeros, zeros, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"epsilon of at least 0, got -1\.0"):
        adam_step(zeros, zeros, eps=-1.0)
