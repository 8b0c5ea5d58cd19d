"""Normalization modules for the output of a layer: which kinds fit it, made without random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Kind = Literal["batch", "layer", "rms", "group"]

GROUPS = 32
"""Groups of channels where no number is asked for (Wu and He 2018, section 4.1)."""

SMALLEST_GROUP = 16
"""Numbers that a mean and a variance are taken of, at the least: 16 channels a group do as well as 32 groups (Wu and He
2018, table 3), and below 16 elements degenerate-batchnorm calls a batch's statistics noise."""

SMALL_BATCH = 16
"""Samples below which a batch's statistics cost more than they bring (Wu and He 2018, table 2: with 8 images the error
is 24.8 % by batch and 24.0 % by group normalization, with 16 it is 23.7 % and 24.2 %)."""

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Output:
    """The output of a layer, or what goes into a batch normalization.

    features: units or channels. space: dimensions of a convolution's output behind the channels, 0 for a linear
    layer. shape: None where no batch was seen.
    """

    features: int
    space: int
    shape: tuple[int, ...] | None = None

    @property
    def batch(self) -> int | None:
        return None if self.shape is None else self.shape[0]

    @property
    def is_sequence(self) -> bool:
        """Whether a linear layer's output has more than the dimensions (batch, features)."""
        return self.space == 0 and self.shape is not None and len(self.shape) > 2

    @property
    def is_unbatched(self) -> bool:
        return self.shape is not None and len(self.shape) < 2 + self.space

    @property
    def places(self) -> int:
        """Places in space that share a channel's statistics; 1 where they are not known."""
        return 1 if self.shape is None or not self.space else max(1, torch.Size(self.shape[2:]).numel())


@dataclass(frozen=True)
class Norm:
    """A normalization to be made: the name of its class in torch.nn, its arguments but the features, the features last.

    groups: of GroupNorm alone.
    """

    name: str
    features: int
    groups: int | None = None

    def arguments(self, features: str) -> str:
        """As a user would write them, the number of features in the user's own words."""
        return features if self.groups is None else f"{self.groups}, {features}"

    def make(self) -> nn.Module:
        kind = getattr(nn, self.name)
        return kind(self.features) if self.groups is None else kind(self.groups, self.features)

    def __str__(self) -> str:
        return f"{self.name}({self.arguments(str(self.features))})"


def layer_output(layer: nn.Module, shape: Sequence[int] | None) -> Output | None:
    """The output of a linear or convolutional layer; None for any other."""
    seen = None if shape is None else tuple(shape)
    if isinstance(layer, nn.Linear):
        return Output(layer.out_features, 0, seen)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return Output(layer.out_channels, len(layer.kernel_size), seen)
    return None


def batch_norm_input(module: _BatchNorm, shape: Sequence[int] | None) -> Output:
    """What goes into a batch normalization, by the class of the module and its input's shape."""
    space = next((space for space, kind in _BATCH_NORMS.items() if isinstance(module, kind)), 2)
    seen = None if shape is None else tuple(shape)
    return Output(module.num_features, space if seen is None else len(seen) - 2, seen)


def fitting(output: Output, choice: str, groups: int | None, unseen_sequences: bool) -> Norm | str:
    """The normalization of a kind, or of the kind that fits best (auto), for an output; or why there is none.

    groups: asked for; None: GROUPS, or fewer. unseen_sequences: outputs may have more dimensions than two, where no
    shape was seen.
    """
    if output.is_unbatched:
        return f"its output has the shape {output.shape}: no dimension is the batch"
    kind = best_kind(output) if choice == "auto" else choice
    if kind == "batch":
        return _batch(output, unseen_sequences)
    if kind == "rms":
        if output.space:
            return "RMSNorm is along the last dimension, which is space in a convolution's output: group fits"
        return Norm("RMSNorm", output.features)
    if kind == "layer":
        # Over all channels and places of a sample; LayerNorm itself would need the size of the image.
        return Norm("GroupNorm", output.features, 1) if output.space else Norm("LayerNorm", output.features)
    return _group(output, groups, unseen_sequences)


def best_kind(output: Output) -> Kind:
    """By the kind of layer and the size of the batch (SMALL_BATCH)."""
    if output.batch is None or output.batch < SMALL_BATCH or output.is_sequence:
        return "group" if output.space else "layer"
    return "batch"


def _batch(output: Output, unseen_sequences: bool) -> Norm | str:
    if output.is_sequence:
        return "a batch's statistics would mix the places of a sequence: layer or rms fits"
    if output.shape is None and unseen_sequences and not output.space:
        return "its output may be a sequence, and no batch is at hand to see: layer or rms fits"
    if output.batch == 1:
        return "a batch of one sample has no statistics: layer or group fits"
    return Norm(_BATCH_NORMS[max(1, output.space)].__name__, output.features)


def _group(output: Output, groups: int | None, unseen_sequences: bool) -> Norm | str:
    if output.is_sequence or (output.shape is None and unseen_sequences and not output.space):
        return "GroupNorm takes the second dimension for the channels, which is time in a sequence: layer or rms fits"
    if groups is not None:
        if output.features % groups:
            return f"its {output.features} features do not divide into {groups} groups"
        if output.features * output.places // groups < 2:
            return f"{groups} groups of its {output.features} features would leave nothing of them but zeros"
        return Norm("GroupNorm", output.features, groups)
    most = max(1, min(GROUPS, output.features * output.places // SMALLEST_GROUP))
    fit = max(number for number in range(1, most + 1) if output.features % number == 0)
    return Norm("GroupNorm", output.features, fit)
