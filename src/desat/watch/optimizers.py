"""Optimizers that divide by a running second moment: where their epsilon outweighs it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "exp_inf", "square_avg", "sum")
"""Keys of the state that hold what is divided by; the first that a parameter has counts (amsgrad's before Adam's)."""

_CORRECTED = ("max_exp_avg_sq", "exp_avg_sq")
_UNCORRECTED = ("RAdam", "SparseAdam")
"""Optimizers that compare epsilon with the second moment as it is, and correct its bias elsewhere."""


class Setting(NamedTuple):
    """Of one parameter group. key: of the state. beta: decay of a second moment whose bias is corrected, 0 without.

    limit: a moment, or its root if `rooted`, below this is outweighed by epsilon; one below `least` holds nothing yet.
    """

    key: str
    beta: float
    limit: float
    rooted: bool
    least: float


class Epsilons(NamedTuple):
    """What the host needs beside the moments' entries. group: index of each parameter's setting, -1 for none.

    has_step: whether its number of steps is a tensor; steps: the number where it is not. Shape (parameters,).
    """

    settings: list[Setting]
    group: NDArray[np.int64]
    has_step: NDArray[np.bool_]
    steps: NDArray[np.float64]


class Denominators(NamedTuple):
    """What an optimizer divides the steps of some parameters by; steps: those numbers of steps that are tensors."""

    moments: list[Tensor | None]
    steps: list[Tensor]
    epsilons: Epsilons

    def stacked_steps(self) -> Tensor:
        """Shape (tensors,); empty where they do not lie on one device."""
        if not self.steps or any(step.device != self.steps[0].device for step in self.steps):
            return torch.empty(0)
        return torch.stack(self.steps).float()


def denominators(optimizer: Optimizer, parameters: Sequence[Tensor | None]) -> Denominators | None:
    """None where no parameter has one. Reads the optimizer's state, never makes any, and reads no tensor."""
    state, kind = optimizer.state, type(optimizer).__name__
    places = {id(parameter): place for place, parameter in enumerate(parameters) if parameter is not None}
    moments: list[Tensor | None] = [None] * len(parameters)
    group = [-1] * len(parameters)
    numbers = [0.0] * len(parameters)
    with_step: dict[int, Tensor] = {}
    settings: list[Setting] = []
    for options in optimizer.param_groups:
        setting = None
        for parameter in options["params"]:
            place, kept = places.get(id(parameter)), state.get(parameter)
            if place is None or not kept:
                continue
            if setting is None:
                setting = _setting(options, kept, kind)
                if setting is None:
                    break
                settings.append(setting)
            moment, step = kept.get(setting.key), kept.get("step")
            if not isinstance(moment, Tensor) or moment.shape != parameter.shape:
                continue
            moments[place], group[place] = moment, len(settings) - 1
            if isinstance(step, Tensor):
                with_step[place] = step if step.dim() == 0 else step.reshape(-1)[0]
            elif isinstance(step, (int, float)):
                numbers[place] = step
    if not settings:
        return None
    has_step = np.zeros(len(parameters), np.bool_)
    has_step[list(with_step)] = True
    epsilons = Epsilons(settings, np.array(group, np.int64), has_step, np.array(numbers, np.float64))
    return Denominators(moments, [with_step[place] for place in sorted(with_step)], epsilons)


def _setting(options: dict[str, Any], kept: dict[str, Any], kind: str) -> Setting | None:
    """None where nothing is divided by, or not by the moment (RMSprop with centered=True takes the deviation)."""
    key = next((key for key in _MOMENTS if key in kept), None)
    epsilon, beta = options.get("eps"), 0.0
    if key is None or not isinstance(epsilon, (int, float)) or "grad_avg" in kept:
        return None
    if key in _CORRECTED and kind not in _UNCORRECTED:
        beta = (options.get("betas") or (None,))[-1]
        if not isinstance(beta, (int, float)):
            return None
    if key == "exp_inf":
        # Adamax adds epsilon before it takes the maximum: it outweighs a gradient as long as this is twice epsilon.
        return Setting(key, 0.0, 2.0 * epsilon, False, epsilon * (1.0 + 1e-6))
    # Adadelta has epsilon inside of the root.
    return Setting(key, beta, epsilon**0.5 if kind == "Adadelta" else epsilon, True, 0.0)


def epsilon_share(
    moments: NDArray[np.floating],
    gradients: NDArray[np.floating],
    steps: NDArray[np.floating],
    epsilons: Epsilons,
) -> NDArray[np.float64]:
    """Share of the entries whose second moment's root, its bias corrected, is below epsilon; shape (parameters,).

    moments, gradients: shape (parameters, entries), nan where there is none; the moments after the step, in float32, so
    that one below 1e-45 counts as 0. steps: what `stacked_steps` gave. Such entries step by the learning rate times
    gradient over epsilon, without adaption (Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm
    1). Entries with neither a moment nor a gradient do not count, as of a row of an embedding that is not used. nan
    where nothing is known.
    """
    has_step, group = epsilons.has_step, epsilons.group
    beta, limit, rooted, least = (
        np.array([getattr(one, name) for one in epsilons.settings])[group] for name in Setting._fields[1:]
    )
    known = (group >= 0) & (~has_step | (len(steps) == has_step.sum()))
    count = epsilons.steps.copy()
    if len(steps) == has_step.sum():
        count[has_step] = steps
    correction = np.where(beta > 0.0, 1.0 - beta ** np.maximum(count, 1.0), 1.0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = moments.astype(np.float64) / correction
        magnitude = np.where(rooted[:, None], np.sqrt(values), values)
        moving = np.isfinite(gradients) & (gradients != 0.0)
        used = np.isfinite(magnitude) & ((magnitude > least[:, None]) | moving)
        share = (used & (magnitude < limit[:, None])).sum(axis=1) / used.sum(axis=1)
    return np.where(known, share, np.nan)
