"""The curve of an elementwise nonlinearity: its gain, its class and where it saturates, all from its derivative.

No list of names decides what saturates. The derivative f' is evaluated by autograd in float64 over a grid, so that a
user's own activation is judged like a built-in one.
"""

import contextlib
import copy
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SATURATION_LIMIT = 0.05
"""A nonlinearity is saturated at z where abs(f'(z)) is below this share of its maximum: desat's definition."""

CORE = 12.0
"""The maximum of abs(f') is sought in [-CORE, CORE], where pre-activations of networks that learn lie."""

CORE_POINTS = 4801
TAIL_POINTS = 240
FAR = 1e6
"""Beyond the core the grid is logarithmic up to FAR, where the ends of the curve are judged."""

VANISHED = 1e-3
"""f' goes to 0 at an end where abs(f') at FAR is below this share of its maximum; leaky ReLU's slope 0.01 does not."""

TABLE_RANGE = 8.0
TABLE_SIZE = 1025
"""abs(f') is tabulated at TABLE_SIZE points over [-TABLE_RANGE, TABLE_RANGE] for the mean gain of a tensor."""

Shape = Literal["bounded", "rectifier", "open"]
Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """What the derivative says of a nonlinearity f.

    shape: bounded (f' goes to 0 at both ends), rectifier (at one end) or open (at neither).
    low, high: f is saturated at z <= low and at z >= high; minus and plus infinity where that end does not saturate.
    The slope of an open end may lie under the limit, too: leaky ReLU's 0.01 does, and counts as saturated there.
    intervals: every interval of the grid on which f is saturated, the inner ones too (GELU has one).
    peak_gain: the maximum of abs(f') over [-CORE, CORE]. table: abs(f') at TABLE_SIZE points, float32.
    """

    shape: Shape
    low: float
    high: float
    intervals: tuple[tuple[float, float], ...]
    peak_gain: float
    table: Tensor


def measure_curve(function: Elementwise, limit: float = SATURATION_LIMIT) -> Curve | None:
    """The curve of an elementwise function of one tensor.

    Returns None for what is no elementwise nonlinearity: a function that mixes elements, changes the shape, fails on
    float64 input, is constant, or is a straight line.
    """
    try:
        with _undisturbed():
            grid = _grid()
            if not _is_elementwise(function, grid):
                return None
            return _curve(function, grid, limit)
    except Exception:  # the function is the user's and may fail in any way on our grid
        return None


def curve_of(module: nn.Module) -> Curve | None:
    """The curve of a module that is an elementwise nonlinearity; None for any other module.

    The module's own forward is evaluated on a copy in float64 and evaluation mode, so that nothing of it changes.
    Modules with children or with more than one number of parameters are no candidates.
    """
    if not _may_be_elementwise(module):
        return None
    try:
        double = copy.deepcopy(module).to("cpu", torch.float64).eval()
    except Exception:
        return None
    return measure_curve(double.forward)


def gains(function: Elementwise, points: Tensor) -> Tensor:
    """abs(f') of an elementwise function at `points` (any shape), by autograd in float64."""
    points = points.detach().to(torch.float64).requires_grad_()
    # A copy is handed in, because an in-place function may not change a leaf.
    (derivative,) = torch.autograd.grad(function(points.clone()).sum(), points, allow_unused=True)
    return torch.zeros_like(points) if derivative is None else derivative.abs()


def _may_be_elementwise(module: nn.Module) -> bool:
    if next(module.children(), None) is not None:
        return False
    if any(is_lazy(parameter) or parameter.numel() > 1 for parameter in module.parameters()):
        return False
    home = type(module).__module__
    return not home.startswith("torch.nn.") or home == "torch.nn.modules.activation"


@contextlib.contextmanager
def _undisturbed() -> Any:
    """Evaluate a user's function without a trace: no random numbers, no output, no autocast, no function modes."""
    randomness, numpy_randomness = random.getstate(), np.random.get_state()
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch._C.DisableTorchFunction(),
    ):
        try:
            yield
        finally:
            random.setstate(randomness)
            np.random.set_state(numpy_randomness)


def _grid() -> Tensor:
    core = torch.linspace(-CORE, CORE, CORE_POINTS, dtype=torch.float64, device="cpu")
    tail = torch.logspace(
        torch.log10(torch.tensor(CORE)).item() + 0.01,
        torch.log10(torch.tensor(FAR)).item(),
        TAIL_POINTS,
        dtype=torch.float64,
        device="cpu",
    )
    return torch.cat([-tail.flip(0), core, tail])


def _is_elementwise(function: Elementwise, grid: Tensor) -> bool:
    """Whether f of a part is the part of f, and f of a matrix the matrix of f."""
    with torch.no_grad():
        whole = function(grid.clone())
        if not isinstance(whole, Tensor) or whole.shape != grid.shape:
            return False
        part = function(grid[1::7].clone())
        columns = function(grid[:-1].reshape(-1, 8).clone())
    return torch.equal(part, whole[1::7]) and torch.equal(columns.reshape(-1), whole[:-1])


def _curve(function: Elementwise, grid: Tensor, limit: float) -> Curve | None:
    gain = torch.nan_to_num(gains(function, grid), nan=0.0)
    in_core = grid.abs() <= CORE
    peak = gain[in_core].max().item()
    if peak == 0.0 or torch.allclose(gain[in_core], gain[in_core][0]):
        return None
    saturated = gain < limit * peak
    ends = [index + 1 for index in (saturated[1:] != saturated[:-1]).nonzero().flatten().tolist()]
    bounds = [_refine(function, limit * peak, grid[index - 1].item(), grid[index].item()) for index in ends]
    bounds = [-float("inf"), *bounds, float("inf")]
    is_saturated = [bool(saturated[index]) for index in [0, *ends]]
    intervals = [pair for pair, flag in zip(pairwise(bounds), is_saturated, strict=True) if flag]
    low = bounds[1] if is_saturated[0] else -float("inf")
    high = bounds[-2] if is_saturated[-1] else float("inf")
    closed = sum(gain[end].item() < VANISHED * peak for end in (0, -1))
    return Curve(
        shape="bounded" if closed == 2 else "rectifier" if closed == 1 else "open",
        low=low,
        high=high,
        intervals=tuple(intervals),
        peak_gain=peak,
        table=gains(function, torch.linspace(-TABLE_RANGE, TABLE_RANGE, TABLE_SIZE, device="cpu")).float(),
    )


def _refine(function: Elementwise, threshold: float, left: float, right: float) -> float:
    """The place between two points of the grid at which abs(f') crosses the threshold, by bisection to 1e-9."""

    def is_saturated(z: float) -> bool:
        return gains(function, torch.tensor([z], dtype=torch.float64, device="cpu")).item() < threshold

    left_is_saturated = is_saturated(left)
    while right - left > 1e-9 * max(1.0, abs(left)):
        middle = (left + right) / 2
        if is_saturated(middle) == left_is_saturated:
            left = middle
        else:
            right = middle
    crossing = (left + right) / 2
    return 0.0 if abs(crossing) < 1e-8 else crossing
