"""normalization: the input of a nonlinearity gets zero mean and unit variance, so that it stays where the gain is.

Before the nonlinearity, as Ioffe and Szegedy (2015, section 3.2) have it. Batch normalizations that starve give way to
kinds that need no batch (Wu and He 2018).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from desat.cure.family import Change, Choice, Family
from desat.cure.order import modules
from desat.cure.patient import Patient
from desat.cure.remedies.constructors import Normed, constructor_edits
from desat.cure.remedies.followers import Follower, followers, normalizing
from desat.cure.remedies.norms import (
    GROUPS,
    SMALL_BATCH,
    Norm,
    Output,
    batch_norm_input,
    best_kind,
    fitting,
    layer_output,
)
from desat.cure.remedies.placement import (
    adopted,
    attach,
    attached,
    forget_compiled,
    refusal_of_layer,
    refusal_of_model,
    replace_module,
)
from desat.cure.remedies.running_momentum import MOMENTUM, follow

_NAME = "normalization"
_MIXED = (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)
"""Where a network holds one of these, its linear layers may be given sequences."""

_Choose = Callable[[Output], Norm | str]
_Done = tuple[Change, Normed | None]


def apply_normalization(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Put a normalization behind each layer that a nonlinearity follows, and replace batch normalizations that starve.

    number: groups, of choice group; the momentum, of choice momentum, which changes that alone. A normalization that is
    there already is kept, except a BatchNorm where group or layer is asked for, or auto and its batch is small: its
    scale and its shift stay the parameters they are, and its running statistics, which nothing needs then, go.
    """
    model = patient.model
    remedy = f"{_NAME}={choice}" + ("" if number is None else f":{number:g}")
    refused = refusal_of_model(model)
    if refused is None and choice == "group" and number is not None and number != int(number):
        refused = f"{number:g} groups are no whole number"
    if refused is not None:
        kind = type(model).__name__
        return [Change(remedy, "", kind, kind, refused=refused)]
    if choice == "momentum":
        return follow(model, remedy, MOMENTUM if number is None else number)
    groups = None if number is None else int(number)
    sequences = any(isinstance(module, _MIXED) for module in model.modules())

    def choose(output: Output) -> Norm | str:
        return fitting(output, choice, groups, sequences)

    # All layers are judged before the first is touched: what is put in must not speak for what stands beside it.
    judged = [(follower, _judge(patient, follower, choose)) for follower in followers(patient)]
    done = [
        *(_replace_all(patient, remedy, choice, choose) if choice in ("group", "layer", "auto") else []),
        *(_put(patient, remedy, follower, verdict) for follower, verdict in judged),
    ]
    edits = constructor_edits([normed for _, normed in done if normed is not None])
    return [
        change if normed is None or id(normed.module) not in edits
        else replace(change, edits=(edits[id(normed.module)],))
        for change, normed in done
    ]  # fmt: skip


def _judge(patient: Patient, follower: Follower, choose: _Choose) -> Norm | str:
    """The normalization to be put behind a layer, or why there is to be none."""
    output = layer_output(follower.layer, follower.output_shape)
    if output is None:
        recurrent = isinstance(follower.layer, nn.RNNBase | nn.RNNCellBase)
        return (
            "a recurrent layer's nonlinearities are inside of it"
            if recurrent
            else "it is no linear or convolutional layer"
        )
    if attached(follower.layer, _NAME) is not None:
        return "a remedy has put a normalization there already"
    there = normalizing((*follower.between, *follower.beyond))
    if there is not None:
        return f"a {type(there).__name__} follows it already"
    return follower.refused or refusal_of_layer(patient, patient.model, follower.layer) or choose(output)


def _put(patient: Patient, remedy: str, follower: Follower, verdict: Norm | str) -> _Done:
    layer = follower.layer
    kind = type(layer).__name__
    if isinstance(verdict, str):
        return Change(remedy, follower.path, kind, kind, refused=verdict), None
    weight = next(layer.parameters())
    norm = verdict.make().to(device=weight.device, dtype=weight.dtype)
    attach(layer, _NAME, norm)
    # In front of other hooks: a skip connection carries what comes out last.
    layer.register_forward_hook(_normalized, prepend=True)
    adopted(patient, list(norm.parameters()), layer)
    change = Change(remedy, follower.path, kind, f"{kind}, then {verdict}")
    return change, Normed(follower.path, layer, verdict)


def _normalized(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a layer."""
    norm = attached(layer, _NAME)
    return output if norm is None else norm(output)


def _replace_all(patient: Patient, remedy: str, choice: str, choose: _Choose) -> list[_Done]:
    done: list[_Done] = []
    for path, module in list(modules(patient.model)):
        if not isinstance(module, _BatchNorm) or not path:
            continue
        shapes = [] if patient.anatomy is None else [call.input_shape for call in patient.anatomy.of(module)]
        expected = batch_norm_input(module, shapes[0] if shapes else None)
        if choice == "auto" and (expected.batch is None or best_kind(expected) == "batch"):
            continue
        norm = _refusal_of_batch_norm(module) or choose(expected)
        before = f"{type(module).__name__}({module.num_features})"
        if isinstance(norm, str):
            done.append((Change(remedy, path, before, before, refused=norm), None))
            continue
        replace_module(patient.model, module, _heir(module, norm))
        forget_compiled()
        done.append((Change(remedy, path, before, str(norm)), Normed(path, module, norm, instead=True)))
    return done


def _refusal_of_batch_norm(module: _BatchNorm) -> str | None:
    own = list(module.parameters(recurse=False))
    if any(is_lazy(parameter) for parameter in own):
        return "its shape is known after the first forward pass"
    if own and not any(parameter.requires_grad for parameter in own):
        return "it is frozen, so it is meant to stay"
    return None


def _heir(module: _BatchNorm, norm: Norm) -> nn.Module:
    """A normalization with the very parameters of the one it replaces."""
    heir = norm.make().train(module.training)
    for name in ("weight", "bias"):
        heir.register_parameter(name, module._parameters.get(name))
    return heir


NORMALIZATION = Family(
    "normalization",
    (
        Choice("batch", "over the samples of a batch (Ioffe and Szegedy 2015)"),
        Choice("layer", "over the features of a sample (Ba, Kiros and Hinton 2016)"),
        Choice("rms", "by the size of a sample's features alone (Zhang and Sennrich 2019)"),
        Choice("group", f"over groups of channels, {GROUPS} or fewer (Wu and He 2018)", "optional", low=0.5),
        Choice("momentum", "the batch norms' running statistics follow by that share", "optional", MOMENTUM, high=1.0),
        Choice("auto", f"by the kind of layer, and by batch from {SMALL_BATCH} samples on"),
    ),
    apply_normalization,
)
