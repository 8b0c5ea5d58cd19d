"""The probes: what is measured beside the tensors that flow between the modules, one file each, listed here.

A probe is called when a module or a function begins, with the scene, what runs and its arguments; what it returns, if
anything, is called with the output. Both run without function modes, and a fault in one stays in it.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from desat.watch.functional import Call
from desat.watch.modules import Member
from desat.watch.normalization import KINDS, probe_normalization
from desat.watch.scene import Scene

Finish = Callable[[Any], None]
ModuleProbe = Callable[[Scene, Member, nn.Module, tuple[Any, ...]], Finish | None]
FunctionProbe = Callable[[Scene, Call, tuple[Any, ...], dict[str, Any]], Finish | None]

MODULE_PROBES: tuple[tuple[tuple[type[nn.Module], ...], ModuleProbe], ...] = ((KINDS, probe_normalization),)
"""Kinds of modules, and what is called for each such module."""

FUNCTION_PROBES: dict[Call, FunctionProbe] = {}
"""Functions, and what is called where one is called outside of torch's own leaf modules."""
