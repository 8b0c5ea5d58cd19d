"""Blocks that a skip connection can be put around: a layer with its nonlinearity, by their shapes."""

import math
from dataclasses import dataclass, field

from torch import nn
from torch.utils.hooks import RemovableHandle

from desat.cure.remedies.followers import Follower, normalizing
from desat.cure.remedies.skips import Projection, Skip

_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)


@dataclass(eq=False)
class Block:
    """A skip to be put: the module that bears it, what it is, and how it is put into words.

    hooks: those that were registered for it. runs: of the skip, in the rehearsal.
    """

    path: str
    bearer: nn.Module
    skip: nn.Module
    words: str
    follower: Follower | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)
    runs: int = 0


def misfit(follower: Follower) -> str | None:
    """Why no skip can be closed behind the nonlinearity that follows a layer."""
    after = follower.nonlinearity
    if after is None or after.curve is None:
        return "no nonlinearity follows it"
    if after.module is None:
        bounded = after.curve.shape == "bounded"
        return (
            f"{after.name} is called as a function and is bounded: apply activation=relu with it" if bounded else None
        )
    if after.output_shape is not None and tuple(after.output_shape) != follower.output_shape:
        return "between it and its nonlinearity the shape changes"
    strange = [one for one in follower.between if normalizing((one,)) is None and not isinstance(one, _PASSING)]
    return f"a {type(strange[0]).__name__} stands between it and its nonlinearity" if strange else None


def block_around(follower: Follower, choice: str) -> Block | None:
    """The skip that a layer's shapes allow."""
    layer, after = follower.layer, follower.nonlinearity
    assert after is not None
    name = f"{type(layer).__name__}(x)"
    inside = name if after.module is None else f"{after.name}({name})"
    same = _keeps_shape(follower)
    if same:
        return Block(follower.path, layer, Skip(), f"x + scale * {inside}, scale 0", follower)
    if choice != "projection" or not _keeps_space(follower):
        return None
    # Before a rectifier, which halves the mean square, P doubles it (He et al. 2015).
    gain = math.sqrt(2.0) if after.module is None else 1.0
    if isinstance(layer, nn.Linear):
        projection = Projection(layer.in_features, layer.out_features, None, gain)
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        projection = Projection(layer.in_channels, layer.out_channels, len(layer.kernel_size), gain)
    return Block(follower.path, layer, projection, f"P x + scale * {inside}, scale 0", follower)


def _keeps_shape(follower: Follower) -> bool:
    layer = follower.layer
    if follower.input_shape is not None:
        return follower.input_shape == follower.output_shape
    if isinstance(layer, nn.Linear):
        return layer.in_features == layer.out_features
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and layer.in_channels == layer.out_channels
        and _keeps_space(follower)
    )


def _keeps_space(follower: Follower) -> bool:
    layer = follower.layer
    if isinstance(layer, nn.Linear):
        return True
    assert isinstance(layer, nn.modules.conv._ConvNd)
    shapes = follower.input_shape, follower.output_shape
    if shapes[0] is not None and shapes[1] is not None:
        channels = len(shapes[0]) - len(layer.kernel_size) - 1
        drop = [shape[:channels] + shape[channels + 1 :] for shape in shapes if shape is not None]
        return drop[0] == drop[1]
    if layer.transposed or any(step != 1 for step in layer.stride):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    sides = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    return all(2 * padding == dilation * (size - 1) for padding, dilation, size in sides)
