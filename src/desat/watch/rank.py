"""Effective rank: in how many directions the units of a layer tell samples apart."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from desat.record.rows import Site
from desat.watch.measurements import is_measurable
from desat.watch.modules import unit_dimension
from desat.watch.sampling import is_occasion, spread
from desat.watch.scene import Scene

ROWS = 64
"""Samples and positions of an output that are looked at: of more a regular subset of each."""

COLUMNS = 64
"""Units of an output that are looked at: of more every so manieth.

The singular values of one output take 0.17 ms of the writer's thread (NumPy releases the interpreter meanwhile), and
their sample 0.02 to 0.1 ms of the training's; so they are measured on occasion only (desat.watch.sampling).
"""

ALIKE = 1e-3
"""Two units are alike if the rms of their difference is below this share of the larger one's rms.

Above the rounding of float16 (5e-4). Units that were drawn at random are told apart all the same: even on two samples
alone, of 64 units one in 500 has a double.
"""


def measure_rank(scene: Scene, site: Site, output: object, producer: str | None) -> None:
    """Readings of an output, see `effective_rank` and `duplicate_units`, on occasion.

    producer: the operation that says which dimension holds the units, see desat.watch.modules.unit_dimension.
    """
    if not is_occasion(scene.samples) or not isinstance(output, Tensor) or not is_measurable(output):
        return
    dimension = unit_dimension(output.dim(), producer)
    if dimension is not None and min(output.shape[dimension], output.numel() // output.shape[dimension]) > 1:
        scene.measurements.deferred(
            site,
            "effective_rank",
            lambda: sample_matrix(output.detach(), dimension),
            lambda matrix: effective_rank(matrix) | duplicate_units(matrix),
        )


def sample_matrix(output: Tensor, dimension: int) -> Tensor:
    """Samples and positions of an output by units: shape (up to ROWS, up to COLUMNS), float32, memory of its own.

    output: any shape; dimension: of it, holds the units.
    """
    others = output.shape[:dimension] + output.shape[dimension + 1 :]
    places = list(spread(others, ROWS))
    places.insert(dimension, *spread(output.shape[dimension : dimension + 1], COLUMNS))
    sample = output[tuple(places)].movedim(dimension, -1)
    own = sample.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return own.reshape(-1, own.shape[-1])


def effective_rank(matrix: NDArray[np.float32]) -> dict[str, float]:
    """exp(entropy of the singular values over their sum), 1 to min(shape), and its share of min(shape).

    matrix: shape (rows, units). 0 of a matrix of zeros; nothing where it holds non-finite values. Source: Roy and
    Vetterli 2007, "The effective rank: a measure of effective dimensionality", section 2. The columns are not centred:
    outputs that are nearly the same for every sample, whatever the little that is left between them, are of rank one,
    which is what collapses (Daneshmand et al. 2020, "Batch normalization provably avoids rank collapse for randomly
    initialised deep networks", section 2; for representations Garrido et al. 2023, "RankMe", section 3).
    """
    if not np.isfinite(matrix).all():
        return {}
    largest = float(np.abs(matrix).max())
    if largest == 0.0:
        return {"effective_rank": 0.0, "effective_rank_share": 0.0}
    try:
        values = np.linalg.svd(matrix.astype(np.float64) / largest, compute_uv=False)
    except np.linalg.LinAlgError:
        return {}
    shares = values[values > 0.0] / values.sum()
    rank = math.exp(-float(shares @ np.log(shares)))
    return {"effective_rank": rank, "effective_rank_share": rank / min(matrix.shape)}


def duplicate_units(matrix: NDArray[np.float32]) -> dict[str, float]:
    """Reading `duplicate_units`: the share of units that are ALIKE another one, 0 to 1.

    matrix: shape (rows, units). Of the units that are not zero throughout; nothing where there are fewer than two of
    them, or non-finite values.
    """
    largest = float(np.abs(matrix).max())
    if not 0.0 < largest < math.inf:
        return {}
    units = matrix.astype(np.float64).T / largest
    squares = np.square(units).sum(axis=1)
    units, squares = units[squares > 0.0], squares[squares > 0.0]
    if len(units) < 2:
        return {}
    differences = squares[:, None] + squares - 2.0 * units @ units.T
    alike = differences <= ALIKE**2 * np.maximum(squares[:, None], squares)
    np.fill_diagonal(alike, False)
    return {"duplicate_units": float(alike.any(axis=1).mean())}
