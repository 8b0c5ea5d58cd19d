"""An optimizer's settings and its steps, as the record has them: what its rules reason with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Severity
from desat.record.reader import Record
from desat.record.rows import Site

STEADY = 0.3
"""Share of the median gradient before it that a gradient has, at least, for steps to be compared with it."""

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Sampled steps and a number at each, shapes (samples,)."""


@dataclass(frozen=True)
class Symptom:
    """One way in which an optimizer is degenerate. margin: as in `Episode.confidence`."""

    severity: Severity
    episode: Episode
    margin: float
    site: Site | None
    cause: str
    message: str
    evidence: dict[str, float]
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """Settings of an optimizer's first parameter group, medians over the samples; None where not recorded."""

    momentum: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None


def settings_of(record: Record, optimizer: Site) -> Settings:
    """What the record holds of them; older records hold none."""
    readings = record.readings(optimizer)
    found: dict[str, float] = {}
    for name in Settings.__dataclass_fields__:
        values = readings[name]["value"] if name in readings else np.zeros(0)
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = float(np.median(values))
    return Settings(**found)


def learning_rates(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The steps, sampled or not, whose learning rate is known, and the rates."""
    columns = record.steps()
    known = np.isfinite(columns["learning_rate"])
    return columns["step"][known], columns["learning_rate"][known]


def step_gains(record: Record) -> Series:
    """At each sampled step norm(update) / (learning rate x norm(gradient)), over all parameters."""
    gradient, update = record.grid("parameter", "gradient_rms"), record.grid("parameter", "update_rms")
    norms = _norm(record, gradient.values)
    # What carries on after gradients that have died away tells of them, and not of the momentum.
    fresh = np.array([norm >= STEADY * np.nanmedian(norms[: place + 1]) for place, norm in enumerate(norms)])
    return _per_rate(record, gradient.steps, np.where(fresh, _norm(record, update.values) / norms, np.nan))


def adapted_steps(record: Record) -> Series:
    """At each sampled step rms(update) / learning rate, over all parameters."""
    update = record.grid("parameter", "update_rms")
    there = np.where(np.isfinite(update.values), 1.0, np.nan)
    return _per_rate(record, update.steps, _norm(record, update.values) / _norm(record, there))


def plain_ratios(record: Record) -> Series:
    """At each sampled step learning rate x norm(gradient) / norm(weights): the update ratio without momentum."""
    gradient, size = record.grid("parameter", "gradient_rms"), record.grid("parameter", "rms")
    steps, per_rate = _per_rate(record, gradient.steps, _norm(record, size.values) / _norm(record, gradient.values))
    return steps, 1.0 / per_rate


def _norm(record: Record, values: NDArray[np.float64]) -> NDArray[np.float64]:
    elements = record.grid("parameter", "elements").values
    norm = np.sqrt(np.nansum(np.where(np.isfinite(values), elements * values**2, 0.0), axis=0))
    return np.where(norm > 0.0, norm, np.nan)


def _per_rate(record: Record, steps: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    known, rates = learning_rates(record)
    rate = dict(zip(known.astype(int).tolist(), rates.tolist(), strict=True))
    at = np.array([rate.get(int(step), np.nan) for step in steps])
    per_rate = values / np.where(at > 0.0, at, np.nan)
    finite = np.isfinite(per_rate) & (per_rate > 0.0)
    return steps[finite], per_rate[finite]
