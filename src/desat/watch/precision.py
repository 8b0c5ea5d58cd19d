"""Low precision: loss scales, and the steps that a scaler leaves out because gradients overflowed."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from desat.watch.shipment import Parcel
from desat.watch.stand_in import StandIn
from desat.watch.trouble import Trouble

REMEMBERED = 8
"""Scaled losses that may wait for their backward passes."""


class ScalerTap:
    """Stands in for GradScaler.scale and GradScaler.step from `install` to `uninstall`.

    skipped: called with the optimizer whose step a scaler left out. `has_stepped` is set by who sees an optimizer's
    step end. Scales stay on their device.
    """

    def __init__(self, trouble: Trouble, skipped: Callable[[Optimizer], None]) -> None:
        self.gradient_scale: Tensor | None = None
        """What the gradients of the last backward pass are multiplied by, the scaler's own tensor; None for 1."""
        self._trouble = trouble
        self._skipped = skipped
        self._scale: Tensor | None = None
        self._scaled: list[tuple[weakref.ref[Tensor], Tensor]] = []
        self._pending = False
        self.has_stepped = False
        self._stand_ins = [
            StandIn(torch.amp.GradScaler, "scale", self._around_scale),
            StandIn(torch.amp.GradScaler, "step", self._around_step),
        ]

    def install(self) -> None:
        for stand_in in self._stand_ins:
            stand_in.install()

    def uninstall(self) -> None:
        for stand_in in self._stand_ins:
            stand_in.uninstall()
        self.gradient_scale = self._scale = None
        self._scaled.clear()

    def _around_scale(self, original: Callable[..., Any], scaler: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(scaler, outputs)
        with self._trouble.kept_from_user("the loss scale"):
            self._note(scaler, outputs, scaled)
        return scaled

    def _around_step(
        self,
        original: Callable[..., Any],
        scaler: torch.amp.GradScaler,
        optimizer: Optimizer,
        *args: Any,
        **named: Any,
    ) -> Any:
        self.has_stepped = False
        result = original(scaler, optimizer, *args, **named)
        if not self.has_stepped and isinstance(optimizer, Optimizer) and scaler.is_enabled():
            self._skipped(optimizer)
        return result

    def unscaled(self, loss: Tensor) -> Tensor:
        """The loss whose backward pass begins, without the scale that may be in it.

        One that `scale` returned is what was given to it: the product may have overflowed. The first other one after it
        is taken for a function of it, say its quotient by the number of passes, and divided.
        """
        if self._scale is None:
            return loss
        known = [(scaled, plain) for one, plain in self._scaled if (scaled := one()) is not None]
        original = next((plain for scaled, plain in known if scaled is loss), None)
        self._scaled = [(weakref.ref(scaled), plain) for scaled, plain in known if scaled is not loss]
        is_scaled, self._pending = original is not None or self._pending, False
        self.gradient_scale = self._scale if is_scaled else None
        if original is not None:
            return original
        if not is_scaled or type(loss) is not Tensor or loss.numel() != 1:
            return loss
        return loss.detach() / self._scale.to(loss.device)

    def _note(self, scaler: torch.amp.GradScaler, outputs: Any, scaled: Any) -> None:
        if not scaler.is_enabled() or not isinstance(scaler._scale, Tensor):
            return
        self._scale, self._pending = scaler._scale, True
        pairs = [(outputs, scaled)]
        if isinstance(scaled, (list, tuple)):
            # What was an iterator is used up; what it gave is scaled all the same.
            pairs = list(zip(outputs, scaled, strict=False)) if isinstance(outputs, (list, tuple)) else []
        self._scaled = self._scaled[-REMEMBERED:] + [
            (weakref.ref(product), plain.detach())
            for plain, product in pairs
            if isinstance(plain, Tensor) and isinstance(product, Tensor) and plain.numel() == 1
        ]


def withheld(overflow: Tensor, parcels: Iterable[Parcel]) -> Parcel:
    """Parcels of a step whose gradients say nothing where `overflow`, a number, is not 0.

    A scaler finds its scale by overflows: the gradients of such a step are infinite by its choice, and are not used.
    """
    parcels = list(parcels)

    def rows(arrays: list[NDArray[Any]]) -> list[Row]:
        made, start = list[Row](), 1
        for parcel in parcels:
            made += parcel.rows(arrays[start : start + len(parcel.tensors)])
            start += len(parcel.tensors)
        return [row for row in made if not _is_of_gradient(row)] if arrays[0].any() else made

    return Parcel([overflow, *(tensor for parcel in parcels for tensor in parcel.tensors)], rows)


def _is_of_gradient(row: Row) -> bool:
    return isinstance(row, ParameterStatistics) or (isinstance(row, TensorStatistics) and row.quantity == "gradient")
