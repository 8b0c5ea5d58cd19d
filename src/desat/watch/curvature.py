"""Curvature: the sharpness of a loss, and how much of it an optimizer can stand."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Optimizer

ITERATIONS = 8
"""Hessian-vector products of one measurement; each costs two to four first gradients."""

BREAKDOWN = 1e-6
"""A new Lanczos vector shorter than this, relative to the largest coefficient, is rounding: all directions are used."""

SEED = 2021
"""Of the private generator that draws the start vector, the same one at every step."""


class Sharpness(NamedTuple):
    """An estimate of the largest algebraic eigenvalue of a Hessian H.

    value: the estimate, from below. residual: norm(H v - value v) / abs(value) of its unit vector v: so near to it, in
    relative terms, there is an eigenvalue; where two lie close together that may be the second.
    """

    value: float
    residual: float


class Hessian:
    """The Hessian of a scalar loss with respect to parameters, as what multiplies a vector.

    The gradients are taken at once, as functions of the parameters; the graph of the loss stays usable, and nothing
    is added to any `.grad`. Vectors are flat, of shape (elements of all parameters,), float64 if a parameter is, else
    float32. Raises RuntimeError where an operation cannot be differentiated twice.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        # A gradient that depends on no parameter adds nothing to the Hessian.
        self._curved = [
            (place, gradient)
            for place, gradient in enumerate(gradients)
            if gradient is not None and gradient.requires_grad
        ]
        wide = any(parameter.dtype is torch.float64 for parameter in self._parameters)
        self.dtype = torch.float64 if wide else torch.float32
        self.device = self._parameters[0].device
        self._sizes = [parameter.numel() for parameter in self._parameters]

    @property
    def size(self) -> int:
        return sum(self._sizes)

    def times(self, vector: Tensor) -> Tensor:
        """H v."""
        parts = vector.split(self._sizes)
        products: Sequence[Tensor | None] = [None] * len(parts)
        if self._curved:
            products = torch.autograd.grad(
                [gradient for _, gradient in self._curved],
                self._parameters,
                [parts[place].view_as(gradient).to(gradient) for place, gradient in self._curved],
                retain_graph=True,
                allow_unused=True,
            )
        return torch.cat(
            [
                torch.zeros_like(part) if product is None else product.reshape(-1).to(part)
                for part, product in zip(parts, products, strict=True)
            ]
        )


@torch.no_grad()
def tridiagonal(hessian: Hessian, iterations: int) -> Tensor:
    """Lanczos coefficients: shape (2, iterations), the diagonal and the elements beside it, the last of which is what
    is left over; on the device of the parameters, with nothing read back to the host.

    Not reorthogonalized: that costs copies of eigenvalues which have converged, and none of their accuracy.
    Source: Golub and Van Loan, Matrix Computations (4th ed.), section 10.1; the start is a fixed normal vector.
    """
    generator = torch.Generator(hessian.device).manual_seed(SEED)
    start = torch.randn(hessian.size, generator=generator, device=hessian.device, dtype=hessian.dtype)
    smallest = torch.finfo(hessian.dtype).tiny
    current, previous = start / torch.linalg.vector_norm(start), torch.zeros_like(start)
    length = torch.zeros((), device=hessian.device, dtype=hessian.dtype)
    diagonal, beside = [], []
    for _ in range(iterations):
        following = hessian.times(current) - length * previous
        along = torch.dot(following, current)
        following = following - along * current
        length = torch.linalg.vector_norm(following)
        diagonal.append(along)
        beside.append(length)
        previous, current = current, following / length.clamp_min(smallest)
    return torch.stack([*diagonal, *beside]).reshape(2, iterations)


def largest_eigenvalue(coefficients: NDArray[Any]) -> Sharpness | None:
    """The largest algebraic eigenvalue that Lanczos coefficients, as from `tridiagonal`, tell of.

    It is never above the true one by more than rounding. None where a coefficient is not finite.
    """
    diagonal, beside = np.asarray(coefficients, np.float64)
    if not np.isfinite(coefficients).all():
        return None
    used_up = np.flatnonzero(beside <= BREAKDOWN * np.abs(coefficients).max())
    size = int(used_up[0]) + 1 if used_up.size else len(diagonal)
    inner = beside[: size - 1]
    values, vectors = np.linalg.eigh(np.diag(diagonal[:size]) + np.diag(inner, 1) + np.diag(inner, -1))
    value, left = float(values[-1]), float(beside[size - 1] * abs(vectors[-1, -1]))
    return Sharpness(value, left / abs(value) if value else math.inf if left else 0.0)


def sharpness(loss: Tensor, parameters: Sequence[Tensor], iterations: int = ITERATIONS) -> Tensor:
    """The largest eigenvalue of the Hessian of a scalar loss with respect to parameters; 0-dim, nan if not finite.

    The largest algebraic one: where all curvature is negative it is negative, however large in magnitude others are.
    Each iteration costs 2 to 4 backward passes, whose hooks run as in any other; the graph of the loss stays usable and
    no `.grad` changes. Waits for the device. Raises RuntimeError where an operation cannot be
    differentiated twice. Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge
    of Stability", section 2.
    """
    hessian = Hessian(loss, parameters)
    found = largest_eigenvalue(tridiagonal(hessian, iterations).cpu().numpy())
    return torch.tensor(math.nan if found is None else found.value, dtype=hessian.dtype, device=hessian.device)


def stability_limit(optimizer: Optimizer | None, parameters: Iterable[Tensor]) -> float | None:
    """The sharpness above which an optimizer's steps on these parameters grow, on a quadratic loss; None if not known.

    Known of torch.optim.SGD with the same settings for all of them: with learning rate r, momentum b, dampening d and
    weight decay w it is (2 + 2 b) / (r (1 - d)) - w, and with Nesterov's momentum (2 + 2 b) / (r (1 + 2 b)) - w.
    Source: Cohen et al. 2021, section 2 and appendix B; weight decay adds w to every eigenvalue of what is minimized.
    """
    if type(optimizer) is not SGD:
        return None
    wanted = {id(parameter) for parameter in parameters}
    groups = [group for group in optimizer.param_groups if any(id(one) in wanted for one in group["params"])]
    names = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
    settings = [tuple(group[name] for name in names) for group in groups]
    if not settings or any(isinstance(value, Tensor) for setting in settings for value in setting):
        return None
    rate, momentum, dampening, nesterov, decay, maximize = settings[0]
    if any(setting != settings[0] for setting in settings) or maximize or rate <= 0 or dampening >= 1:
        return None
    # Without momentum torch does not look at the dampening.
    share = 1 + 2 * momentum if nesterov else 1 - dampening if momentum else 1
    return (2 + 2 * momentum) / (rate * share) - decay
