"""Statistics of one tensor, written to one row, in one pass and without a host synchronisation.

On the CPU a kernel of ours reads the tensor once (kernel.c). Elsewhere, and where the kernel could not be compiled,
torch's own operations do the same.
"""

import functools
import math

import torch
from torch import Tensor

from desat.nonlinearity import TABLE_RANGE, TABLE_SIZE, Curve
from desat.record.histogram import BINS, LOWEST_EXPONENT

try:
    from desat.watch import _kernel  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _kernel = None

COLUMNS = (
    "count", "sum", "sum_of_squares", "minimum", "maximum", "zeros", "nonfinite",
    "saturated_low", "saturated_high", "gain", "sampled",
)  # fmt: skip
"""A row: counts, and sums over the finite values. Rows of several calls of a site are pooled by adding them up.

gain and the histogram, which follows the columns, are of a regular sample of the finite values; sampled is its size.
"""

BINS_START = len(COLUMNS)
WIDTH = BINS_START + BINS

SAMPLE = 2048
"""Elements that gain and histogram are taken from: a standard error of 2.2 % of the gain's deviation."""

LARGEST = 4_194_304
"""Elements of a tensor that are read; of a larger one a regular subset of its first dimension.

The standard error of a mean over n independent elements is sigma / sqrt(n): 0.05 % of sigma here.
"""

_KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_EVERYTHING = (-math.inf, math.inf, 0, TABLE_SIZE, TABLE_RANGE)


def measure(
    tensor: Tensor, row: Tensor, curve: Curve | None = None, unit_dimension: int | None = None
) -> Tensor | None:
    """Write the statistics of `tensor` (any shape, any real floating dtype) into `row` (shape (WIDTH,), float64).

    With the curve of the nonlinearity that takes the tensor as its input, also the saturated counts and the sum of
    abs(f'). Returns, if a unit dimension is given with the curve, one flag per unit: saturated on every sample.
    Nothing is read back to the host.
    """
    if tensor.numel() == 0:
        row.zero_()
        return None
    if tensor.numel() > LARGEST:
        tensor = subset(tensor, unit_dimension)
    if _kernel is not None and tensor.device.type == "cpu" and tensor.dtype in _KINDS:
        return _measure_by_kernel(tensor, row, curve, unit_dimension)
    return measure_by_torch(tensor, row, curve, unit_dimension)


def subset(tensor: Tensor, unit_dimension: int | None, most: int = LARGEST) -> Tensor:
    """A regular subset of at most about `most` elements that keeps all units; the tensor itself if it is small."""
    for dimension in range(tensor.dim()):
        surplus = math.ceil(tensor.numel() / most)
        if surplus <= 1:
            break
        if unit_dimension is not None and dimension == unit_dimension % tensor.dim():
            continue
        stride = min(surplus, tensor.shape[dimension])
        tensor = tensor[(slice(None),) * dimension + (slice(None, None, stride),)]
    return tensor


def _measure_by_kernel(tensor: Tensor, row: Tensor, curve: Curve | None, unit_dimension: int | None) -> Tensor | None:
    tensor, units, inner = _laid_out(tensor, unit_dimension)
    elements = tensor.numel()
    flags = None
    limits = _EVERYTHING
    if curve is not None:
        limits = (curve.low, curve.high, curve.table.data_ptr(), TABLE_SIZE, TABLE_RANGE)
        if unit_dimension is not None:
            flags = torch.empty(units, dtype=torch.uint8)
    length = max(units * inner, 1)
    _kernel.measure(  # pyright: ignore[reportOptionalMemberAccess]
        tensor.data_ptr(), _KINDS[tensor.dtype], elements // length, length, units, inner, SAMPLE, row.data_ptr(),
        *limits, 0 if flags is None else flags.data_ptr(),
    )  # fmt: skip
    return flags


def _laid_out(tensor: Tensor, unit_dimension: int | None) -> tuple[Tensor, int, int]:
    """The tensor with its elements side by side in memory, the number of units, and how many elements of one adjoin."""
    if not tensor.is_contiguous():
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return (tensor, tensor.shape[1], 1) if unit_dimension in (1, -3) else (tensor, tensor.numel(), 1)
        tensor = tensor.contiguous()
    if unit_dimension is None:
        return tensor, tensor.numel(), 1
    shape = tensor.shape
    return tensor, shape[unit_dimension], math.prod(shape[unit_dimension % len(shape) + 1 :])


def measure_by_torch(
    tensor: Tensor, row: Tensor, curve: Curve | None = None, unit_dimension: int | None = None
) -> Tensor | None:
    """The same as `measure` by torch's own operations, on any device."""
    values = tensor.detach()
    if values.dtype != torch.float64:
        values = values.float()
    row.zero_()
    finite = torch.isfinite(values)
    clean = torch.where(finite, values, 0.0)
    double = clean.double()
    low = torch.where(finite, values, math.inf).amin()
    high = torch.where(finite, values, -math.inf).amax()
    sample = _sample(clean, finite)
    statistics = [
        torch.full((), values.numel(), dtype=torch.float64, device=values.device),
        double.sum(),
        double.square().sum(),
        low,
        high,
        (values == 0).sum(),
        values.numel() - finite.sum(),
    ]
    units = None
    if curve is not None:
        is_low, is_high = (clean <= curve.low) & finite, (clean >= curve.high) & finite
        statistics += [is_low.sum(), is_high.sum(), _gain(sample, _table_on(curve, sample.device))]
        if unit_dimension is not None:
            others = [dimension for dimension in range(values.dim()) if dimension != unit_dimension % values.dim()]
            saturated = is_low | is_high
            units = (saturated.all(dim=others) if others else saturated).to(torch.uint8)
    torch.stack([statistic.to(row.dtype) for statistic in statistics], out=row[: len(statistics)])
    row[BINS_START - 1] = (~sample.isnan()).sum()
    row[BINS_START:] = _histogram(sample)
    return units


def _sample(clean: Tensor, finite: Tensor) -> Tensor:
    """Every so manieth element, flat, as the kernel takes them; nan where it is not finite."""
    step = clean.numel() // SAMPLE
    step = step | 1 if step > 1 else 1
    return torch.where(finite, clean, math.nan).reshape(-1)[::step]


def _histogram(sample: Tensor) -> Tensor:
    """Counts of floor(log2(abs(x))), shape (BINS,): frexp's exponent is one more."""
    exponent = torch.frexp(sample.abs().nan_to_num(0.0)).exponent - 1
    place = (exponent - LOWEST_EXPONENT).clamp_(0, BINS - 1).long()
    counted = ((sample != 0) & ~sample.isnan()).double()
    counts = torch.zeros(BINS, dtype=torch.float64, device=sample.device)
    return counts.scatter_add_(0, place, counted)


@functools.lru_cache(maxsize=256)
def _table_on(curve: Curve, device: torch.device) -> Tensor:
    """A curve's table on a device, copied there once; the table never changes, so nobody has to wait for the copy."""
    return curve.table.to(device, non_blocking=True)


def _gain(sample: Tensor, table: Tensor) -> Tensor:
    """Sum of abs(f'), looked up in the curve's table (nearest point; beyond its range the end's value)."""
    scale = (TABLE_SIZE - 1) / (2 * TABLE_RANGE)
    place = ((sample.nan_to_num(0.0).double() + TABLE_RANGE) * scale + 0.5).clamp_(0, TABLE_SIZE - 1).long()
    return (table[place].double() * ~sample.isnan()).sum()
