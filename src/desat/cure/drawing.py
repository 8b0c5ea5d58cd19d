"""Weights drawn at random from a generator of desat's own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

SEED = 0
"""Weights come from a generator of their own, so that the script's random numbers, and its batches, stay the same."""

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
DRAWN = (*LAYERS, *RECURRENT, nn.MultiheadAttention)
"""The kinds of modules whose weights are drawn."""

GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
"""How many gates are stacked in the weights of a recurrent layer; 1 in others."""

_RECTIFIER_OF_RNN = math.sqrt(2.0)
"""nn.RNN's nonlinearity is tanh or ReLU; for the input's weights of the latter He's gain."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of a module's weights, a view: `fan_in` inputs are summed over, an input reaches `fan_out` outputs.

    recurrent: it leads from a hidden state to the next. gain: that is known without looking at what follows. blocks: of
    how many matrices, one below the other, it is made.
    """

    weight: Tensor
    fan_in: int
    fan_out: int
    recurrent: bool = False
    gain: float | None = None
    blocks: int = 1


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def matrices(module: nn.Module) -> Iterator[Matrix]:
    """The matrices of a module of one of the kinds DRAWN: each gate of a recurrent layer is one."""
    if isinstance(module, LAYERS):
        weight = module.weight
        window = math.prod(weight.shape[2:])
        first, second = weight.shape[0] // getattr(module, "groups", 1) * window, weight.shape[1] * window
        fan_in, fan_out = (first, second) if getattr(module, "transposed", False) else (second, first)
        yield Matrix(weight, max(1, fan_in), max(1, fan_out), blocks=getattr(module, "groups", 1))
    elif isinstance(module, nn.MultiheadAttention):
        for name, weight in module.named_parameters(recurse=False):
            if name.endswith("proj_weight"):
                # The fans are those of the whole, as torch takes them.
                blocks = 3 if name == "in_proj_weight" else 1
                yield Matrix(weight, weight.shape[1], weight.shape[0], gain=1.0, blocks=blocks)
    else:
        gates = GATES.get(_kind(module), 1)
        rectified = str(getattr(module, "mode", getattr(module, "nonlinearity", ""))).lower().endswith("relu")
        for name, weight in module.named_parameters(recurse=False):
            if name.startswith("weight"):
                recurrent = name.startswith("weight_hh")
                parts = 1 if name.startswith("weight_hr") else gates
                gain = _RECTIFIER_OF_RNN if rectified and not recurrent else 1.0
                for gate in weight.detach().chunk(parts):
                    yield Matrix(gate, gate.shape[1], gate.shape[0], recurrent, gain)


def _kind(module: nn.Module) -> str:
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in GATES), "")


def biases(module: nn.Module) -> Iterator[nn.Parameter]:
    """The biases that are added to what the matrices give."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 1 and ("bias" in name) and name not in ("bias_k", "bias_v"):
            yield parameter


def is_computed(module: nn.Module) -> bool:
    """Whether weights are computed before each pass, by torch's parametrizations or by its older hooks."""
    named = module._parameters
    older = any(name.endswith(("_g", "_v", "_orig")) and name != "bias_v" for name in named)
    return is_parametrized(module) or older or (isinstance(module, LAYERS) and named.get("weight") is None)


@torch.no_grad()
def draw(matrix: Matrix, kind: str, gain: float, source: torch.Generator) -> str:
    """Fill a matrix; returns how, in words.

    kind: normal, with standard deviation gain / sqrt(fan_in); uniform, within gain * sqrt(6 / (fan_in + fan_out));
    orthogonal, each block gain times a matrix with orthonormal rows, or columns where there are more rows.
    """
    # Drawn on the CPU, so that a network gets the same weights on every device.
    fresh = torch.empty(matrix.weight.shape, dtype=torch.float32, device="cpu")
    if kind == "normal":
        deviation = gain / math.sqrt(matrix.fan_in)
        matrix.weight.copy_(fresh.normal_(0.0, deviation, generator=source))
        return f"normal, standard deviation {deviation:.4g}"
    if kind == "uniform":
        bound = gain * math.sqrt(6.0 / (matrix.fan_in + matrix.fan_out))
        matrix.weight.copy_(fresh.uniform_(-bound, bound, generator=source))
        return f"uniform within {bound:.4g}"
    parts = [gain * orthogonal(part.flatten(1).shape, source).view_as(part) for part in fresh.chunk(matrix.blocks)]
    matrix.weight.copy_(torch.cat(parts))
    return "orthogonal" if gain == 1.0 else f"orthogonal, times {gain:.4g}"


def orthogonal(shape: torch.Size | tuple[int, int], source: torch.Generator) -> Tensor:
    """A matrix with orthonormal rows, or columns where there are more rows, uniform among those; float32.

    The Q of a Gaussian matrix, its columns turned so that R has a positive diagonal (Mezzadri 2007, section 5).
    """
    rows, columns = shape
    gaussian = torch.empty(max(shape), min(shape), dtype=torch.float32, device="cpu").normal_(generator=source)
    q, r = torch.linalg.qr(gaussian)
    q = q * r.diagonal().sign()
    return q if rows >= columns else q.T


@torch.no_grad()
def set_forget_bias(module: nn.Module, value: float) -> None:
    """Give the forget gate of an LSTM, or the update gate of a GRU, a bias of `value` in all; nothing else changes.

    torch stacks the gates of an LSTM as input, forget, cell, output, and of a GRU as reset, update, new. Both keep the
    more of the old state the larger the bias is.
    """
    gates = GATES[_kind(module)]
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith(("bias_ih", "bias_hh")):
            parameter.chunk(gates)[1].fill_(value if name.startswith("bias_ih") else 0.0)


def has_forget_gate(module: nn.Module) -> bool:
    return bool(_kind(module))
