"""Weights scaled, and biases set, by what a real batch does in the network, layer by layer in the order of execution.

One forward pass does it all: each layer is fitted just before it is called, so that the next one sees what it gives.

The critical initialization. In a wide network with weights of variance sigma_w^2 / fan_in, whose pre-activations have a
mean of zero over the data for each unit and a variance q, the next layer's variance is sigma_w^2 Var[f(sqrt(q) u)], and
the mean square of a gradient is multiplied on its way back by chi = sigma_w^2 E[f'(sqrt(q) u)^2], u ~ N(0, 1) (Poole et
al. 2016; Schoenholz et al. 2017, equations 3 and 6). Signal and gradient both live where q stays and chi is 1. With the
variance kept, sigma_w^2 = q / Var[f], so chi = q E[f'^2] / Var[f], which is at least 1 for every f (the Gaussian
Poincare inequality) and tends to 1 for a smooth f as q goes to 0. So q is the largest up to 1 for which chi^depth is
at most GROWTH: 0.17 for tanh and 0.75 for the sigmoid in 30 layers, and sigma_w is near 1 / abs(f'(0)), 1 and 4. The
mean of zero is what the biases are for, without which the sigmoid's 1/2 drowns what differs from input to input.
Orthogonal weights keep the gradient's direction as well as its size (Pennington et al. 2017).

A kink at zero, as ReLU's, has no such q: chi is 1.47 with the mean taken away. There the biases stay 0, and weights
keep the mean square, with which chi is 1 exactly (He et al. 2015); what differs from input to input then falls as
1 / depth, not exponentially.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from desat.cure.anatomy import Anatomy, Call, run_beside
from desat.cure.drawing import LAYERS
from desat.cure.gain import Elementwise, elementwise, fingerprint, gain_of, normal_grid
from desat.cure.patient import Patient
from desat.nonlinearity import gains
from desat.watch.taps import first_tensor

TOLERANCE = 0.1
"""LSUV: the variance may differ from 1 by this (Mishkin and Matas 2016, algorithm 1, as in the authors' program)."""

ATTEMPTS = 10
"""LSUV: a layer is scaled at most so often (the authors' program)."""

GROWTH = 2.0
"""Critical: the mean square of the gradient may grow or shrink by this factor over the whole depth."""

SMALLEST_VARIANCE = 0.02
"""Critical: a pre-activation whose variance would have to be smaller than this is at a kink, and He's way is taken."""

_VARIANCES = [SMALLEST_VARIANCE * (1.0 / SMALLEST_VARIANCE) ** (step / 40) for step in range(41)]

_LOOKED_AT = 65536
"""The backward gain that is reported is measured on at most this many pre-activations."""

Fit = Callable[[str, nn.Module, Callable[[], Tensor]], str]


def make_unit_variance(patient: Patient, layers: set[str]) -> dict[str, str]:
    """LSUV: scale each layer's orthogonal weights until its output has variance 1. Returns what each is then."""
    return _fitted(patient, layers, _unit_variance)


def make_critical(patient: Patient, layers: set[str]) -> dict[str, str]:
    """The critical initialization of orthogonal weights. Returns what each layer is then."""
    anatomy = patient.anatomy
    if anatomy is None:
        return {}
    critical = _Critical(anatomy)
    return _fitted(patient, layers, critical.fit)


def _unit_variance(path: str, layer: nn.Module, output: Callable[[], Tensor]) -> str:
    weight, scale = layer.get_parameter("weight"), 1.0
    for _ in range(ATTEMPTS):
        variance = output().var(correction=0).item()
        if not 0.0 < variance < float("inf"):
            return f"{_described(layer)}, not scaled: its output does not vary over the batch"
        if abs(variance - 1.0) < TOLERANCE:
            break
        weight.div_(variance**0.5)
        scale /= variance**0.5
    return f"{_described(layer)}, times {scale:.4g}: variance {output().var(correction=0).item():.4g} on the batch"


class _Critical:
    """Fits layers by the nonlinearities that follow them."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._depth = sum(call.has_weights for call in anatomy.calls)
        self._known: dict[Any, float | None] = {}

    def fit(self, path: str, layer: nn.Module, output: Callable[[], Tensor]) -> str:
        call = next((one for one in self._anatomy.calls if one.module is layer), None)
        after = self._anatomy.after(call) if call is not None else None
        function = None if after is None else _function(after)
        wanted = 1.0 if after is None or function is None else self._variance(function)
        z = output()
        means = z.mean(dim=_other_axes(layer, z))
        if wanted is None and function is not None:
            return self._fit_mean_square(layer, function, output, z)
        centred = z.square().mean() - means.square().mean()
        scale = _scale(wanted or 1.0, centred.item())
        if scale is None:
            return f"{_described(layer)}, not scaled: its output does not vary over the batch"
        layer.get_parameter("weight").mul_(scale)
        bias = layer._parameters.get("bias")
        if bias is not None:
            bias.copy_(-scale * means)
        at = "mean 0, " if bias is not None else ""
        told = f"{_described(layer)}, times {scale:.4g}: {at}variance {wanted or 1.0:.4g} on the batch"
        return told + _backward(function, scale, output)

    def _fit_mean_square(self, layer: nn.Module, function: Elementwise, output: Callable[[], Tensor], z: Tensor) -> str:
        wanted = (gain_of(function).before or 1.0) ** 2
        scale = _scale(wanted, z.square().mean().item())
        if scale is None:
            return f"{_described(layer)}, not scaled: its output is zero on the batch"
        layer.get_parameter("weight").mul_(scale)
        told = f"{_described(layer)}, times {scale:.4g}: mean square {wanted:.4g} on the batch"
        return told + _backward(function, scale, output)

    def _variance(self, function: Elementwise) -> float | None:
        key = fingerprint(function)
        if key not in self._known:
            self._known[key] = working_variance(function, self._depth)
        return self._known[key]


def working_variance(function: Elementwise, depth: int) -> float | None:
    """The largest variance q up to 1 of pre-activations for which chi^depth is at most GROWTH; None if none is."""
    points, weights = normal_grid()
    largest = None
    for variance in _VARIANCES:
        z = variance**0.5 * points
        values = function(z)
        passed_on = (values.square() * weights).sum() - (values * weights).sum().square()
        with torch.enable_grad():
            slopes = gains(function, z)
        chi = variance * (slopes.square() * weights).sum() / passed_on
        if not chi.item() ** depth <= GROWTH:
            break
        largest = variance
    return largest


def _fitted(patient: Patient, layers: set[str], fit: Fit) -> dict[str, str]:
    """Run the model on its batch and fit each layer just before its first call."""
    if patient.batch is None:
        return {}
    told: dict[str, str] = {}
    handles = [_before(layer, path, fit, told) for path, layer in _layers(patient.model, layers)]
    try:
        run_beside(patient.model, *patient.batch)
    except Exception as error:  # the forward pass is the user's; what was fitted until then holds
        for path, layer in _layers(patient.model, layers - told.keys()):
            told[path] = f"{_described(layer)}, not scaled: the forward pass failed: {type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return told


def _layers(model: nn.Module, paths: set[str]) -> Iterator[tuple[str, nn.Module]]:
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, LAYERS):
            yield path, module


def _before(layer: nn.Module, path: str, fit: Fit, told: dict[str, str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def output() -> Tensor:
            tensor = first_tensor(module.forward(*args, **kwargs))
            return torch.empty(0) if tensor is None else tensor.float()

        if path not in told:
            told[path] = fit(path, module, output)

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _function(call: Call) -> Elementwise | None:
    try:
        return elementwise(call.module, call.function, call.settings, call.keywords)
    except Exception:  # the nonlinearity may be the user's
        return None


def _scale(wanted: float, found: float) -> float | None:
    return (wanted / found) ** 0.5 if 1e-30 < found < float("inf") else None


def _backward(function: Elementwise | None, scale: float, output: Callable[[], Tensor]) -> str:
    """The backward gain, scale * rms f'(z), in words."""
    if function is None:
        return ""
    z = output().flatten()
    with torch.enable_grad():
        slopes = gains(function, z[:: max(1, z.numel() // _LOOKED_AT)].cpu())
    return f", backward gain {scale * slopes.square().mean().sqrt().item():.3g}"


def _other_axes(layer: nn.Module, output: Tensor) -> list[int]:
    """All axes but that of the units."""
    unit = output.dim() - 1
    if isinstance(layer, nn.modules.conv._ConvNd):
        unit = output.dim() - 1 - len(layer.kernel_size)
    return [axis for axis in range(output.dim()) if axis != unit]


def _described(layer: nn.Module) -> str:
    return f"{type(layer).__name__} with orthogonal weights"
