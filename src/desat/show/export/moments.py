"""Moments: what a record holds as numbers with tags, step by step; what is exported at once and mirrored live alike.

docs/export.md lists the tags. What the record does not have, NULL, has no tag at that step.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.record.histogram import BINS, LOWEST_EXPONENT, unpack_histograms
from desat.record.news import News, Window
from desat.record.reader import Record
from desat.record.rows import ParameterStatistics, TensorStatistics
from desat.show.words import plain

_TENSOR_STATISTICS = ("mean", "rms", "minimum", "maximum", "zeros", "nonfinite")
_PARAMETER_TAGS = {
    "rms": "parameter_rms",
    "gradient_rms": "gradient_rms",
    "gradient_zeros": "gradient_zeros",
    "gradient_nonfinite": "gradient_nonfinite",
    "update_rms": "update_rms",
    "unchanged": "unchanged",
}


@dataclass(frozen=True)
class Moment:
    """The numbers of one step. time: seconds since 1970, from the start of the run where that is known, else from 0.

    values: by tag, `rms` of what is at `site` as `output_rms/site`; infinite where a value overflowed.
    histograms: by tag, counts of shape (BINS,) as in desat.record.histogram.
    """

    step: int
    time: float
    values: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far the reading is: `done` of `planned` parts."""

    done: int
    planned: int


class Stream:
    """The moments of a record in the order of their steps, each call from where the last one ended."""

    def __init__(self) -> None:
        self._news = News()

    def read(self, record: Record) -> Iterator[tuple[Progress, list[Moment]]]:
        """What is new, in pieces. A step's metrics are moments of their own, at the time they were told."""
        began = start_of(record.information)
        for window in self._news.read(record):
            names = {site.id: plain(site.name) for site in record.sites()}
            yield Progress(window.number, window.windows), _moments(window, names, began)


def start_of(information: dict[str, object]) -> float:
    """When the run began, in seconds since 1970; 0 where it is not known."""
    try:
        return datetime.datetime.fromisoformat(str(information.get("started"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def bucket_limits() -> NDArray[np.float64]:
    """The upper ends of a histogram's buckets, powers of two; the last bucket also has what lies beyond its end."""
    return np.exp2(LOWEST_EXPONENT + 1.0 + np.arange(BINS))


def _moments(window: Window, names: dict[int, str], began: float) -> list[Moment]:
    times = {step.step: _time(step.time, began) for step in window.steps}
    values: dict[int, dict[str, float]] = defaultdict(dict)
    for step in window.steps:
        known = {"loss": step.loss, "learning_rate": step.learning_rate, "watching": step.watching}
        values[step.step] |= _numbers(known)
    for tensor in window.tensors:
        values[tensor.step] |= _of_tensor(tensor, names[tensor.site])
    for parameter in window.parameters:
        values[parameter.step] |= _of_parameter(parameter, names[parameter.site])
    for reading in window.readings:
        values[reading.step] |= _numbers({f"{plain(reading.name)}/{names[reading.site]}": reading.value})
    histograms = _histograms(window.tensors, names)
    moments = [
        Moment(step, times.get(step, began), values[step], histograms.get(step, {}))
        for step in sorted(values.keys() | histograms.keys())
    ]
    told = [
        Moment(metric.step, _time(metric.time, began), _numbers({f"metric/{plain(metric.name)}": metric.value}))
        for metric in window.metrics
    ]
    filled = [moment for moment in [*moments, *told] if moment.values or moment.histograms]
    return sorted(filled, key=lambda moment: moment.step)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Without NULL, and without what is no number: SQLite's columns hold anything."""
    return {tag: float(value) for tag, value in values.items() if isinstance(value, (int, float))}


def _time(seconds: Any, began: float) -> float:
    return began + (float(seconds) if isinstance(seconds, (int, float)) else 0.0)


def _of_tensor(row: TensorStatistics, site: str) -> dict[str, float]:
    found = _numbers({f"{row.quantity}_{name}/{site}": getattr(row, name) for name in _TENSOR_STATISTICS})
    own = _numbers({name: getattr(row, name) for name in ("saturated_low", "saturated_high", "gain")})
    found |= {f"{name}/{site}": value for name, value in own.items()}
    if len(own.keys() & {"saturated_low", "saturated_high"}):
        found[f"saturated/{site}"] = own.get("saturated_low", 0.0) + own.get("saturated_high", 0.0)
    return found


def _of_parameter(row: ParameterStatistics, site: str) -> dict[str, float]:
    found = _numbers({f"{tag}/{site}": getattr(row, name) for name, tag in _PARAMETER_TAGS.items()})
    rms, update = found.get(f"parameter_rms/{site}"), found.get(f"update_rms/{site}")
    if rms and update is not None:
        found[f"update_ratio/{site}"] = update / rms
    return found


def _histograms(rows: list[TensorStatistics], names: dict[int, str]) -> dict[int, dict[str, NDArray[np.float64]]]:
    filled = [row for row in rows if isinstance(row.histogram, bytes) and row.histogram]
    found: dict[int, dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for row, counts in zip(filled, unpack_histograms([row.histogram for row in filled]), strict=True):
        found[row.step][f"{row.quantity}_magnitudes/{names[row.site]}"] = counts
    return found
