"""Measurements: what the taps and the probes of a sampled step measure with."""

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.buffer import Entry, StatisticsBuffer
from desat.watch.readings import JointReduction, Readings, Reduction
from desat.watch.shipment import Parcel
from desat.watch.statistics import measure
from desat.watch.trouble import Trouble


class _Output(NamedTuple):
    """The output read last: whose it was, in which row it stands, and its flags, if it was read with a curve."""

    tensor: Callable[[], Tensor | None]
    version: int
    site: Site
    row: int
    units: Tensor | None


class Measurements:
    """Takes statistics, readings and gradients, each booked to the forward pass it belongs to.

    A site at which something fails is measured no more. `seconds` is the time spent in gradient hooks since `start`.
    """

    def __init__(self, trouble: Trouble) -> None:
        self.seconds = 0.0
        self._trouble = trouble
        self._buffer = StatisticsBuffer()
        self._readings = Readings()
        self._passes = self._forward_pass = 0
        self._learned: set[int] = set()
        self._handles: list[RemovableHandle] = []
        self._muted = False
        self._followed_by: dict[int, tuple[Curve, int | None]] = {}
        self._last: _Output | None = None

    def start(self) -> None:
        self.seconds = 0.0

    def stop(self) -> None:
        """Remove the hooks on tensors."""
        while self._handles:
            self._handles.pop().remove()

    @property
    def hooks(self) -> int:
        """How many hooks on tensors there are, all of this step."""
        return len(self._handles)

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Gradients that arrive inside are not the user's, and are not measured."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def begin_pass(self) -> None:
        """What is measured from here on belongs to a new forward pass."""
        self._passes += 1
        self._forward_pass = self._passes

    def __len__(self) -> int:
        """How many tensors were measured since the last `take`."""
        return len(self._buffer)

    def take(self, step: int) -> list[Parcel]:
        """What was measured since the last call."""
        learned, self._learned, self._last = self._learned, set(), None
        return [self._buffer.take(step, learned), self._readings.take(step, learned)]

    def tensor(
        self,
        site: Site,
        quantity: str,
        tensor: Tensor,
        curve: Curve | None = None,
        unit_dimension: int | None = None,
    ) -> None:
        """Statistics of a measurable tensor; see desat.watch.statistics.measure.

        A tensor that is read as one site's output and then comes as the next one's input is not read twice.
        """
        if self._trouble.is_off(site.name):
            return
        try:
            if quantity == "output":
                self._read_output(site, tensor)
            elif curve is None or not self._share_output(site, quantity, tensor, curve, unit_dimension):
                self._read(site, quantity, tensor, curve, unit_dimension, quantity == "input")
        except Exception as error:
            self._trouble.report(site.name, error)

    def _read(
        self, site: Site, quantity: str, tensor: Tensor, curve: Curve | None, unit_dimension: int | None, flagged: bool
    ) -> tuple[int, Tensor | None]:
        with torch.no_grad():
            units = measure(tensor, self._buffer.row(tensor.device), curve, unit_dimension)
        entry = Entry(site, quantity, tensor.dtype, units if flagged else None, self._forward_pass)
        return self._buffer.keep(tensor.device, entry), units

    def _read_output(self, site: Site, tensor: Tensor) -> None:
        """With the curve of the nonlinearity that took this site's output as its input at an earlier sampled step."""
        curve, unit_dimension = self._followed_by.get(site.id, (None, None))
        row, units = self._read(site, "output", tensor, curve, unit_dimension, False)
        self._last = _Output(weakref.ref(tensor), tensor._version, site, row, units)

    def _share_output(
        self, site: Site, quantity: str, tensor: Tensor, curve: Curve, unit_dimension: int | None
    ) -> bool:
        """Whether an input is the output just read, unchanged and with the right curve, and so needs no reading."""
        last = self._last
        if last is None or last.tensor() is not tensor or last.version != tensor._version:
            return False
        if self._followed_by.get(last.site.id) != (curve, unit_dimension):
            self._followed_by[last.site.id] = (curve, unit_dimension)
            return False
        entry = Entry(site, quantity, tensor.dtype, last.units, self._forward_pass)
        self._buffer.share(tensor.device, last.row, entry)
        return True

    def readings(self, site: Site, values: Callable[[], dict[str, Tensor]]) -> None:
        """Named numbers of a site, 0-dim tensors that own their memory; `values` is called without gradients."""
        with self._guarded(site):
            self._readings.add(site, values(), self._forward_pass)

    def deferred(self, site: Site, name: str, tensor: Callable[[], Tensor], reduction: Reduction) -> None:
        """A small tensor that owns its memory, which the writer's thread reduces to named numbers."""
        with self._guarded(site):
            self._readings.defer(site, name, tensor(), reduction, self._forward_pass)

    def gathered(
        self, site: Site, name: str, tensors: Callable[[], dict[str, Tensor]], reduction: JointReduction
    ) -> dict[str, Tensor] | None:
        """Several tensors that own their memory, for one reduction in the writer's thread; see Readings.gather."""
        if not self._trouble.is_off(site.name):
            with self._guarded(site):
                return self._readings.gather(site, name, tensors, reduction, self._forward_pass)
        return None

    def gradient(self, site: Site, tensor: Tensor, then: Callable[[Tensor], None] | None = None) -> None:
        """Measure the gradient that comes back to a tensor; or hand it to `then`, called without gradients."""
        if tensor.requires_grad:
            hook = functools.partial(self._arrived, site, self._forward_pass, then)
            self._handles.append(tensor.register_hook(hook))

    def _arrived(self, site: Site, forward_pass: int, then: Callable[[Tensor], None] | None, gradient: Tensor) -> None:
        if self._muted:
            return
        started = time.perf_counter()
        if is_measurable(gradient):
            self._forward_pass = forward_pass
            self._learned.add(forward_pass)
            if then is None:
                self.tensor(site, "gradient", gradient)
            else:
                with self._guarded(site):
                    then(gradient)
        self.seconds += time.perf_counter() - started

    def _guarded(self, site: Site) -> "_Guard":
        return _Guard(site.name, self._trouble)


class _Guard:
    """Runs its body without gradients and function modes; an error in it switches the site off."""

    def __init__(self, place: str, trouble: Trouble) -> None:
        self._place, self._trouble = place, trouble
        self._no_grad, self._plain = torch.no_grad(), torch._C.DisableTorchFunction()

    def __enter__(self) -> None:
        self._no_grad.__enter__()
        self._plain.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._plain.__exit__(None, None, None)
        self._no_grad.__exit__(None, None, None)
        if isinstance(error, Exception):
            self._trouble.report(self._place, error)
            return True
        return False


def is_measurable(value: Any) -> bool:
    """A plain real floating tensor with elements; not one that torch.func has wrapped or a compiler traces."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
        and not torch.compiler.is_compiling()
    )
