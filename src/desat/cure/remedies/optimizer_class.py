"""An optimizer becomes one of another class and stays the object that it is."""

import functools
from collections.abc import Collection
from typing import Any
from weakref import ref

import torch
from torch.optim import Optimizer

CLASSES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "sgd": torch.optim.SGD,
}

RATES = {"adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-2, "adagrad": 1e-2, "nadam": 2e-3, "sgd": 1e-2}
"""Learning rates where none is asked for: the defaults of torch's classes; for SGD, where that is 1e-3, the 0.01 of
Bengio 2012, Practical recommendations for gradient-based training, section 3.1.1."""

FLAGS = frozenset(("foreach", "fused", "capturable", "differentiable", "maximize"))
"""Options that say how a step is computed, or in which direction, and not how large it is; they are kept."""

_OF_FUSED = ("_step_supports_amp_scaling", "_need_device_dtype_check_for_fused")
"""Attributes of optimizers whose kernel is fused; torch.amp.GradScaler looks for the first."""


def become(optimizer: Optimizer, kind: type[Optimizer]) -> str | None:
    """Make an optimizer one of another of torch's classes; returns why it cannot be, None where it was done.

    Groups keep their parameters, learning rates and flags, and what else the old class or a scheduler keeps in them;
    other options get the new class's defaults. What was accumulated is gone. Hooks stay.
    """
    wrapped = optimizer.__dict__.get("step")
    if wrapped is not None and not hasattr(wrapped, "_wrapped_by_lr_sched"):
        return "its step was replaced by another function"
    try:
        known = defaults_of(kind).keys()
        groups = [_as_arguments(group, known) for group in optimizer.param_groups]
        # A fused kernel is told to the constructor, too, which makes the optimizer known to a scaler as such.
        flags = {name: groups[0][name] for name in FLAGS & groups[0].keys()}
        fresh = kind(groups, **flags)  # pyright: ignore[reportCallIssue]
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{kind.__name__} cannot be made with its parameters and flags: {error}"
    for group, filled in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({name: value for name, value in filled.items() if name not in ("params", "lr")})
    optimizer.__class__ = kind
    optimizer.defaults = {**fresh.defaults, "lr": optimizer.defaults.get("lr", fresh.defaults["lr"])}
    optimizer.state = fresh.state
    for name in _OF_FUSED:
        optimizer.__dict__.pop(name, None)
    for name in ("_zero_grad_profile_name", *_OF_FUSED):
        if name in fresh.__dict__:
            setattr(optimizer, name, getattr(fresh, name))
    if wrapped is not None:
        optimizer.step = _counted(optimizer, kind)  # pyright: ignore[reportAttributeAccessIssue]
    return None


def _as_arguments(group: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    kept = {name: group[name] for name in FLAGS if name in group and name in known}
    return {"params": list(group["params"]), "lr": group["lr"], **kept}


def defaults_of(kind: type[Optimizer]) -> dict[str, Any]:
    """The options that torch gives an optimizer of which nothing is asked. Raises TypeError where it needs more."""
    parameter = torch.nn.Parameter(torch.empty(1, 1, device="cpu"))
    return kind([parameter]).defaults  # pyright: ignore[reportCallIssue]


def _counted(optimizer: Optimizer, kind: type[Optimizer]) -> Any:
    """The step of the new class, as torch's schedulers wrap it to see that it was called before theirs."""
    living, step = ref(optimizer), kind.step

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        one: Any = living()
        one._opt_called = True
        return step(one, *args, **kwargs)

    wrapper._wrapped_by_lr_sched = True  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper
