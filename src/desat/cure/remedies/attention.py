"""attention: logits of a size at which a softmax learns, and attention over a recurrent network's outputs."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from desat.cure.anatomy import run_beside
from desat.cure.attention_layers import (
    CHILD,
    NAME,
    HeadNorm,
    LastStepAttention,
    NormalizedAttention,
    QueryKeyNorm,
    norm_output,
    pool_output,
    stay_on_the_slow_path,
)
from desat.cure.family import Change, Choice, Family
from desat.cure.order import modules
from desat.cure.patient import Batch, Patient
from desat.cure.query_key import Pair, fused, logit_deviations, pairs
from desat.cure.remedies.placement import attach

ROUNDS = 4
TOLERANCE = 0.05
"""A layer's queries change what the layers after it see, so all are scaled again until each logit is this near to 1."""

_SMALLEST_DEVIATION = 1e-6
"""Logits that differ by less are all the same, and no factor makes them differ by 1."""


def apply_attention(patient: Patient, value: str, number: float | None) -> list[Change]:
    """Change how a network attends.

    qk-norm: an RMSNorm of the queries and of the keys, for each head where its size is known (Henry et al. 2020;
    Dehghani et al. 2023, section 2.1), so that logits are bounded whatever the weights become. scale: the weights that
    make the queries are divided by the standard deviation of the logits on the real batch, which is 1 after it; a
    missing 1/sqrt(d) (Vaswani et al. 2017, section 3.2.1) is put in by that. Both work on nn.MultiheadAttention and on
    attention written by hand whose two linear layers are called query and key, q_proj and k_proj or alike.

    pooling: where the network reads only the last step of a recurrent layer, it reads all steps, weighted by attention
    with a learned query, instead; weights begin alike. Padding at the end of a sequence is a step like another.
    """
    remedy = f"attention={value}"
    if value == "pooling":
        return list(_pooled(patient, remedy))
    changes = list(_with_norms(patient, remedy) if value == "qk-norm" else _scaled(patient, remedy))
    reason = "it makes queries, keys and values in one, in an order that is not known"
    return changes + [_left(remedy, path, "Linear", reason) for path in fused(patient.model)]


def _with_norms(patient: Patient, remedy: str) -> Iterator[Change]:
    for pair in list(pairs(patient.model)):
        for path, layer in ((pair.query_path, pair.query), (pair.key_path, pair.key)):
            if hasattr(layer, CHILD):
                yield _left(remedy, path, "Linear", "its output is normed already")
                continue
            size = pair.head_size or layer.out_features
            beside = next(layer.parameters())
            _put(patient, layer, HeadNorm(size, beside.device, beside.dtype), beside)
            layer.register_forward_hook(norm_output)
            yield Change(remedy, path, "Linear", f"Linear, then RMSNorm({size}) of {_of_what(pair)}")
    for path, module in list(modules(patient.model)):
        if not isinstance(module, nn.MultiheadAttention):
            continue
        refused = _unfit_for_norms(module)
        if refused is not None:
            yield _left(remedy, path, type(module).__name__, refused)
            continue
        weight = next(module.parameters(recurse=False))
        _put(patient, module, QueryKeyNorm(module.head_dim, weight.device, weight.dtype), weight)
        module.__class__ = NormalizedAttention
        module.register_forward_pre_hook(stay_on_the_slow_path)
        after = f"MultiheadAttention with RMSNorm({module.head_dim}) of each head's queries and keys"
        yield Change(remedy, path, "MultiheadAttention", after)
    for _, module in modules(patient.model):
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, NormalizedAttention) for m in module.modules()
        ):
            module.use_nested_tensor = False


def _of_what(pair: Pair) -> str:
    return "all features, since the size of a head is not known" if pair.head_size is None else "each head"


def _unfit_for_norms(module: nn.MultiheadAttention) -> str | None:
    if isinstance(module, NormalizedAttention):
        return "its queries and keys are normed already"
    if type(module) is not nn.MultiheadAttention:
        return "its forward method may be another than nn.MultiheadAttention's"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds a key of its own (add_bias_kv or add_zero_attn)"
    return None


def _scaled(patient: Patient, remedy: str) -> Iterator[Change]:
    found: dict[str, Pair | nn.MultiheadAttention] = {pair.path: pair for pair in pairs(patient.model)}
    for path, module in modules(patient.model):
        if isinstance(module, nn.MultiheadAttention):
            found[path] = module
    if not found:
        return
    if patient.batch is None or patient.anatomy is None:
        yield Change(remedy, "", "attention", "attention", refused=patient.blind)
        return
    first = logit_deviations(patient.model, patient.batch, set(found))
    fit: dict[str, list[Tensor]] = {}
    for path, one in found.items():
        name = "attention" if isinstance(one, Pair) else type(one).__name__
        refused = _unfit_for_scale(one, first.get(path))
        if refused is not None:
            yield _left(remedy, path, name, refused)
            continue
        fit[path] = _query_weights(one)
        before = f"{name} with logits of standard deviation {first[path]:.4g}"
        yield Change(remedy, path, before, f"{name} with queries scaled so that it is 1 on the batch")
    now = first
    for _ in range(ROUNDS):
        if all(abs(now[path] - 1.0) < TOLERANCE for path in fit):
            break
        _divide(fit, now)
        now = logit_deviations(patient.model, patient.batch, set(fit))


@torch.no_grad()
def _divide(fit: dict[str, list[Tensor]], deviations: dict[str, float]) -> None:
    for path, weights in fit.items():
        for weight in weights:
            weight.div_(deviations[path])


def _unfit_for_scale(one: Pair | nn.MultiheadAttention, deviation: float | None) -> str | None:
    if isinstance(one, NormalizedAttention) or (isinstance(one, Pair) and hasattr(one.query, CHILD)):
        return "its queries are normed, which takes any scale away"
    if deviation is None:
        return "no softmax over logits was seen in it"
    if not _SMALLEST_DEVIATION < deviation < math.inf:
        return "its logits are all the same on the batch"
    return None if _query_weights(one) else "the weights of its queries are frozen or computed"


def _query_weights(one: Pair | nn.MultiheadAttention) -> list[Tensor]:
    """What a query is linear in, weights and biases; none where it is not to be changed."""
    layer = one.query if isinstance(one, Pair) else one
    named = layer._parameters
    own = [named.get("weight"), named.get("bias")]
    if isinstance(one, nn.MultiheadAttention):
        bias = named.get("in_proj_bias")
        whole, single = named.get("in_proj_weight"), named.get("q_proj_weight")
        own = [
            single if whole is None else whole.detach().chunk(3)[0],
            None if bias is None else bias.detach().chunk(3)[0],
        ]
        own[0] = own[0] if any(p is not None and p.requires_grad for p in (whole, single)) else None
    elif own[0] is not None and not own[0].requires_grad:
        own[0] = None
    return [] if own[0] is None else [tensor for tensor in own if tensor is not None]


def _pooled(patient: Patient, remedy: str) -> Iterator[Change]:
    for path, module in list(modules(patient.model)):
        if not isinstance(module, nn.RNNBase):
            continue
        before = type(module).__name__
        refused = _unfit_for_pooling(patient, module)
        if refused is not None:
            yield _left(remedy, path, before, refused)
            continue
        weight = next(module.parameters(recurse=False))
        size = getattr(module, "proj_size", 0) or module.hidden_size
        _put(patient, module, LastStepAttention(size, weight.device, weight.dtype), weight)
        module.register_forward_hook(pool_output)
        yield Change(remedy, path, f"the last step of {before}", f"attention pooling over the steps of {before}")


def _unfit_for_pooling(patient: Patient, module: nn.RNNBase) -> str | None:
    if hasattr(module, CHILD):
        return "its steps are pooled already"
    if module.bidirectional:
        return "it reads in both directions, and the last step is the first of one of them"
    if patient.batch is None or patient.anatomy is None:
        return patient.blind
    calls = patient.anatomy.of(module)
    if len(calls) != 1:
        return "it runs several times in a forward pass, or never"
    if calls[0].input_shape is None or len(calls[0].input_shape) != 3:
        return "its input is packed, or has no batch"
    if not _only_the_last_step_is_read(patient.model, patient.batch, module):
        return "the network reads more of its output than the last step"
    return None


def _only_the_last_step_is_read(model: nn.Module, batch: Batch, layer: nn.RNNBase) -> bool:
    """Whether the result of a forward pass stays the same when all else that a recurrent layer returns is zero."""

    def forget(module: nn.RNNBase, args: tuple[Any, ...], result: Any) -> Any:
        outputs, state = result
        time = 1 if module.batch_first else 0
        last = outputs.narrow(time, outputs.shape[time] - 1, 1)
        blank = torch.zeros_like(outputs)
        blank.narrow(time, outputs.shape[time] - 1, 1).copy_(last)
        hidden = state[0] if isinstance(state, tuple) else state
        kept = torch.cat([torch.zeros_like(hidden[:-1]), hidden[-1:]])
        return blank, ((kept, torch.zeros_like(state[1])) if isinstance(state, tuple) else kept)

    whole = _result(model, batch)
    handle = layer.register_forward_hook(forget)
    try:
        without = _result(model, batch)
    finally:
        handle.remove()
    return bool(whole) and all(torch.equal(one, other) for one, other in zip(whole, without, strict=True))


def _result(model: nn.Module, batch: Batch) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(run_beside(model, *batch))]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        yield from _tensors(item)


def _put(patient: Patient, layer: nn.Module, fresh: nn.Module, beside: nn.Parameter) -> None:
    attach(layer, NAME, fresh)
    patient.adopt(fresh.parameters(), beside)


def _left(remedy: str, path: str, before: str, reason: str) -> Change:
    return Change(remedy, path, before, before, refused=reason)


ATTENTION = Family(
    "attention",
    (
        Choice("qk-norm", "norms of queries and keys (Henry et al. 2020)"),
        Choice("scale", "logits with a standard deviation of 1 on a real batch (Vaswani et al. 2017)"),
        Choice("pooling", "attention over a recurrent layer's steps instead of the last (Bahdanau et al. 2015)"),
    ),
    apply_attention,
)
