"""Which gain each layer of a network needs, by the nonlinearities around it."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from desat.cure.anatomy import Anatomy, Call
from desat.cure.gain import NONE, Elementwise, Gain, elementwise, fingerprint, gain_of
from desat.cure.order import following, nonlinearity_curve, parent_of, preceding
from desat.cure.patient import Patient

UNKNOWN_RECTIFIER = math.sqrt(2.0)
"""Without a batch, a nonlinearity that a forward method calls as a function is not seen, and taken for a rectifier."""

_SAME_ELEMENTS = (nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten, nn.Identity)
_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
_POOLS_OF_MEANS = (nn.modules.pooling._AdaptiveAvgPoolNd,)


@dataclass(frozen=True)
class LayerGain:
    """What a layer's weights are multiplied by, and the constant that all of its inputs bear, f(0) of what feeds it."""

    gain: float = 1.0
    offset: float = 0.0


class LayerGains:
    """The gains of a patient's layers, by its order of execution, or without a batch by the order of registration.

    A layer pays in advance for a nonlinearity that follows it, where that can be paid in advance, and makes up for one
    that precedes it otherwise; see desat.cure.gain.Gain. So every layer's input has a mean square of 1 about f(0).
    """

    def __init__(self, patient: Patient) -> None:
        self._model = patient.model
        self._anatomy = patient.anatomy
        self._known: dict[Any, Gain] = {}

    def of(self, path: str, module: nn.Module) -> LayerGain:
        if self._anatomy is None:
            return self._by_registration(path)
        calls = self._anatomy.of(module)
        # What is not called by itself is multiplied by inside another module, as the last matrix of attention is.
        return self._by_execution(self._anatomy, calls[0]) if calls else LayerGain()

    def _by_execution(self, anatomy: Anatomy, call: Call) -> LayerGain:
        after = anatomy.after(call)
        gain = (self._of_call(after).before if after is not None else None) or 1.0
        position, same = anatomy.calls.index(call), True
        for earlier in reversed(anatomy.calls[:position]):
            if earlier.curve is not None:
                if earlier.is_gate:
                    break
                same = same and _elements(earlier.output_shape) == _elements(call.input_shape)
                return _together(gain, self._of_call(earlier), same)
            if not _passes(earlier.module):
                break
            same = same and isinstance(earlier.module, _SAME_ELEMENTS)
        return LayerGain(gain)

    def _by_registration(self, path: str) -> LayerGain:
        nonlinearity, weights_follow = following(self._model, path)
        if nonlinearity is not None:
            gain = self._of_module(nonlinearity).before or 1.0
        else:
            # A Sequential calls nothing between its children; a forward method of the user's may.
            closed = (nn.Sequential, nn.MultiheadAttention)
            open_ended = weights_follow and not isinstance(parent_of(self._model, path), closed)
            gain = UNKNOWN_RECTIFIER if open_ended else 1.0
        same = True
        for module in preceding(self._model, path):
            if nonlinearity_curve(module) is not None:
                return _together(gain, self._of_module(module), same)
            if not _passes(module):
                break
            same = same and isinstance(module, _SAME_ELEMENTS)
        return LayerGain(gain)

    def _of_call(self, call: Call) -> Gain:
        if call.module is not None:
            return self._of_module(call.module)
        return self._measured(elementwise(None, call.function, call.settings, call.keywords))

    def _of_module(self, module: nn.Module) -> Gain:
        return self._measured(elementwise(module, None, (), {}))

    def _measured(self, function: Elementwise) -> Gain:
        try:
            key = fingerprint(function)
            if key not in self._known:
                self._known[key] = gain_of(function)
            return self._known[key]
        except Exception:  # the nonlinearity may be the user's
            return NONE


def _together(gain: float, preceding: Gain, same: bool) -> LayerGain:
    return LayerGain(gain * preceding.after, preceding.offset if same else 0.0)


def _passes(module: nn.Module | None) -> bool:
    """Whether a nonlinearity's scale is still there after a module."""
    return isinstance(module, (*_SAME_ELEMENTS, *_POOLS, *_POOLS_OF_MEANS))


def _elements(shape: Any) -> int | None:
    return None if shape is None else math.prod(shape)
