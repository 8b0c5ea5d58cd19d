"""Entries: which entries of the parameters are looked at, always the same ones, and all parameters in one go.

On the CPU one call of the kernel serves all parameters (kernel.c); elsewhere, and where it could not be compiled, a
few of torch's operations do the same. Nothing is read back to the host.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from desat.watch import statistics
from desat.watch.statistics import LARGEST

VALUES = 512
"""Entries of a parameter whose value and change are measured: a root mean square of normal values to 3.1 %."""

GRADIENTS = 128
"""Of these entries, those whose gradient and second moment are kept: a share to 4.4 %, at 512 bytes a parameter."""

CHUNK = 4096
"""Entries side by side that are read of a gradient of more than LARGEST entries, of which only a part is read."""

KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""The dtypes that are measured, with the kernel's number for each."""

_NAMES = ("magnitudes", "gather", "changes")


class Span(NamedTuple):
    """The part of a tensor, flat in memory, that is read: `slices` of `length` entries, `stride` apart."""

    slices: int
    stride: int
    length: int

    @classmethod
    def of(cls, elements: int) -> "Span":
        if elements <= LARGEST:
            return cls(1, elements, elements)
        stride = math.ceil(elements * CHUNK / LARGEST)
        return cls(elements // stride, stride, CHUNK)

    @property
    def read(self) -> int:
        return self.slices * self.length


def spacing(elements: int, most: int, row: int) -> int:
    """Distance of the entries in a regular sample of at most `most`; prime to the row's length, to meet all columns."""
    step = math.ceil(elements / most)
    while step > 1 and math.gcd(step, row) > 1:
        step += 1
    return step


class Table:
    """Rows of int64 for the kernel, and where they lie."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = np.ascontiguousarray(rows)
        self.address = self.rows.ctypes.data


@dataclass(frozen=True, eq=False)
class Layout:
    """Parameters of one optimizer on one device, in a fixed order, and which of their entries are looked at.

    Entry j of a sample of parameter i is its entry `j * steps[i]` in the order of its dimensions; `counts[i]` there
    are. The gradient's sample is every `every[i]`-th of these, `entries[i]` in number. All arrays: shape (parameters,).
    """

    device: torch.device
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    elements: NDArray[np.int64]
    steps: NDArray[np.int64]
    counts: NDArray[np.int64]
    every: NDArray[np.int64]
    entries: NDArray[np.int64]

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> "Layout":
        elements = np.array([parameter.numel() for parameter in parameters], np.int64)
        rows = [parameter.shape[-1] if parameter.dim() else 1 for parameter in parameters]
        steps = np.array([spacing(n, VALUES, row) for n, row in zip(elements.tolist(), rows, strict=True)], np.int64)
        counts = -(-elements // steps)
        every = np.array([spacing(n, GRADIENTS, row) for n, row in zip(counts.tolist(), rows, strict=True)], np.int64)
        return cls(
            parameters[0].device,
            tuple(parameter.shape for parameter in parameters),
            tuple(parameter.dtype for parameter in parameters),
            elements, steps, counts, every, -(-counts // every),
        )  # fmt: skip

    @property
    def by_kernel(self) -> bool:
        kernel = statistics._kernel
        return kernel is not None and self.device.type == "cpu" and all(hasattr(kernel, name) for name in _NAMES)

    @property
    def precise(self) -> torch.dtype:
        """Of sums. Apple's GPUs have no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @cached_property
    def value_table(self) -> Table:
        """Of each parameter kind, step, count, every."""
        kinds = np.array([KINDS[dtype] for dtype in self.dtypes], np.int64)
        return Table(np.stack([kinds, self.steps, self.counts, self.every], axis=1))

    @cached_property
    def gradient_table(self) -> Table:
        kinds = self.value_table.rows[:, 0]
        return Table(np.stack([kinds, self.steps * self.every, self.entries, self.every], axis=1))

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        return tuple(Span.of(elements) for elements in self.elements.tolist())

    @cached_property
    def span_table(self) -> Table:
        rows = [(KINDS[dtype], *span) for dtype, span in zip(self.dtypes, self.spans, strict=True)]
        return Table(np.array(rows, np.int64))

    @cached_property
    def read(self) -> NDArray[np.int64]:
        """How many entries of each gradient are read."""
        return np.array([span.read for span in self.spans], np.int64)

    @cached_property
    def read_on_device(self) -> Tensor:
        return torch.from_numpy(self.read).to(self.device)

    @cached_property
    def blanks(self) -> Tensor:
        return torch.full((VALUES,), math.nan, device=self.device)

    @cached_property
    def buffer(self) -> Tensor | None:
        """For the values before a step, where the kernel takes them: memory that need not be had anew each time."""
        return torch.empty(len(self.shapes), VALUES, dtype=self.precise) if self.by_kernel else None

    @cached_property
    def in_values(self) -> Tensor:
        """For each entry of the gradients' samples its place among the values', shape (parameters, GRADIENTS)."""
        places = np.arange(GRADIENTS) * self.every[:, None]
        return torch.from_numpy(np.minimum(places, self.counts[:, None] - 1)).to(self.device)

    @cached_property
    def is_value(self) -> Tensor:
        """Which places of a (parameters, VALUES) table are no padding."""
        return torch.from_numpy(np.arange(VALUES) < self.counts[:, None]).to(self.device)

    def addresses(self, tensors: Sequence[Tensor | None]) -> tuple[list[int], list[int]]:
        """Where tensors of the parameters' shapes lie; 0 for none, and for those that the kernel cannot read.

        The places of the latter come second: they do not lie in memory as the entries are counted, in the same dtype.
        """
        found, odd = [], []
        for place, (tensor, dtype) in enumerate(zip(tensors, self.dtypes, strict=True)):
            if tensor is None:
                found.append(0)
            elif tensor.dtype is dtype and tensor.is_contiguous():
                found.append(tensor.data_ptr())
            else:
                found.append(0)
                odd.append(place)
        return found, odd

    def sampled(self, tensor: Tensor, place: int, gradient: bool) -> Tensor | None:
        """The sample of one tensor of the parameter's shape, flat; None of a sparse one that is not reduced yet."""
        every = int(self.every[place]) if gradient else 1
        step, count = int(self.steps[place]) * every, int((self.entries if gradient else self.counts)[place])
        if tensor.layout is torch.strided and tensor.is_contiguous():
            return tensor.as_strided((count,), (step,))
        if tensor.layout is torch.strided:
            return tensor[self._indices(place, step, count)[1:]]
        return _stored(tensor, self._indices(place, step, count)[0]) if tensor.layout is torch.sparse_coo else None

    @cached_property
    def _known_indices(self) -> dict[tuple[int, int], tuple[Tensor, ...]]:
        return {}

    def _indices(self, place: int, step: int, count: int) -> tuple[Tensor, ...]:
        """Of the entries of a sample: places in the order of dimensions, and the index in each dimension."""
        if (place, step) not in self._known_indices:
            flat = np.arange(count) * step
            indices = (flat, *np.unravel_index(flat, self.shapes[place]))
            self._known_indices[place, step] = tuple(torch.from_numpy(index).to(self.device) for index in indices)
        return self._known_indices[place, step]


def take_values(layout: Layout, tensors: Sequence[Tensor | None], out: Tensor | None = None) -> Tensor:
    """The entries of all parameters, shape (parameters, VALUES), exact; nan where there is none. out: layout.buffer."""
    return _take(layout, tensors, False, VALUES, layout.precise, out)


def take_gradients(layout: Layout, tensors: Sequence[Tensor | None]) -> Tensor:
    """Fewer entries of tensors of the parameters' shapes, shape (parameters, GRADIENTS), float32; nan for none.

    A magnitude under 1e-45 becomes zero, one over 3e38 infinite.
    """
    return _take(layout, tensors, True, GRADIENTS, torch.float32)


def _take(
    layout: Layout,
    tensors: Sequence[Tensor | None],
    gradient: bool,
    width: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    if not layout.by_kernel:
        pieces = [tensor if tensor is None else layout.sampled(tensor, i, gradient) for i, tensor in enumerate(tensors)]
        return _side_by_side(layout, pieces, width).to(dtype)
    table = layout.gradient_table if gradient else layout.value_table
    taken = torch.empty(len(tensors), width, dtype=dtype) if out is None else out
    addresses, odd = layout.addresses(tensors)
    statistics._kernel.gather(  # pyright: ignore[reportOptionalMemberAccess]
        addresses, table.address, width, taken.data_ptr(), dtype is torch.float64
    )
    for place in odd:
        tensor = tensors[place]
        if tensor is not None and (piece := layout.sampled(tensor, place, gradient)) is not None:
            taken[place, : len(piece)] = piece
    return taken


def _side_by_side(layout: Layout, pieces: Sequence[Tensor | None], width: int) -> Tensor:
    parts: list[Tensor] = []
    for piece in pieces:
        missing = width
        if piece is not None:
            parts.append(piece)
            missing -= len(piece)
        if missing:
            parts.append(layout.blanks[:missing])
    return torch.cat(parts).view(-1, width)


def _stored(gradient: Tensor, flat: Tensor) -> Tensor | None:
    """Entries of a reduced sparse gradient, zero where it keeps none; None where more than one dimension is sparse."""
    if not gradient.is_coalesced() or gradient.sparse_dim() != 1:
        return None
    rows, values = gradient.indices()[0], gradient.values()
    if not len(rows):
        return torch.zeros(len(flat), dtype=values.dtype, device=values.device)
    values = values.reshape(len(rows), -1)
    row, column = flat // values.shape[1], flat % values.shape[1]
    place = torch.searchsorted(rows, row).clamp_(max=len(rows) - 1)
    return torch.where(rows[place] == row, values[place, column], 0.0)


def measure_magnitudes(layout: Layout, tensors: Sequence[Tensor | None]) -> tuple[Tensor, NDArray[np.int64]]:
    """Of each gradient the sum of the squares of its finite entries, its zeros, and its non-finite entries.

    Shape (parameters, 3), and how many entries these are of, shape (parameters,), which is 0 where there is no tensor.
    A gradient is read whole up to LARGEST entries.
    """
    read, table = layout.read, layout.span_table
    addresses = layout.addresses(tensors)[0] if layout.by_kernel else []
    if not all(addresses) or not layout.by_kernel:
        flats = [None if tensor is None else _flat(tensor) for tensor in tensors]
        spans = [Span.of(0 if flat is None else flat.numel()) for flat in flats]
        kinds = [0 if flat is None else KINDS.get(flat.dtype, 0) for flat in flats]
        table = Table(
            np.array([(kind, *span) for kind, span in zip(kinds, spans, strict=True)], np.int64).reshape(-1, 4)
        )
        read = table.rows[:, 1] * table.rows[:, 3]
        if not layout.by_kernel:
            whole = layout.read_on_device if (read == layout.read).all() else torch.from_numpy(read).to(layout.device)
            return _magnitudes_by_torch(layout, flats, table.rows, whole), read
        addresses = [0 if flat is None else flat.data_ptr() for flat in flats]
    measured = torch.empty(len(tensors), 3, dtype=torch.float64)
    statistics._kernel.magnitudes(  # pyright: ignore[reportOptionalMemberAccess]
        addresses, table.address, measured.data_ptr()
    )
    return measured, read


def _flat(tensor: Tensor) -> Tensor | None:
    """The entries that a tensor keeps, side by side; None of a sparse one that is not reduced yet."""
    if tensor.layout is torch.sparse_coo:
        if not tensor.is_coalesced():
            return None
        tensor = tensor.values()
    if tensor.layout is not torch.strided:
        return None
    tensor = tensor.detach() if tensor.dtype in KINDS else tensor.detach().float()
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).reshape(-1)
    return tensor.reshape(-1)


def _magnitudes_by_torch(
    layout: Layout, flats: Sequence[Tensor | None], table: NDArray[np.int64], read: Tensor
) -> Tensor:
    norms: list[Tensor] = []
    counts: list[Tensor] = []
    nothing = torch.zeros((), dtype=layout.precise, device=layout.device)
    none = torch.zeros((), dtype=torch.int64, device=layout.device)
    for flat, (_, slices, stride, length) in zip(flats, table.tolist(), strict=True):
        if flat is None:
            norms.append(nothing)
            counts += [none, none]
            continue
        piece = flat if slices == 1 else flat.as_strided((slices, length), (stride, 1))
        clean = piece.nan_to_num(0.0, 0.0, 0.0)
        norms.append(torch.linalg.vector_norm(clean, dtype=layout.precise))
        counts += [torch.count_nonzero(piece), torch.count_nonzero(clean)]
    present, finite = torch.stack(counts).view(-1, 2).unbind(1)
    return torch.stack(
        [torch.stack(norms).square(), *(count.to(layout.precise) for count in (read - present, present - finite))],
        dim=1,
    )


def measure_changes(layout: Layout, tensors: Sequence[Tensor | None], before: Tensor, gradients: Tensor) -> Tensor:
    """What a step changed: before and gradients as `take_values` and `take_gradients` gave them before it.

    Shape (parameters, 6): sum of the squares of the finite values, how many are not; the same of the changes; how many
    entries have a finite gradient other than zero, and how many of these have the value they had.
    """
    addresses, odd = layout.addresses(tensors) if layout.by_kernel else ([], [])
    if layout.by_kernel and not odd:
        changed = torch.empty(len(tensors), 6, dtype=torch.float64)
        statistics._kernel.changes(  # pyright: ignore[reportOptionalMemberAccess]
            addresses, layout.value_table.address, VALUES, before.data_ptr(), GRADIENTS, gradients.data_ptr(),
            changed.data_ptr(),
        )  # fmt: skip
        return changed
    values = take_values(layout, tensors)
    change = values - before
    known, known_change = values.isfinite(), change.isfinite()
    tracked = change.gather(1, layout.in_values)
    moving = gradients.isfinite() & (gradients != 0) & tracked.isfinite()
    numbers = [
        torch.where(known, values, 0.0).square().sum(1),
        (~known & layout.is_value).sum(1),
        torch.where(known_change, change, 0.0).square().sum(1),
        (~known_change & layout.is_value).sum(1),
        moving.sum(1),
        (moving & (tracked == 0)).sum(1),
    ]
    return torch.stack([number.to(layout.precise) for number in numbers], dim=1)
