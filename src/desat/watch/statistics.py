"""Statistics of one tensor, written to one row, without a host synchronisation."""

import math

import torch
from torch import Tensor

from desat.nonlinearity import TABLE_RANGE, TABLE_SIZE, Curve

COLUMNS = (
    "count", "sum", "sum_of_squares", "minimum", "maximum", "zeros", "nonfinite",
    "saturated_low", "saturated_high", "gain",
)  # fmt: skip
"""A row: counts, and sums over the finite values. Rows of several calls of a site are pooled by adding them up."""

WIDTH = len(COLUMNS)

LARGEST_SAMPLE = 65_536
"""Elements of a tensor that are read; of a larger one a regular subset that keeps every unit.

The standard error of a mean over n independent elements is sigma / sqrt(n): 0.4 % of sigma here.
"""


def measure(
    tensor: Tensor, row: Tensor, curve: Curve | None = None, unit_dimension: int | None = None
) -> Tensor | None:
    """Write the statistics of `tensor` (any shape, any real floating dtype) into `row` (shape (WIDTH,), float64).

    With the curve of the nonlinearity that takes the tensor as its input, also the saturated counts and the sum of
    abs(f'). Returns, if a unit dimension is given with the curve, one bool per unit: saturated on every sample.
    Nothing is read back to the host.
    """
    values = subset(tensor.detach(), unit_dimension)
    if values.dtype != torch.float64:
        values = values.float()
    finite = torch.isfinite(values)
    clean = torch.where(finite, values, 0.0)
    double = clean.double()
    count = values.numel()
    if count == 0:
        row.zero_()
        return None
    low, high = torch.aminmax(clean)
    statistics = [
        torch.full((), count, dtype=torch.float64, device=values.device),
        double.sum(),
        double.square().sum(),
        low,
        high,
        (values == 0).sum(),
        count - finite.sum(),
    ]
    units = None
    if curve is None:
        row[len(statistics) :].zero_()
    else:
        is_low, is_high = values <= curve.low, values >= curve.high
        statistics += [is_low.sum(), is_high.sum(), _gain(clean, curve.table).double().sum()]
        if unit_dimension is not None:
            others = [dimension for dimension in range(values.dim()) if dimension != unit_dimension % values.dim()]
            units = (is_low | is_high).all(dim=others) if others else is_low | is_high
    torch.stack([statistic.double() for statistic in statistics], out=row[: len(statistics)])
    return units


def subset(tensor: Tensor, unit_dimension: int | None) -> Tensor:
    """A regular subset of at most about LARGEST_SAMPLE elements that keeps all units; the tensor itself if small."""
    for dimension in range(tensor.dim()):
        surplus = math.ceil(tensor.numel() / LARGEST_SAMPLE)
        if surplus <= 1:
            break
        if unit_dimension is not None and dimension == unit_dimension % tensor.dim():
            continue
        stride = min(surplus, tensor.shape[dimension])
        tensor = tensor[(slice(None),) * dimension + (slice(None, None, stride),)]
    return tensor


def _gain(values: Tensor, table: Tensor) -> Tensor:
    """abs(f') of each value, looked up in the curve's table (nearest point; beyond its range the end's value)."""
    scale = (TABLE_SIZE - 1) / (2 * TABLE_RANGE)
    index = ((values + TABLE_RANGE) * scale).round_().clamp_(0, TABLE_SIZE - 1).long()
    return table.to(values.device)[index]
