"""Settings of an optimizer: what the script chose for its parameter groups, as readings of the optimizer's site."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from desat.record.rows import Reading, Row
from desat.watch.shipment import Parcel

NAMES = {"lr": "learning_rate", "momentum": "momentum", "eps": "epsilon", "weight_decay": "weight_decay"}
"""Names of readings, by the option's name in torch; `betas` are told as `beta1` and `beta2`."""

GROUPS = 8
"""Parameter groups whose settings are told, the first ones."""

Setting = float | Tensor


def settings_of(options: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of one parameter group that are one number each, by the names of their readings.

    Where torch holds a number as a tensor (a learning rate for a captured graph, say) it is the tensor itself.
    """
    found: dict[str, Any] = {name: options.get(key) for key, name in NAMES.items()}
    betas = options.get("betas")
    if isinstance(betas, (tuple, list)):
        found |= {f"beta{place}": beta for place, beta in enumerate(betas[:2], 1)}
    return {name: value for name, value in found.items() if _is_number(value)}


def settings_parcel(optimizer: Optimizer, site: int, number: int) -> Parcel:
    """Readings of an optimizer's settings at the step `number`; no tensor is read here.

    Those of the first group under their names; of the others what differs, as `learning_rate/1` of the second group.
    """
    first: dict[str, Setting] = {}
    settings: dict[str, Setting] = {}
    for place, options in enumerate(optimizer.param_groups[:GROUPS]):
        found = settings_of(options)
        first = first if place else found
        suffix = f"/{place}" if place else ""
        settings |= {
            name + suffix: value for name, value in found.items() if not place or _differ(value, first.get(name))
        }
    # A learning rate that is a tensor may be overwritten in place before the copy to the host ends.
    tensors = {name: value.detach().clone() for name, value in settings.items() if isinstance(value, Tensor)}
    numbers = {name: float(value) for name, value in settings.items() if not isinstance(value, Tensor)}

    def rows(arrays: list[NDArray[Any]]) -> list[Row]:
        arrived = {name: float(array.sum()) for name, array in zip(tensors, arrays, strict=True)}
        return [Reading(site, name, number, value) for name, value in (numbers | arrived).items()]

    return Parcel(list(tensors.values()), rows)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        # NumPy, which reads it in the end, has no bfloat16.
        return type(value) is Tensor and value.numel() == 1 and str(value.dtype) in ("torch.float32", "torch.float64")
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _differ(value: Setting, other: Setting | None) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return value is not other
    return value != other
