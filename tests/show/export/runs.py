"""A small record with something in every table, for the tests of exports."""

import numpy as np

from desat.record.histogram import BINS, LOWEST_EXPONENT, pack_histogram
from desat.record.rows import Metric, ParameterStatistics, Reading, Row, Site, Step
from tests.records import SIGMOID_CURVE, statistics

STARTED = "2026-03-01T12:00:00+00:00"
BEGAN = 1772366400.0
"""The same in seconds since 1970."""

STEPS = 6
SAMPLED = (0, 3, 5)


def counts() -> np.ndarray:
    """3 values in [1/4, 1/2), 5 in [1, 2)."""
    found = np.zeros(BINS)
    found[-2 - LOWEST_EXPONENT], found[0 - LOWEST_EXPONENT] = 3, 5
    return found


def small_run(site: str = "net.3", metric: str = "accuracy") -> list[Row]:
    """Six steps, three of them sampled, of a nonlinearity with a parameter before it; some values are missing."""
    rows: list[Row] = [
        Site(0, site, "nonlinearity", "Sigmoid", "train.py:7", 1, SIGMOID_CURVE),
        Site(1, "net.0.weight", "parameter", "Linear", None, 0, None),
        Site(2, "SGD", "optimizer", "SGD", None, 2, None),
    ]
    for step in SAMPLED:
        rows += [
            statistics(
                0, "input", step, rms=0.5 + step, saturated_low=0.25, saturated_high=0.125, gain=0.2, units=10,
                saturated_units=np.packbits(np.arange(10) < step).tobytes(), histogram=pack_histogram(counts()),
            ),
            statistics(0, "output", step, rms=None, nonfinite=1.0, maximum=float("inf")),
            statistics(0, "gradient", step, rms=1e-3 * (step + 1)),
            ParameterStatistics(1, step, 64, 0.5, 1e-2, 0.0, 0.0, 1e-3 * step),
            Reading(2, "momentum/1", step, 0.9),
            Reading(2, "missing", step, None),
        ]  # fmt: skip
    for step in range(STEPS):
        loss = None if step == 2 else 2.0 / (step + 1)
        rows.append(Step(step, 0.5 * step, loss, 0.1, 0.002 if step in SAMPLED else None))
    rows += [Metric(metric, -1, 0.1, 0.05), Metric(metric, 3, 0.7, 1.75), Metric("lost", 3, None, 1.75)]
    return rows
