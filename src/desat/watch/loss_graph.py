"""The make of the loss: from which operations it was computed, read off autograd's graph from the loss backwards."""

import math
import re
from collections import deque
from typing import Any

import torch
from torch import Tensor

from desat.record.rows import Reading
from desat.watch.modules import call_source
from desat.watch.residual import LEARNED
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites

KIND = "loss"

NODES = 48
"""Operations of the graph that are looked at; one costs about a microsecond."""

LENGTH = 6
"""Operations of a chain that are named: a criterion, what is in front of it, and the layer that it is made from."""

ARROW = " <- "
"""Between the names of a chain, the one nearest to the loss first."""

_REDUCTIONS = {
    "Mean", "Sum", "Nansum", "Mul", "Div", "Add", "Sub", "Rsub", "Neg", "Stack", "Cat", "Where", "MaskedFill",
    "MaskedSelect",
}  # fmt: skip
"""What makes one number of the terms of a loss: it is passed on the way to them, along all of its operands."""

_SHAPES = {
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "Permute", "T", "Expand", "Select",
    "Slice", "Index", "Gather", "Clone", "ToCopy", "Alias", "Split", "Unbind", "Narrow", "Chunk", "Movedim", "Detach",
}  # fmt: skip
"""What lays numbers out anew or takes some of them: passed anywhere."""

_LEAF = "AccumulateGrad"

_CRITERIA = {"NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits", "MseLoss"}
"""Those of which it is known what guessing would cost."""

_MEAN = 1
"""Autograd's number for a loss that is averaged over its terms."""


def note_loss(sites: Sites, loss: Tensor, step: int) -> list[Parcel]:
    """A site of kind `loss` for each chain of operations that `loss` is made of, see `chains_of`, at its first meeting.

    Its operation is the chain, such as `NllLoss <- LogSoftmax <- Addmm`; its source is the line of `backward()`. Where
    it is known what guessing would cost, see `loss_of_guessing`, that is its reading `guessing`.
    """
    if type(loss) is not Tensor or loss.numel() != 1:
        return []
    met = [sites.meet(KIND, KIND, ARROW.join(chain), call_source) for chain in chains_of(loss)]
    guessing = loss_of_guessing(loss) if len(met) == 1 else None
    if guessing is None:
        return []
    return [Parcel([guessing], lambda arrays: [Reading(met[0].id, "guessing", step, float(arrays[0]))])]


@torch.no_grad()
def loss_of_guessing(loss: Tensor) -> Tensor | None:
    """What the loss would be of one answer for all samples: a 0-dim tensor, constants on the CPU.

    Of a plain mean cross entropy it is ln(classes), ln 2 of a binary one, where all classes are called equally likely.
    Of a plain mean squared error it is the variance of the targets over the batch. None for any other loss, also for
    one of these that is multiplied or weighted or to which something is added. What autograd has saved is not looked at
    while a hook of the user's would unpack it.
    """
    node: Any = loss.grad_fn
    name = "" if loss.grad_fn is None else _name(node)
    if name not in _CRITERIA or node._saved_reduction != _MEAN:
        return None
    guessing = _of_classes(node) if name.startswith("NllLoss") else _of_targets(node, name)
    return torch.as_tensor(guessing, dtype=torch.float32) if guessing is not None else None


def _of_classes(node: Any) -> float | None:
    before = node.next_functions[0][0]
    while before is not None and _name(before) in _SHAPES:
        before = before.next_functions[0][0]
    if before is None or _name(before) != "LogSoftmax":
        return None
    shape = before._input_metadata[0].shape
    classes = int(shape[1] if len(shape) > 1 else shape[0])
    return math.log(classes) if classes > 1 else None


def _of_targets(node: Any, name: str) -> float | Tensor | None:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    if hooks is not None:
        return None
    if name == "BinaryCrossEntropyWithLogits":
        is_weighted = node._saved_weight is not None or node._saved_pos_weight is not None
        return None if is_weighted else math.log(2.0)
    target = node._saved_target
    return target.float().var(0).mean() if target.dim() and len(target) > 1 else None


def chains_of(loss: Tensor) -> list[tuple[str, ...]]:
    """For each term of a loss the names of its operations, from the criterion back to a layer with weights.

    Sums, means, factors and the like between the loss and a term are passed. A chain ends at the first operation that
    mixes features by weights, or that more than one operand with a gradient goes into (of a quotient the numerator is
    followed). Terms of parameters alone, such as a weight penalty, are left out. Distinct chains, nearest first.
    """
    todo: deque[Any] = deque([loss.grad_fn])
    seen: set[Any] = set()
    chains: dict[tuple[str, ...], None] = {}
    while todo and len(seen) < NODES:
        node = todo.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = _name(node)
        if name in _REDUCTIONS or name in _SHAPES:
            todo.extend(_operands(node))
        elif name != _LEAF and (chain := _chain_from(node, seen)):
            chains.setdefault(chain)
    return list(chains)


def _chain_from(node: Any, seen: set[Any]) -> tuple[str, ...]:
    """The chain that a term begins; empty where it ends at a parameter or the nodes are used up."""
    chain: list[str] = []
    while len(chain) < LENGTH:
        name = _name(node)
        if name == _LEAF or len(seen) > NODES:
            return ()
        if name not in _SHAPES:
            chain.append(name)
        operands = _operands(node)
        if (
            not operands
            or any(part in node.name().lower() for part in LEARNED)
            or (len(operands) > 1 and name != "Div")
        ):
            break
        node = operands[0]
        seen.add(node)
    return tuple(chain)


def _operands(node: Any) -> list[Any]:
    return [before for before, _ in node.next_functions if before is not None]


def _name(node: Any) -> str:
    """`NllLoss` of `NllLossBackward0`, `AccumulateGrad` of `torch::autograd::AccumulateGrad`."""
    return re.sub(r"Backward\d*$", "", node.name()).rpartition("::")[2]
