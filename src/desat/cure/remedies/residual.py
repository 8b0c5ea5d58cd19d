"""residual: skip connections around blocks, so that a gradient reaches the first layer whatever the blocks do.

He et al. (2016); with a scale of the branch that starts at zero (ReZero, Bachlechner et al. 2020; SkipInit, De and
Smith 2020), so that a deep network starts as a shallow one.
"""

from torch import nn
from torch.utils.hooks import RemovableHandle

from desat.cure.anatomy import run_beside
from desat.cure.family import Change, Choice, Family
from desat.cure.order import leaves, modules
from desat.cure.patient import Patient
from desat.cure.remedies.additions import Additions, look_for_additions
from desat.cure.remedies.blocks import Block, block_around, misfit
from desat.cure.remedies.followers import followers
from desat.cure.remedies.placement import (
    adopted,
    attach,
    attached,
    detach,
    refusal_of_layer,
    refusal_of_model,
)
from desat.cure.remedies.skips import (
    NAME,
    Skip,
    carry_skip,
    close_skip,
    open_skip,
    skip_layer,
)

FEWEST = 2
"""Blocks: with one, the gradient has one nonlinearity to pass, and nothing is gained."""

_LAYERED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def apply_residual(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Put a skip connection around each block that keeps its shape, or (projection) changes its features alone.

    A block is a module of the user's own, where such are stacked, or else a layer with the nonlinearity that follows
    it: y = x + scale * f(layer(x)). A nonlinearity that is called as a function is out of reach; where it is no bounded
    one, the skip is around the layer before it: f(x + scale * layer(x)). With a batch, a pass beside the training shows
    that each skip is run; one that is not is taken out again.
    """
    remedy = f"residual={choice}"
    refused, seen = _look(patient)
    kind = type(patient.model).__name__
    if refused is not None:
        return [Change(remedy, "", kind, kind, refused=refused)]
    candidates = _stacked(patient, seen.blocks) if len(seen.blocks) >= FEWEST else _layers(patient, choice)
    blocks = [one for one in candidates if isinstance(one, Block)]
    left = [one for one in candidates if not isinstance(one, Block)]
    if len(blocks) < FEWEST:
        reasons = "; ".join(f"{path}: {reason}" for path, _, reason in left[:3])
        found = "no block" if not blocks else "one block"
        return [Change(remedy, "", kind, kind, refused=f"{found} could be skipped ({reasons})")]
    for block in blocks:
        _install(block)
    failure = _rehearse(patient, blocks)
    changes = [Change(remedy, path, name, name, refused=reason) for path, name, reason in left]
    kept = []
    for block in blocks:
        name = type(block.bearer).__name__
        if failure is not None or not block.runs:
            _uninstall(block)
            reason = failure or "between it and the nonlinearity stands what no hook sees"
            changes.append(Change(remedy, block.path, name, name, refused=reason))
        else:
            kept.append(block)
            changes.append(Change(remedy, block.path, name, block.words))
    for block in kept:
        _connect(block)  # anew where it shared a nonlinearity with one that was taken out
        adopted(patient, list(block.skip.parameters()), block.bearer)
    return changes


def _look(patient: Patient) -> tuple[str | None, Additions]:
    """Why the network is to have no skips, if so, and what its forward pass adds up."""
    model = patient.model
    refused = refusal_of_model(model)
    if refused is not None:
        return refused, Additions()
    if any(isinstance(module, _RECURRENT) for module in model.modules()):
        return "it is a recurrent network: its gradients vanish through time, not through layers", Additions()
    if any(attached(module, NAME) is not None for module in model.modules()):
        return "a remedy has put skip connections there already", Additions()
    if any(isinstance(module, _LAYERED) for module in model.modules()):
        return "it has skip connections already, inside of its transformer layers", Additions()
    if patient.batch is None or patient.anatomy is None:
        ends = {id(module) for _, module in leaves(model)}
        plain = all(id(module) in ends or isinstance(module, nn.Sequential) for _, module in modules(model))
        blind = None if plain else f"whether it has skip connections already is not known: {patient.blind}"
        return blind, Additions()
    seen = look_for_additions(model, patient.batch)
    if seen.sums:
        place = f"{seen.sums[0]} adds" if seen.sums[0] else "its forward method adds"
        return f"it has skip connections already: {place} what it is given to what it computes, or two branches", seen
    return None, seen


def _stacked(patient: Patient, paths: list[str]) -> "list[Block | tuple[str, str, str]]":
    found: list[Block | tuple[str, str, str]] = []
    for path in paths:
        block = patient.model.get_submodule(path)
        name = type(block).__name__
        refused = refusal_of_layer(patient, patient.model, block)
        words = f"x + scale * {name}(x), scale 0"
        found.append((path, name, refused) if refused else Block(path, block, Skip(), words))
    return found


def _layers(patient: Patient, choice: str) -> "list[Block | tuple[str, str, str]]":
    found: list[Block | tuple[str, str, str]] = []
    for follower in followers(patient):
        name = type(follower.layer).__name__
        if not isinstance(follower.layer, nn.Linear | nn.modules.conv._ConvNd):
            found.append((follower.path, name, "it is no linear or convolutional layer"))
            continue
        refused = follower.refused or refusal_of_layer(patient, patient.model, follower.layer) or misfit(follower)
        block = None if refused else block_around(follower, choice)
        if block is None:
            reason = refused or "its output has another shape than its input"
            if refused is None and choice == "skip" and block_around(follower, "projection") is not None:
                reason += ": residual=projection fits"
            found.append((follower.path, name, reason))
        else:
            found.append(block)
    return found


def _install(block: Block) -> None:
    weight = next(block.bearer.parameters())
    attach(block.bearer, NAME, block.skip.to(device=weight.device, dtype=weight.dtype))
    after = None if block.follower is None else block.follower.nonlinearity
    if block.follower is None or after is None or after.module is None:
        block.hooks.append(block.bearer.register_forward_hook(skip_layer))
        return
    block.hooks.append(block.bearer.register_forward_hook(open_skip))
    _connect(block)


def _connect(block: Block) -> None:
    """Hook what stands behind a layer, once for all layers that share it."""
    after = None if block.follower is None else block.follower.nonlinearity
    if block.follower is None or after is None or after.module is None:
        return
    for module in block.follower.between:
        if carry_skip not in module._forward_hooks.values():
            block.hooks.append(module.register_forward_hook(carry_skip))
    if close_skip not in after.module._forward_hooks.values():
        block.hooks.append(after.module.register_forward_hook(close_skip))


def _uninstall(block: Block) -> None:
    detach(block.bearer, NAME)
    while block.hooks:
        block.hooks.pop().remove()


def _rehearse(patient: Patient, blocks: list[Block]) -> str | None:
    """Count how often each skip runs in a pass beside the training; returns why the pass failed, if it did."""
    if patient.batch is None or patient.anatomy is None:
        for block in blocks:
            block.runs = 1
        return None

    def count(block: Block) -> RemovableHandle:
        def counted(*_: object) -> None:
            block.runs += 1

        return block.skip.register_forward_hook(counted)

    counters = [count(block) for block in blocks]
    try:
        run_beside(patient.model, *patient.batch)
    except Exception as error:  # the forward pass is the user's
        return f"a forward pass with it failed: {type(error).__name__}: {error}"
    finally:
        for counter in counters:
            counter.remove()
    return None


RESIDUAL = Family(
    "residual",
    (
        Choice(
            "skip", "around blocks that keep their shape, the branch's scale starting at 0 (Bachlechner et al. 2020)"
        ),
        Choice("projection", "also around layers that change their features alone (He et al. 2016)"),
    ),
    apply_residual,
)
