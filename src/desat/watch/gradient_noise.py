"""Gradient noise: how much of a parameter's gradient is the same from step to step."""

import numpy as np
from numpy.typing import NDArray

WINDOW = 16
"""Sampled steps over which mean and variance of a gradient's entries are taken."""

FEWEST = 4
"""Steps in the window from which on there is a reading."""

ROUNDING = 1e-10
"""A variance of less than this share of the squared mean is that of rounding errors."""


class NoiseWindow:
    """The last gradients of some parameters, on the host; lives in the writer's thread."""

    def __init__(self) -> None:
        self._gradients = np.zeros((WINDOW, 0, 0), np.float32)
        self._present = np.zeros((WINDOW, 0), np.bool_)
        self._total = self._squares = np.zeros((0, 0))
        self._next = 0

    def add(self, gradients: NDArray[np.floating], entries: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take in one step; the signal-to-noise ratio of each parameter, shape (parameters,), nan where unknown.

        gradients: shape (parameters, entries), the same entries each time; nan or infinite ones leave the parameter's
        sample of this step out. entries: how many of each parameter's entries count, from the first on.
        """
        if self._gradients.shape[1:] != gradients.shape:
            self._gradients = np.zeros((WINDOW, *gradients.shape), np.float32)
            self._present = np.zeros((WINDOW, len(gradients)), np.bool_)
            self._total, self._squares = np.zeros(gradients.shape), np.zeros(gradients.shape)
        counted = np.arange(gradients.shape[1]) < entries[:, None]
        finite = np.isfinite(gradients)
        present = (finite | ~counted).all(axis=1)
        new = np.where(finite & present[:, None] & counted, gradients, 0.0).astype(np.float32)
        if self._next:
            for array, sign in ((self._gradients[self._next].astype(np.float64), -1.0), (new.astype(np.float64), 1.0)):
                self._total += sign * array
                self._squares += sign * array * array
        self._present[self._next], self._gradients[self._next] = present, new
        if not self._next:
            # Anew once in a while, so that the rounding errors of a gradient that is gone go as well.
            whole = self._gradients.astype(np.float64)
            self._total, self._squares = whole.sum(axis=0), np.einsum("spe,spe->pe", whole, whole)
        self._next = (self._next + 1) % WINDOW
        return signal_to_noise(self._total, self._squares, self._present.sum(axis=0))


def signal_to_noise(
    total: NDArray[np.float64], squares: NDArray[np.float64], steps: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean over a parameter's entries of mean(g)^2 / var(g), both over steps, the variance unbiased.

    total, squares: sums over the steps of g and g^2, shape (parameters, entries); steps: how many, shape (parameters,).
    Entries that do not vary are left out. nan for fewer than FEWEST steps or if no entry varies. Pure noise gives
    `noise_floor(steps)` in the mean and not 0. Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch
    Training", section 2.2: its simple noise scale is the batch size times sum(var) / sum(mean^2); Liu et al. 2020,
    "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters", section 2.1.
    """
    number = steps[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        power = (total / number) ** 2
        variance = (squares - number * power) / (number - 1)
        varies = (variance > ROUNDING * power) & (number >= FEWEST)
        return np.where(varies, power / variance, 0.0).sum(axis=1) / np.where(varies.any(1), varies.sum(1), np.nan)


def noise_floor(steps: int) -> float:
    """What `signal_to_noise` gives, in the mean, of normal gradients whose true mean is 0: that of F(1, n - 1) / n."""
    return (steps - 1) / ((steps - 3) * steps)
