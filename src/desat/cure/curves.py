"""The losses of a search's trials, few enough points of each to keep and to draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from desat.cure.proof import Result, Run

MOST_POINTS = 500
"""Points of a curve that are kept; a longer one keeps every n-th step, the same n for all, so that they can be laid
beside each other. A screen shows no more."""


def loss_curves(result: Result) -> list[dict[str, Any]]:
    """JSON values: for the baseline (of no remedies), then for each candidate as ranked, the runs by seed.

    A run has the numbers of the `steps` that are kept, from 0, and their `losses`, null where there was no finite one.
    """
    ranked = [((), result.baseline), *((one.candidate, one.runs) for one in result.tried)]
    longest = max((run.outcome.steps for _, runs in ranked for run in runs.values()), default=0)
    stride = max(1, -(-longest // MOST_POINTS))
    return [{"apply": list(candidate), "runs": _runs(runs, stride)} for candidate, runs in ranked]


def _runs(runs: Mapping[int, Run], stride: int) -> list[dict[str, Any]]:
    return [
        {
            "seed": seed,
            "steps": list(range(0, runs[seed].outcome.steps, stride)),
            "losses": [float(x) if np.isfinite(x) else None for x in runs[seed].outcome.losses[::stride]],
        }
        for seed in sorted(runs)
    ]
