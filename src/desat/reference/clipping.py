"""Gradient clipping (Pascanu, Mikolov and Bengio 2013, section 3.2), without changing what is given."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NORM_EPSILON = 1e-6
"""What torch.nn.utils.clip_grad_norm_ adds to the norm before it divides by it; in units of the gradient."""


def global_norm(gradients: Sequence[NDArray[np.floating]]) -> float:
    """The Euclidean norm of all gradients together, of any shapes; in units of the gradient, 0 where there are none.

    Squares neither overflow nor underflow. Raises ValueError where a gradient is not finite.
    """
    arrays = [_finite(gradient, position) for position, gradient in enumerate(gradients)]
    largest = max((float(np.abs(array).max()) for array in arrays if array.size), default=0.0)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(sum(float(np.sum((array / largest) ** 2)) for array in arrays))


def clip_by_norm(gradients: Sequence[NDArray[np.floating]], max_norm: float) -> tuple[list[Array], float]:
    """The gradients, all scaled by one factor so that their norm together is at most max_norm, and the norm before.

    The factor is min(1, max_norm / (norm + NORM_EPSILON)), as PyTorch's: the direction stays, and the norm afterwards
    is below max_norm by a share of NORM_EPSILON / norm. New arrays even where nothing is clipped. Raises ValueError for
    a max_norm that is negative or nan, and where a gradient is not finite, since that has no direction to keep.
    """
    _require_limit("max_norm", max_norm)
    norm = global_norm(gradients)
    factor = min(1.0, max_norm / (norm + NORM_EPSILON))
    return [np.asarray(factor * np.asarray(gradient, dtype=np.float64)) for gradient in gradients], norm


def clip_by_value(gradients: Sequence[NDArray[np.floating]], limit: float) -> list[Array]:
    """The gradients with every component brought into [-limit, limit], which changes the direction.

    Raises ValueError for a limit that is negative or nan, and where a gradient is not finite.
    """
    _require_limit("limit", limit)
    arrays = [_finite(gradient, position) for position, gradient in enumerate(gradients)]
    return [np.asarray(np.clip(array, -limit, limit)) for array in arrays]


def _finite(gradient: NDArray[np.floating], position: int) -> Array:
    array = np.asarray(gradient, dtype=np.float64)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"expected finite gradients, got {count} nan or inf in number {position} of shape {array.shape}"
        )
    return array


def _require_limit(name: str, limit: float) -> None:
    if not limit >= 0.0:
        raise ValueError(f"expected {name} of at least 0, got {limit}")
