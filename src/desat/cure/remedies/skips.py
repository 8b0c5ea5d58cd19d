"""Skip connections that run in hooks: opened at a layer, carried by the tensor, closed behind the nonlinearity.

What the layer was given travels as an attribute of its output, not of a module. So nothing is kept between two calls
of a network: it can be copied at any time, and a part of it that autograd repeats (activation checkpointing) or that
another thread runs finds its own. Lost is a skip alone that a checkpoint of the reentrant kind cuts between the layer
and its nonlinearity, since that hands on copies of its tensors.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure.drawing import generator
from desat.cure.remedies.placement import attached

NAME = "residual"
_SKIP = "_desat_skip"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Skip(nn.Module):
    """y = x + scale * branch, the scale a number that is learned and starts at 0.

    ReZero (Bachlechner et al. 2020), SkipInit (De and Smith 2020): at the start the signal and the gradient pass by the
    branch unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + self.scale * branch


class Projection(nn.Module):
    """y = P x + scale * branch, where P takes one number of features to another, at each place in space alike.

    P has no bias, and its entries are normal with standard deviation gain / sqrt(inputs): it keeps the mean square of
    what has mean 0, times gain squared. space: dimensions behind the channels, None where features come last.
    """

    def __init__(self, inputs: int, outputs: int, space: int | None, gain: float) -> None:
        super().__init__()
        self.space = space
        drawn = torch.empty(outputs, inputs, *(1,) * (space or 0), device="cpu", dtype=torch.float32)
        self.weight = nn.Parameter(drawn.normal_(0.0, gain / math.sqrt(inputs), generator=generator()))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        passed = F.linear(x, self.weight) if self.space is None else _CONVOLUTIONS[self.space](x, self.weight)
        return passed + self.scale * branch


class _Open(NamedTuple):
    """A skip that is under way: what is to be added, and by which module."""

    x: Tensor
    skip: nn.Module


def open_skip(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Forward hook of a layer at which a skip begins."""
    skip = attached(layer, NAME)
    if skip is not None:
        setattr(output, _SKIP, _Open(args[0], skip))


def carry_skip(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Forward hook of a module between a layer and its nonlinearity."""
    opened = getattr(args[0], _SKIP, None)
    if opened is not None and output is not args[0]:
        setattr(output, _SKIP, opened)


def close_skip(nonlinearity: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Forward hook of a nonlinearity: its output becomes that of the whole block."""
    opened = getattr(args[0], _SKIP, None)
    return None if opened is None else opened.skip(opened.x, output)


def skip_layer(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Forward hook of a block, or of a layer, with a skip around itself alone (He et al. 2016, figure 2)."""
    skip = attached(layer, NAME)
    return None if skip is None else skip(args[0], output)
