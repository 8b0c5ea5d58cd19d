"""Residual sums, x + f(x): how much the branch f(x) adds to the stream x.

Which sums are residual is read off the graph that autograd keeps of the forward pass, at the first sampled call of each
place in the code, and remembered.
"""

import sys
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import Node

from desat.record.rows import Site
from desat.watch.frames import is_desats
from desat.watch.functional import Call
from desat.watch.measurements import is_measurable
from desat.watch.scene import Scene
from desat.watch.statistics import subset

KIND = "residual"

SAMPLE = 16_384
"""Elements of stream and branch that are measured; of larger ones a regular subset.

The standard error of the rms of n independent elements is 1 / sqrt(2 n): 0.6 %, or 0.05 dB, here.
"""

NODES = 400
"""Operations of the graph that are looked at behind each operand: a transformer's layer has about 60."""

SKIP = 6
"""Operations that the skip of a projection skip has at most: a convolution, its normalization, a view or two."""

RATIO_FLOOR = 2.0**-149
"""The ratio that a branch of zero counts as, so that decibels stay finite: float32's smallest number, -897 dB."""

NONLINEAR = (
    "relu", "sigmoid", "tanh", "gelu", "silu", "mish", "softmax", "softplus", "elu", "hardswish", "threshold",
    "attention", "erf", "expback", "pow", "checkpoint",
)  # fmt: skip
"""Parts of the names of operations, in autograd's graph, that are not linear."""

LEARNED = ("mmback", "conv", "linear", "norm", "attention", "rnn", "lstm", "gru", "checkpoint")
"""Parts of the names of operations that mix features by weights. A branch has one: x + x**3 is part of a formula."""

SLICES = ("select", "slice", "split", "unbind", "chunk", "narrow", "index")
"""Parts of the names of operations that take a part. Two parts of a tensor do not stem from one value."""


class _Place(NamedTuple):
    """A place in the code that adds: the instruction, and which layers it adds for."""

    code: CodeType
    instruction: int
    path: str
    producer: str | None


class _Residual(NamedTuple):
    site: Site
    left_is_stream: bool


class _Reached(NamedTuple):
    """A node behind an operand: how far, over how many nonlinear steps, whether any learned, and by a part only."""

    distance: int
    nonlinear: int
    learned: bool
    sliced: bool


def probe_sum(scene: Scene, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Readings of a sum that is about to be made, if it is residual, see `judge_sizes`; an `alpha` is not looked at."""
    if len(args) != 2 or kwargs:
        return
    left, right = args
    if type(left) is not Tensor or type(right) is not Tensor or left.dim() < 2 or left.shape != right.shape:
        return
    if left.grad_fn is None or right.grad_fn is None or left.numel() < 2:
        return
    place = _place(scene)
    found = scene.memory.get(place, place)
    if found is place:
        stream = stream_of(left, right)
        found = None if stream is None else _Residual(scene.call_site(KIND, function), stream is left)
        scene.memory[place] = found
    if found is not None and is_measurable(left) and is_measurable(right):
        stream, branch = (left, right) if found.left_is_stream else (right, left)
        scene.measurements.deferred(found.site, KIND, lambda: measure_sizes(stream, branch), judge_sizes)


def measure_sizes(stream: Tensor, branch: Tensor) -> Tensor:
    """Norms of a regular subset of two tensors of one shape, side by side: shape (2,)."""
    precision = torch.promote_types(torch.promote_types(stream.dtype, branch.dtype), torch.float32)
    norms = [torch.linalg.vector_norm(subset(one.detach(), None, SAMPLE), dtype=precision) for one in (stream, branch)]
    return torch.stack(norms)


def judge_sizes(norms: NDArray[Any]) -> dict[str, float]:
    """Readings of norms of stream and branch; none where one is not finite or the stream is zero.

    `branch_over_stream`: rms(branch) / rms(stream), from 0; `branch_over_stream_db`: 20 log10 of it, from -897 dB.
    """
    stream, branch = norms.astype(np.float64)
    if not np.isfinite(norms).all() or stream == 0.0:
        return {}
    ratio = float(branch / stream)
    return {
        "branch_over_stream": ratio,
        "branch_over_stream_db": 20.0 * float(np.log10(max(ratio, RATIO_FLOOR))),
    }


def stream_of(left: Tensor, right: Tensor) -> Tensor | None:
    """The operand that is the stream of a residual sum; None if the sum is not residual.

    The stream is what the other, learned, operand was computed from (He et al. 2016, "Deep residual learning for image
    recognition", equation 1). Or both were computed from one value, the stream by linear steps only and the branch by
    nonlinear ones as well (equation 2, a projection skip).
    """
    start, end = left.grad_fn, right.grad_fn
    if start is None or end is None or start is end:
        return None
    behind_right = _behind(end, start)
    if start in behind_right:
        return left if behind_right[start].learned else None
    behind_left = _behind(start, end)
    if end in behind_left:
        return right if behind_left[end].learned else None
    common = [node for node in behind_left if node in behind_right]
    if not common:
        return None
    nearest = min(common, key=lambda node: behind_left[node].distance + behind_right[node].distance)
    from_left, from_right = behind_left[nearest], behind_right[nearest]
    if from_left.sliced and from_right.sliced:
        return None
    if _is_skip(from_left, from_right):
        return left
    return right if _is_skip(from_right, from_left) else None


def _is_skip(stream: _Reached, branch: _Reached) -> bool:
    return stream.distance <= SKIP and stream.nonlinear == 0 < branch.nonlinear and branch.learned


def _behind(start: Node, goal: Node) -> dict[Node, _Reached]:
    """The nodes behind one, nearest first, up to NODES of them or up to the goal; parameters are none of them.

    The dictionary keeps the nodes alive, which are the same objects only as long as somebody does.
    """
    reached = {start: _step(start, _Reached(0, 0, False, False))}
    behind: dict[Node, _Reached] = {}
    layer = [start]
    while layer:
        following: list[Node] = []
        for node in layer:
            passed = reached[node]
            for before, _ in node.next_functions:
                if before is None or before in reached or before.name().endswith("AccumulateGrad"):
                    continue
                behind[before] = passed
                if before is goal or len(behind) >= NODES:
                    return behind
                reached[before] = _step(before, passed)
                following.append(before)
        layer = following
    return behind


def _step(node: Node, passed: _Reached) -> _Reached:
    """What is reached through a node, by a way that has passed others before."""
    name = node.name().lower()
    nonlinear = any(part in name for part in NONLINEAR)
    learned = passed.learned or any(part in name for part in LEARNED)
    sliced = any(part in name for part in SLICES)
    return _Reached(passed.distance + 1, passed.nonlinear + nonlinear, learned, sliced)


def _place(scene: Scene) -> _Place:
    frame = sys._getframe(2)
    while is_desats(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return _Place(frame.f_code, frame.f_lasti, scene.path, scene.producer.path if scene.producer is not None else None)
