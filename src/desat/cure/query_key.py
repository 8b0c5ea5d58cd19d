"""Which layers make the queries and the keys of an attention, and how large its logits are on a real batch."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from desat.cure.anatomy import run_beside
from desat.cure.order import modules
from desat.cure.patient import Batch
from desat.watch.functional import FunctionTap

_NAMES = (
    ("query", "key"),
    ("q", "k"),
    ("q_proj", "k_proj"),
    ("query_proj", "key_proj"),
    ("q_lin", "k_lin"),
    ("q_linear", "k_linear"),
    ("wq", "wk"),
    ("w_q", "w_k"),
    ("to_q", "to_k"),
    ("queries", "keys"),
    ("to_query", "to_key"),
)
"""How the two layers are called in an attention written by hand, in lower case."""

_FUSED = {"qkv", "qkv_proj", "to_qkv", "wqkv", "w_qkv", "c_attn", "query_key_value", "in_proj"}
"""How one layer that makes queries, keys and values is called."""

_HEADS = ("num_heads", "n_heads", "nheads", "heads", "n_head", "nhead", "num_attention_heads", "h")
_SIZES = ("head_dim", "head_size", "dim_head", "attention_head_size", "d_head", "d_k")

_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}

_MASKED = -1e4
"""Logits below this are taken for masked."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The layers of queries and keys of an attention at `path`, and how many features a head has, if that is known."""

    path: str
    query: nn.Linear
    key: nn.Linear
    query_path: str
    key_path: str
    head_size: int | None


def pairs(model: nn.Module) -> Iterator[Pair]:
    """The attentions written by hand whose query and key layers are called so."""
    for path, parent in modules(model):
        linear = {name.lower(): (name, one) for name, one in parent.named_children() if isinstance(one, nn.Linear)}
        for names in _NAMES:
            if all(name in linear for name in names):
                (query_name, query), (key_name, key) = (linear[name] for name in names)
                dot = f"{path}." if path else ""
                size = head_size(parent, query.out_features, key.out_features)
                yield Pair(path, query, key, dot + query_name, dot + key_name, size)
                break


def fused(model: nn.Module) -> Iterator[str]:
    """Paths of the layers that make queries, keys and values in one, in an order of features that is not known."""
    for path, module in modules(model):
        named = path.rpartition(".")[2].lower() in _FUSED
        if named and isinstance(module, nn.Linear) and module.out_features >= 3 * module.in_features:
            yield path


def head_size(attention: nn.Module, queries: int, keys: int) -> int | None:
    """Features of a head, by the attributes of an attention that say so; None where none fits."""
    for name in _SIZES:
        size = getattr(attention, name, None)
        if _fits(size, queries, keys):
            return size
    for name in _HEADS:
        heads = getattr(attention, name, None)
        if _fits(heads, queries) and heads is not None and _fits(queries // heads, keys):
            return queries // heads
    return None


def _fits(size: Any, *features: int) -> bool:
    return type(size) is int and size > 0 and all(one % size == 0 for one in features)


def logit_deviations(model: nn.Module, batch: Batch, paths: set[str]) -> dict[str, float]:
    """The standard deviation of the logits of each attention at `paths` on a batch: of a query's over the keys.

    The root of the mean variance over the queries; attentions whose softmax is not seen are left out.
    Raises what the forward pass raises.
    """
    inside: list[str] = []
    variances: dict[str, list[float]] = defaultdict(list)

    def handle(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inside:
            logits = _logits(function, args, kwargs)
            if logits is not None:
                variances[inside[-1]].append(_variance(logits))
        return function(*args, **kwargs)

    handles = []
    for path in paths:
        module = model.get_submodule(path)
        handles += _noting(module, path, inside)
    try:
        with FunctionTap(_SOFTMAXES | {F.scaled_dot_product_attention}, handle):
            run_beside(model, *batch)
    finally:
        for one in handles:
            one.remove()
    return {path: math.sqrt(sum(ones) / len(ones)) for path, ones in variances.items()}


def _noting(module: nn.Module, path: str, inside: list[str]) -> list[RemovableHandle]:
    """Hooks that keep the paths of the attentions that are running, the innermost last."""

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        inside.append(path)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inside.pop()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _logits(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = dict(zip(("query", "key") if function not in _SOFTMAXES else ("input",), args, strict=False)) | kwargs
    if function in _SOFTMAXES:
        logits = given.get("input")
        return logits if isinstance(logits, Tensor) and logits.dim() >= 2 else None
    scale = given.get("scale") or 1.0 / math.sqrt(given["query"].shape[-1])
    return given["query"] @ given["key"].transpose(-2, -1) * scale


def _variance(logits: Tensor) -> float:
    """Of each row over what is not masked, on average over the rows with two such logits or more."""
    logits = logits.double()
    seen = logits > _MASKED
    count = seen.sum(-1)
    values = logits.where(seen, 0.0)
    mean = values.sum(-1) / count.clamp(min=1)
    squares = (values - mean.unsqueeze(-1)).square().where(seen, 0.0).sum(-1) / count.clamp(min=1)
    rows = squares[count > 1]
    return rows.mean().item() if rows.numel() else 0.0
