"""Normalization layers: what they normalize by, against what they have in front of them."""

from typing import Any

import torch
from torch import Tensor, nn

from desat.watch.measurements import is_measurable
from desat.watch.modules import Member
from desat.watch.scene import Scene
from desat.watch.statistics import subset

SAMPLE = 65_536
"""Elements of the input that batch statistics are taken from; of a larger one a regular subset of all channels."""

_BATCH = nn.modules.batchnorm._BatchNorm
KINDS = (_BATCH, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def probe_normalization(scene: Scene, member: Member, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Readings of a normalization layer that is about to run."""
    if args and is_measurable(args[0]):
        scene.measurements.readings(scene.module_site(member), lambda: measure_normalization(module, args[0]))


def measure_normalization(module: nn.Module, values: Tensor) -> dict[str, Tensor]:
    """Readings of one normalization layer before it runs on `values`, shape (batch, channels, ...); 0-dim float64.

    `gamma_rms` and `gamma_smallest` (of the magnitude) of the learned scale. Of batch normalization also `batch_size`,
    the elements behind each channel's statistics; and where it keeps running statistics their `momentum` (the share of
    each new batch; not of a plain average, for which torch has None), `running_variance_smallest`,
    `running_variance_largest`, `mean_mismatch` (abs(batch mean - running mean) over the running standard deviation,
    mean over channels) and `variance_mismatch_db` (abs(10 log10(batch variance / running variance)), likewise): what
    the layer will do in evaluation and does not do in training (Ioffe and Szegedy 2015, section 3.1). The running
    statistics are those before this batch.
    """
    readings: dict[str, Tensor] = {}
    # One that is made of another by a parametrization is left alone: making it again may change the training.
    gamma = module._parameters.get("weight")
    if isinstance(gamma, Tensor) and gamma.numel():
        magnitudes = gamma.detach().double().abs()
        readings |= {"gamma_rms": magnitudes.square().mean().sqrt(), "gamma_smallest": magnitudes.min()}
    if isinstance(module, _BATCH) and values.dim() >= 2 and values.numel():
        size = values.numel() // values.shape[1]
        readings["batch_size"] = torch.full((), size, dtype=torch.float64, device=values.device)
        readings |= _running(module, values)
    return readings


def _running(module: nn.modules.batchnorm._BatchNorm, values: Tensor) -> dict[str, Tensor]:
    if module.running_mean is None or module.running_var is None:
        return {}
    variance, mean = module.running_var.double() + module.eps, module.running_mean.double()
    sample = subset(values.detach(), 1, SAMPLE).double().transpose(0, 1).flatten(1)
    batch_variance = sample.var(dim=1, correction=0) + module.eps
    momentum = {} if module.momentum is None else {"momentum": torch.full_like(batch_variance[0], module.momentum)}
    return momentum | {
        "running_variance_smallest": module.running_var.double().min(),
        "running_variance_largest": module.running_var.double().max(),
        "mean_mismatch": ((sample.mean(dim=1) - mean).abs() / variance.sqrt()).mean(),
        "variance_mismatch_db": (10.0 * (batch_variance / variance).log10()).abs().mean(),
    }
