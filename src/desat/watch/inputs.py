"""The input batch: what goes into the network, as the script has prepared it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.record.rows import Site
from desat.watch.measurements import is_measurable
from desat.watch.modules import ADDED_PREFIX, Member
from desat.watch.sampling import is_occasion, spread
from desat.watch.scene import Scene

KIND = "input"

TENSORS = 4
"""Tensors of a network's arguments that are looked at, the first ones, in tuples, lists and dicts too."""

SAMPLE = 65_536
"""Elements that features are judged by: of a larger input a regular subset of its samples."""

FEATURES = 512
"""Features that are looked at: of more a regular subset, so that a share is known to 0.5 / sqrt(512) = 2 %."""

INTEGERS = 4096
"""Elements of an input of integers that are looked at: of more a regular subset."""

_INTEGER_KINDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_FIRST_ROOT = "first root"


def probe_inputs(scene: Scene, root: Member, args: tuple[Any, ...]) -> Callable[[dict[str, Any]], None]:
    """Measure the positional arguments of a root of the network that is about to run.

    Returns what is to be called with its keyword arguments at its end: torch's hook before all modules is not given
    them. What is part of a graph already comes from another network and is no input. The sites are `input`, `input 2`
    and so on; those of a second network are `input of discriminator` and so on.
    """
    place = scene.position - 1
    prefix = KIND if scene.memory.setdefault(_FIRST_ROOT, root.path) == root.path else f"{KIND} of {root.path}"
    number = 0

    def measure(arguments: Any) -> None:
        nonlocal number
        for tensor in _tensors(arguments):
            if number == TENSORS:
                return
            number += 1
            name = prefix if number == 1 else f"{prefix} {number}"
            site = scene.site(KIND, name, str(tensor.dtype).removeprefix("torch."), place)
            _measure(scene, site, tensor)

    measure(args)
    return measure


def as_received(root: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a network as its first layer will receive them, where a remedy stands at its entry.

    That is a child `desat_input` of the network, or of what it runs first, with a method `preview(args)`.
    """
    module: nn.Module | None = getattr(root, "_orig_mod", root)
    while module is not None:
        entry: Any = module._modules.get(f"{ADDED_PREFIX}input")
        if entry is not None:
            return entry.preview(args)
        first = next(iter(module._modules.values()), None)
        module = first if isinstance(module, nn.Sequential) else None
    return args


def describe_features(tensor: Tensor) -> Tensor:
    """Of each feature, over a sample of the batch, its extent (largest - smallest) and its sum of squares.

    tensor: shape (batch,), (batch, features), (batch, positions, features) or (batch, ...) with each place in a sample
    a feature. Returns shape (2, features up to FEATURES), of the tensor's precision or float32, memory of its own.
    """
    rows = _sample_dimensions(tensor)
    features = tensor.detach()[(..., *spread(tensor.shape[rows:], FEATURES))]
    taken = math.prod(features.shape[rows:])
    sample = features[spread(tensor.shape[:rows], max(2, SAMPLE // taken))]
    matrix = sample.to(torch.promote_types(tensor.dtype, torch.float32)).reshape(-1, taken)
    # Faster on the CPU, by far, than torch.aminmax and a norm along the first dimension.
    return torch.stack([matrix.amax(0) - matrix.amin(0), matrix.square().sum(0)])


def judge_features(described: NDArray[Any]) -> dict[str, float]:
    """Readings of what `describe_features` gives.

    `constant_features`: share of features with one value in the whole batch, 0 to 1. `feature_rms_largest_over_median`:
    from 1; of the features that are finite and not zero throughout, left out where there are fewer than two.
    """
    extents, squares = described.astype(np.float64)
    readings = {"constant_features": float(np.mean(extents == 0.0))}
    sizes = np.sqrt(squares[np.isfinite(squares) & (squares > 0.0)])
    if len(sizes) > 1:
        readings["feature_rms_largest_over_median"] = float(sizes.max() / np.median(sizes))
    return readings


def sample_integers(tensor: Tensor) -> Tensor:
    """A regular sample of up to INTEGERS elements, flat, memory of its own."""
    if tensor.is_contiguous():
        stride = -(-tensor.numel() // INTEGERS)
        return tensor.detach().view(-1)[:: stride if stride == 1 else stride | 1].clone()
    return tensor.detach()[spread(tensor.shape, INTEGERS)].clone().reshape(-1)


def judge_integers(sample: NDArray[Any]) -> dict[str, float]:
    """Readings of an input of integers: `minimum`, `maximum`, and the share of the most common value, 0 to 1."""
    _, counts = np.unique(sample, return_counts=True)
    return {
        "minimum": float(sample.min()),
        "maximum": float(sample.max()),
        "most_common_share": float(counts.max() / sample.size),
    }


def _measure(scene: Scene, site: Site, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        scene.measurements.deferred(site, "integers", lambda: sample_integers(tensor), judge_integers)
        return
    scene.measurements.tensor(site, "output", tensor)
    if is_occasion(scene.samples) and math.prod(tensor.shape[: _sample_dimensions(tensor)]) > 1:
        scene.measurements.deferred(site, "features", lambda: describe_features(tensor), judge_features)


def _sample_dimensions(tensor: Tensor) -> int:
    """How many dimensions count samples: of sequences those of batch and positions, else that of the batch."""
    return 2 if tensor.dim() == 3 else 1


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a batch in a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if _is_input(value):
            yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _is_input(value: Tensor) -> bool:
    if type(value) is not Tensor or value.grad_fn is not None or value.dim() == 0 or value.numel() == 0:
        return False
    if value.is_floating_point():
        return is_measurable(value)
    return (
        value.dtype in _INTEGER_KINDS
        and value.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
        and not torch.compiler.is_compiling()
    )
