"""The probes: what is measured beside the tensors that flow between the modules, one file each, listed here.

A probe is called when a module or a function begins, with the scene, what runs and its arguments; what it returns, if
anything, is called with the output. Both run without function modes, and a fault in one stays in it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.watch import recurrent
from desat.watch.attention import probe_heads, probe_scaled_dot_product, probe_softmax, probe_softmax_module
from desat.watch.functional import Call
from desat.watch.modules import Member
from desat.watch.normalization import KINDS, probe_normalization
from desat.watch.residual import probe_sum
from desat.watch.scene import Scene

Finish = Callable[[Any], None]
ModuleProbe = Callable[[Scene, Member, nn.Module, tuple[Any, ...]], Finish | None]
FunctionProbe = Callable[[Scene, Call, tuple[Any, ...], dict[str, Any]], Finish | None]

MODULE_PROBES: tuple[tuple[tuple[type[nn.Module], ...], ModuleProbe], ...] = (
    (KINDS, probe_normalization),
    (recurrent.KINDS, recurrent.probe_recurrent),
    ((nn.MultiheadAttention,), probe_heads),
    ((nn.Softmax,), probe_softmax_module),
)
"""Kinds of modules, and what is called for each such module."""

FUNCTION_PROBES: dict[Call, FunctionProbe] = {
    F.scaled_dot_product_attention: probe_scaled_dot_product,
    F.softmax: probe_softmax,
    torch.softmax: probe_softmax,
    Tensor.softmax: probe_softmax,
    torch.add: probe_sum,
    Tensor.add: probe_sum,  # what a function mode is given for x + y as well
    Tensor.add_: probe_sum,  # and for x += y
}
"""Functions, and what is called where one is called outside of torch's own leaf modules."""
