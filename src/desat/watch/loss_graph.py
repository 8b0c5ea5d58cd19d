"""The make of the loss: from which operations it was computed, read off autograd's graph from the loss backwards."""

import re
from collections import deque
from typing import Any

from torch import Tensor

from desat.watch.modules import call_source
from desat.watch.residual import LEARNED
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


def note_loss(sites: Sites, loss: Tensor) -> None:
    """A site of kind `loss` for each chain of operations that `loss` is made of, see `chains_of`, at its first meeting.

    Its operation is the chain, such as `NllLoss <- LogSoftmax <- Addmm`; its source is the line of `backward()`.
    """
    if type(loss) is not Tensor or loss.numel() != 1:
        return
    for chain in chains_of(loss):
        sites.meet(KIND, KIND, ARROW.join(chain), call_source)


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
