"""The gradients of the weights, relative to the weights: over the depth of the network, and over time."""

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.link_budget import GRADIENT_FLOOR
from desat.record.reader import Record


def weight_gradient_ratio(record: Record) -> dict[int, float]:
    """By sampled step: rms(gradient) / rms(weight) of the first layer over that of the last, in dB.

    Parameters called `bias` are left out; so are steps at which fewer than two layers had a finite gradient.
    """
    steps, positions, relative = _relative_gradients(record)
    ratios = {}
    for index, step in enumerate(steps):
        known = np.flatnonzero(np.isfinite(relative[:, index]))
        if len(known) and positions[known[0]] != positions[known[-1]]:
            first = relative[positions == positions[known[0]], index]
            last = relative[positions == positions[known[-1]], index]
            ratios[int(step)] = float(20.0 * np.log10(np.nanmax(first) / np.nanmax(last)))
    return ratios


def weight_gradient_level(record: Record) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sampled steps, and at each the largest rms(gradient) of any parameter in dB, nan where none is finite."""
    gradient = record.grid("parameter", "gradient_rms")
    largest = np.where(np.isfinite(gradient.values), gradient.values, -np.inf).max(axis=0, initial=-np.inf)
    return gradient.steps, np.where(np.isfinite(largest), 20.0 * np.log10(np.maximum(largest, GRADIENT_FLOOR)), np.nan)


def _relative_gradients(record: Record) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Steps, the weights' positions, and rms(gradient) / rms(weight), shape (weights, steps), in order of execution."""
    gradient, size = record.grid("parameter", "gradient_rms"), record.grid("parameter", "rms")
    weights = [index for index, site in enumerate(gradient.sites) if not site.is_bias]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.maximum(gradient.values, GRADIENT_FLOOR) / size.values
    positions = np.array([gradient.sites[index].position for index in weights], np.int64)
    return gradient.steps, positions, relative[weights]
