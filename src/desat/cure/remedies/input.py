"""input: what the network is given gets zero mean and unit variance, for which weights and rates are chosen.

LeCun, Bottou, Orr and Müller (1998), Efficient BackProp, section 4.3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from desat.cure.family import Change, Choice, Family
from desat.cure.order import has_weights, leaves
from desat.cure.patient import Patient
from desat.cure.remedies.placement import attach, attached, refusal_of_model
from desat.cure.remedies.standardization import Standardization

_NAME = "input"


def apply_input(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Put a Standardization at the entry of the model.

    Of the positional arguments the first that is a tensor of real numbers is standardized: for each channel where the
    first layer is a convolution or the input has four dimensions or more, else for each number in the last dimension.
    """
    model = patient.model
    remedy = f"{_NAME}={choice}"
    found = _refusal(patient) or _first_input(patient)
    if isinstance(found, str):
        kind = "its input"
        return [Change(remedy, "", kind, kind, refused=found)]
    position, tensor = found
    entry = _entry(model)
    if isinstance(entry, str):
        return [Change(remedy, "", "its input", "its input", refused=entry)]
    path, module = entry
    dimension = _dimension(patient, tensor)
    if dimension is None:
        reason = f"a batch of the shape {tuple(tensor.shape)} has no dimension of features"
        return [Change(remedy, path, "its input", "its input", refused=reason)]
    features = tensor.shape[dimension]
    attach(module, _NAME, Standardization(features, dimension, position, _device(model, tensor)))
    module.register_forward_pre_hook(_standardized)
    before = f"an input of {features} {'features' if dimension == tensor.dim() - 1 else 'channels'}"
    return [Change(remedy, path, before, f"{before}, standardized by the training batches seen so far")]


def _refusal(patient: Patient) -> str | None:
    model = patient.model
    refused = refusal_of_model(model)
    if refused is not None:
        return refused
    if any(attached(module, _NAME) is not None for module in model.modules()):
        return "a remedy standardizes it already"
    return None if patient.batch is not None else "no batch is at hand to see its shape: hand one over as batch="


def _first_input(patient: Patient) -> tuple[int, Tensor] | str:
    """Which positional argument is standardized; or why none is."""
    batch = patient.batch
    assert batch is not None
    tensors = [(place, one) for place, one in enumerate(batch.args) if isinstance(one, Tensor)]
    real = [(place, one) for place, one in tensors if one.is_floating_point() and one.layout is torch.strided]
    if real:
        return real[0]
    if tensors:
        kind = str(tensors[0][1].dtype).removeprefix("torch.")
        return (
            f"it is of {kind}: numbers of words or classes have no scale, and bytes become real inside of the network"
        )
    return "no tensor is handed over by position"


def _entry(model: nn.Module) -> tuple[str, nn.Module] | str:
    """The module at whose call the input is standardized: the model, or, as children of a Sequential are what it runs,
    the first that it runs.
    """
    path, module = "", model
    while isinstance(module, nn.Sequential):
        first = next(iter(module.named_children()), None)
        if first is None:
            return "it is empty"
        path, module = f"{path}.{first[0]}".lstrip("."), first[1]
    places = [name for name, one in model.named_modules(remove_duplicate=False) if one is module]
    if len(places) > 1:
        return f"its first module stands in several places ({', '.join(places)})"
    return path, module


def _dimension(patient: Patient, tensor: Tensor) -> int | None:
    """Which dimension of the input holds the features, counted from the front."""
    first = _first_layer(patient)
    if isinstance(first, nn.modules.conv._ConvNd):
        dimension = tensor.dim() - 1 - len(first.kernel_size)
    else:
        dimension = 1 if tensor.dim() >= 4 else tensor.dim() - 1
    return dimension if 1 <= dimension < tensor.dim() else None


def _first_layer(patient: Patient) -> nn.Module | None:
    if patient.anatomy is not None:
        return next((call.module for call in patient.anatomy.calls if call.has_weights), None)
    return next((module for _, module in leaves(patient.model) if has_weights(module)), None)


def _device(model: nn.Module, tensor: Tensor) -> torch.device:
    weight = next(model.parameters(), None)
    return tensor.device if weight is None else weight.device


def _standardized(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The forward pre-hook of the module at the entry."""
    standardization = attached(module, _NAME)
    return standardization.enter(args) if isinstance(standardization, Standardization) else args


INPUT = Family(
    "input",
    (Choice("standardize", "zero mean and unit variance, feature by feature (LeCun et al. 1998)"),),
    apply_input,
)
