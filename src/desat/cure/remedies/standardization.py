"""The standardization of an input by what the training has seen so far."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

WIDEST = 10.0
"""Standard deviations beyond which a value is held: of a feature that is nearly constant, one that is not would be many
hundreds (OpenAI Baselines, VecNormalize, holds them at 10, too)."""


class Standardization(nn.Module):
    """Zero mean and unit variance for each feature, by the training batches seen so far, this one included.

    features: how many; dimension: which of the input's holds them; position: of the input in a call's arguments.
    count, mean, squares: numbers seen of each feature, their mean, and the sum of their squared distances from it, in
    float64 (shapes (), (features,), (features,)). A feature that has been constant is 0. The statistics grow in
    training passes, and stay as they are in evaluation and without gradients; before the first training batch the input
    is left as it is.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, features: int, dimension: int, position: int = 0, device: torch.device | None = None) -> None:
        super().__init__()
        self.dimension = dimension
        self.position = position
        exact = torch.float32 if device is not None and device.type == "mps" else torch.float64
        self.register_buffer("count", torch.zeros((), dtype=exact, device=device))
        for name in ("mean", "squares"):
            self.register_buffer(name, torch.zeros(features, dtype=exact, device=device))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.training and torch.is_grad_enabled():
            self._see(wide.detach())
        shape = [1] * x.dim()
        shape[self.dimension] = -1
        seen = self.count > 0
        variance = self.squares / self.count.clamp(min=1.0)
        # Of a constant feature only the rounding of the mean is left, which must not be blown up.
        constant = variance <= (torch.finfo(wide.dtype).eps * self.mean).square()
        scale = torch.where(constant, 0.0, variance.where(~constant, 1.0).rsqrt())
        mean, scale = (one.to(wide.dtype).view(shape) for one in (self.mean, scale))
        standard = ((wide - mean) * scale).clamp(-WIDEST, WIDEST)
        return torch.where(seen, standard, wide).to(x.dtype)

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments of a call, that at `position` standardized if it is a tensor of real numbers."""
        return self._with(args, self)

    def preview(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What `enter` will give, the statistics left as they are; no hook hears of it."""
        return self._with(args, copy.deepcopy(self).forward)

    def _with(self, args: tuple[Any, ...], function: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        place = self.position
        if place >= len(args) or not isinstance(args[place], Tensor) or not args[place].is_floating_point():
            return args
        return (*args[:place], function(args[place]), *args[place + 1 :])

    @torch.no_grad()
    def _see(self, x: Tensor) -> None:
        """Take a batch in: the parallel update of Chan, Golub and LeVeque (1979)."""
        others = [place for place in range(x.dim()) if place != self.dimension % x.dim()]
        number = x.numel() // max(1, x.shape[self.dimension])
        if number == 0:
            return
        exact = self.mean.dtype
        variance, mean = torch.var_mean(x, dim=others, correction=0)
        variance, mean = variance.to(exact), mean.to(exact)
        total = self.count + number
        distance = mean - self.mean
        self.squares += variance * number + distance.square() * (self.count * number / total)
        self.mean += distance * (number / total)
        self.count += number

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Go along to another device, but not to a precision in which the sums of a training would not hold."""
        return super()._apply(lambda tensor: tensor.to(device=fn(tensor).device), recurse)

    def extra_repr(self) -> str:
        return f"{self.mean.numel()}, dimension={self.dimension}"
