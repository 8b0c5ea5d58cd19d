"""What was read of the parameters of one step, on the host: their rows, and the readings of the optimizer."""

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from desat.record.rows import ParameterStatistics, Reading, Row
from desat.watch.clipping import SMALLEST, TOLERANCE, Clipping, find_clipping
from desat.watch.entries import Layout
from desat.watch.gradient_noise import NoiseWindow
from desat.watch.optimizers import Epsilons, epsilon_share

Array = TypeVar("Array")


class Shares(NamedTuple):
    """What is known beforehand of the parameters of a part; arrays of shape (parameters,).

    measured: it had a gradient before the step and is there after it. read: entries of the gradient that were read.
    stored: those that it keeps, all or, of a sparse one, the rows that are not zero.
    """

    sites: list[int]
    dtypes: list[str]
    measured: NDArray[np.bool_]
    elements: NDArray[np.int64]
    counts: NDArray[np.int64]
    entries: NDArray[np.int64]
    read: NDArray[np.int64]
    stored: NDArray[np.int64]
    epsilons: Epsilons | None

    @classmethod
    def of(
        cls, layout: Layout, sites: list[int], is_there: list[bool], present: list[bool], read: NDArray[np.int64],
        stored: list[int], epsilons: Epsilons | None,
    ) -> "Shares":  # fmt: skip
        measured = np.array(is_there, np.bool_) & np.array(present, np.bool_)
        dtypes = [str(dtype).removeprefix("torch.") for dtype in layout.dtypes]
        kept = np.array(stored, np.int64)
        return cls(sites, dtypes, measured, layout.elements, layout.counts, layout.entries, read, kept, epsilons)


class StepArrays(NamedTuple, Generic[Array]):
    """One part of one step, on its device and then on the host; see desat.watch.entries for the shapes."""

    shares: Shares
    window: NoiseWindow
    gradients: Array
    magnitudes: Array
    changes: Array
    moments: Array | None
    steps: Array | None

    def tensors(self) -> list[Array]:
        always = [self.gradients, self.magnitudes, self.changes]
        return always if self.moments is None or self.steps is None else [*always, self.moments, self.steps]

    def arrived(self, arrays: Iterator[NDArray[Any]]) -> "StepArrays[NDArray[Any]]":
        """The same on the host: takes as many arrays as there were tensors."""
        gradients, magnitudes, changes = next(arrays), next(arrays), next(arrays)
        moments, steps = (None, None) if self.moments is None else (next(arrays), next(arrays))
        return StepArrays(self.shares, self.window, gradients, magnitudes, changes, moments, steps)


def parameter_rows(
    site: int,
    step: int,
    parts: list[StepArrays[NDArray[Any]]],
    backward: list[NDArray[Any]] | None,
    backward_scale: float | None,
    loss_scale: float | None,
    scale: float | None,
    overflow: float | None,
) -> list[Row]:
    """The rows of all parameters of one optimizer, whose own site is `site`.

    backward: entries of the gradients when the backward pass ended, times `backward_scale`; None where they are not
    known. scale: what the optimizer's gradients are multiplied by. overflow: not 0 where the optimizer did nothing.
    """
    skipped = bool(overflow)
    rows: list[Row] = []
    if loss_scale is not None:
        rows += [Reading(site, "loss_scale", step, loss_scale), Reading(site, "skipped", step, float(skipped))]
    if skipped:
        return rows
    for part in parts:
        rows += _rows_of(part, step, scale or 1.0)
    clipping = None if backward is None else _clipping(parts, backward, backward_scale or 1.0, scale or 1.0)
    if clipping is not None:
        rows += [
            Reading(site, "clip_factor", step, clipping.clip_factor),
            Reading(site, "clipped_value_share", step, clipping.clipped_value_share),
        ]
    norm = _norm(parts) / (scale or 1.0)
    if np.isfinite(norm):
        rows.append(Reading(site, "gradient_norm", step, norm * (clipping.growth if clipping is not None else 1.0)))
    return rows


def _rows_of(part: StepArrays[NDArray[Any]], step: int, scale: float) -> list[Row]:
    shares = part.shares
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Entries that were not read are like those that were; those that a sparse gradient does not keep are zero.
        spread = np.where(shares.read > 0, shares.stored / shares.read, np.where(shares.stored > 0, np.nan, 0.0))
        squares, zeros, nonfinite = (part.magnitudes * spread[:, None]).T.astype(np.float64)
        columns = {
            "rms": _root(part.changes[:, 0], shares.counts - part.changes[:, 1]),
            "gradient_rms": _root(squares, shares.elements - nonfinite) / scale,
            "zeros": (zeros + shares.elements - shares.stored) / shares.elements,
            "nonfinite": nonfinite / shares.elements,
            "update_rms": np.where(part.changes[:, 3] > 0, np.nan, _root(part.changes[:, 2], shares.counts)),
            "unchanged": part.changes[:, 5] / part.changes[:, 4],
            "snr": part.window.add(part.gradients / scale, shares.entries),
        }
        if part.moments is not None and part.steps is not None and shares.epsilons is not None:
            columns["epsilon"] = epsilon_share(part.moments, part.gradients, part.steps, shares.epsilons)
    lists = {name: _without_nan(column) for name, column in columns.items()}
    measured, elements = np.flatnonzero(shares.measured).tolist(), shares.elements.tolist()
    made: list[Row] = [
        ParameterStatistics(
            shares.sites[i], step, elements[i], lists["rms"][i], lists["gradient_rms"][i], lists["zeros"][i],
            lists["nonfinite"][i], lists["update_rms"][i], lists["unchanged"][i],
        )
        for i in measured
    ]  # fmt: skip
    for name, column in (("gradient_snr", lists["snr"]), ("epsilon_share", lists.get("epsilon", []))):
        made += [Reading(shares.sites[i], name, step, column[i]) for i in measured if column and column[i] is not None]
    return made


def _root(squares: NDArray[np.float64], count: NDArray[np.number]) -> NDArray[np.float64]:
    """Root mean square; nan over nothing."""
    return np.sqrt(squares / np.where(count > 0, count, np.nan))


def _without_nan(column: NDArray[np.float64]) -> list[float | None]:
    return [None if value != value else value for value in column.tolist()]


def _norm(parts: list[StepArrays[NDArray[Any]]]) -> float:
    """Of all gradients together; nan or infinite if one of them is not finite, as the optimizer would find it."""
    whole = 0.0
    for part in parts:
        keep = part.shares.measured & (part.shares.read > 0)
        squares, _, nonfinite = part.magnitudes[keep].T
        if nonfinite.any():
            return float("nan")
        whole += float((squares * (part.shares.stored / np.maximum(part.shares.read, 1))[keep]).sum())
    return whole**0.5


def _clipping(
    parts: list[StepArrays[NDArray[Any]]], backward: list[NDArray[Any]], backward_scale: float, scale: float
) -> Clipping | None:
    shares = [part.shares for part in parts]
    dtypes = [dtype for one in shares for dtype in one.dtypes]
    # Where a gradient lost digits is told by what it was in memory, not by what it is without its scale.
    smallest = np.array([SMALLEST[dtype] for dtype in dtypes])
    before = np.concatenate([array.astype(np.float64) for array in backward])
    after = np.concatenate([part.gradients.astype(np.float64) for part in parts])
    before[np.abs(before) < smallest[:, None]] = np.nan
    return find_clipping(
        before / backward_scale,
        np.where(np.abs(after) < smallest[:, None], np.nan, after) / scale,
        np.array([TOLERANCE[dtype] for dtype in dtypes]),
        np.concatenate([one.elements for one in shares]),
    )
