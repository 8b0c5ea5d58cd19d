"""Attention: how sharply each head looks, and how large its logits are.

Fused kernels hide the logits, so those of a few query rows are computed again. What is reduced on the device is a row's
five numbers; entropies are made of them on the host.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.record.rows import Site
from desat.watch.functional import Call
from desat.watch.measurements import is_measurable
from desat.watch.modules import Member
from desat.watch.scene import Scene

LOGITS = 65_536
"""Logits of a call that are looked at, over all heads, as long as that makes QUERIES rows for each head."""

QUERIES = 8
"""Query rows of a sequence that are looked at, at least: so the keys are not read for one row alone."""

SEQUENCES = 16
"""Elements of the batch that are looked at; of a larger one a regular subset."""

ROWS = 2048
"""Rows, over all heads, that are looked at: each sends five numbers to the host."""

HEADS = 32
"""Heads that are looked at; of more a regular subset."""

KEYS = 8192
"""Keys that are looked at. Of more a regular subset, and the entropy is that over the subset."""

KEY_ELEMENTS = 1_048_576
"""Elements of the keys, over all heads, that are multiplied by queries; more only where a single sequence has more."""

ONE_HOT = 0.99
"""A row with one weight above this looks at one key only."""

MASKED = 5_000.0
"""A logit this far below a row's largest is a masked key: masks add -1e4 (BERT), -65504, -1e9 or -inf."""

_Indices = tuple[slice, ...]


class _Sample(NamedTuple):
    """Which part of the logits, shape (batch..., heads, queries, keys), is looked at."""

    batch: _Indices
    heads: slice
    queries: slice
    keys: slice


class _ScaledDotProduct(NamedTuple):
    """The arguments of a call of F.scaled_dot_product_attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def probe_scaled_dot_product(scene: Scene, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Readings of a call of F.scaled_dot_product_attention, see `reduce_rows`."""
    call = _ScaledDotProduct(*args, **kwargs)
    mask_is_plain = call.attn_mask is None or type(call.attn_mask) in (Tensor, nn.Parameter)
    if is_measurable(call.query) and is_measurable(call.key) and mask_is_plain:
        shape = _shape(call)
        sample = _sample(shape, call.query.shape[-1])
        site = scene.inner_site("attention", "F.scaled_dot_product_attention")
        reduction = functools.partial(reduce_rows, heads=shape[-3], limit=math.inf)
        scene.measurements.deferred(site, "rows", lambda: _rows_of_call(call, sample), reduction)


def probe_softmax(scene: Scene, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Readings of a call of a softmax that makes attention weights, see `attention_logits` and `reduce_rows`."""
    given = dict(zip(("input", "dim"), args, strict=False)) | kwargs
    logits = attention_logits(given.get("input"), given.get("dim"), scene)
    if logits is not None:
        _measure_softmax(scene, scene.inner_site("attention", "softmax"), logits)


def probe_softmax_module(scene: Scene, member: Member, module: nn.Module, args: tuple[Any, ...]) -> None:
    """The same of an nn.Softmax."""
    logits = attention_logits(args[0] if args else None, module.dim, scene)
    if logits is not None:
        name = scene.told_apart("attention", member.path)
        _measure_softmax(scene, scene.site("attention", name, "softmax"), logits)


def probe_heads(scene: Scene, member: Member, module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Tell how many heads an nn.MultiheadAttention has, whose softmax runs over heads and batch in one dimension."""
    scene.heads = module.num_heads  # pyright: ignore[reportAttributeAccessIssue]

    def finish(output: Any) -> None:
        scene.heads = None

    return finish


def attention_logits(tensor: Any, dimension: Any, scene: Scene) -> Tensor | None:
    """What a softmax over `dimension` takes, as logits of shape (batch..., heads, queries, keys); None if no attention.

    Attention is a softmax over the last dimension of three or more, and one over the second of (batch, length, 1),
    which pools a sequence. The first over the very output of a layer is no attention, but a classifier of each place.
    """
    if not is_measurable(tensor) or not isinstance(dimension, int) or tensor.dim() < 3:
        return None
    dimension %= tensor.dim()
    if tensor.dim() == 3 and dimension == 1 and tensor.shape[1] > 1 and tensor.shape[2] == 1:
        return tensor.detach().squeeze(2)[None, None]
    is_output = scene.product is not None and scene.product() is tensor
    if dimension != tensor.dim() - 1 or tensor.shape[-1] < 2 or is_output:
        return None
    if tensor.dim() > 3:
        return tensor.detach()
    heads = scene.heads if scene.heads and tensor.shape[0] % scene.heads == 0 else 1
    return tensor.detach().unflatten(0, (-1, heads))


def _measure_softmax(scene: Scene, site: Site, logits: Tensor) -> None:
    sample = _sample(logits.shape)

    def rows() -> Tensor:
        part = logits[(*sample.batch, sample.heads, sample.queries, sample.keys)]
        return row_statistics(_wide(part), MASKED)

    reduction = functools.partial(reduce_rows, heads=logits.shape[-3], limit=MASKED)
    scene.measurements.deferred(site, "rows", rows, reduction)


def _shape(call: _ScaledDotProduct) -> tuple[int, ...]:
    """The shape of a call's logits: (batch..., heads, queries, keys), with one head where the call tells of none."""
    leading, others = tuple(call.query.shape[:-2]), tuple(call.key.shape[:-2])
    if call.enable_gqa:
        others = (*others[:-1], leading[-1])
    if leading != others:
        leading = tuple(torch.broadcast_shapes(leading, others))
    if len(leading) < 2:
        leading = (1, *leading) if call.enable_gqa else (*leading, 1) if leading else (1, 1)
    return (*leading, call.query.shape[-2], call.key.shape[-2])


def _sample(shape: tuple[int, ...], width: int = 1) -> _Sample:
    *batch, all_heads, queries, all_keys = shape
    heads, keys = _regular(all_heads, HEADS), _regular(all_keys, KEYS)
    number = _taken(all_heads, heads)
    logits = number * _taken(all_keys, keys)
    rows = min(max(LOGITS // logits, QUERIES), ROWS // number)
    sequences = min(SEQUENCES, rows // min(queries, QUERIES), KEY_ELEMENTS // (logits * width))
    taken, places = 1, []
    for size in batch:
        places.append(_regular(size, max(sequences // taken, 1)))
        taken *= _taken(size, places[-1])
    return _Sample(tuple(places), heads, _regular(queries, max(rows // taken, 1)), keys)


def _regular(size: int, most: int) -> slice:
    """At most `most` of `size` places, at equal distances."""
    stride = math.ceil(size / most)
    return slice(stride // 2, None, stride)


def _taken(size: int, places: slice) -> int:
    return len(range(size)[places])


def _rows_of_call(call: _ScaledDotProduct, sample: _Sample) -> Tensor:
    shape, device = _shape(call), call.query.device.type
    plain = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
    with plain:
        return row_statistics(_logits_of_call(call, shape, sample), math.inf)


def _logits_of_call(call: _ScaledDotProduct, shape: tuple[int, ...], sample: _Sample) -> Tensor:
    """The sampled logits, at least in single precision, -inf where a key is masked."""
    *leading, queries, keys = shape
    width = call.query.shape[-1]
    query = _laid_out(call.query, (*leading, queries, width), call)[(*sample.batch, sample.heads, sample.queries)]
    key_heads = call.key.shape[-3] if call.enable_gqa else leading[-1]
    key = _laid_out(call.key, (*leading[:-1], key_heads, keys, width), call)[sample.batch]
    if key_heads != leading[-1]:
        key = key.repeat_interleave(leading[-1] // key_heads, dim=-3)
    key = key[(..., sample.heads, sample.keys, slice(None))]
    scale = 1.0 / math.sqrt(width) if call.scale is None else call.scale
    logits = (_wide(query) * scale) @ _wide(key).transpose(-2, -1)
    if call.attn_mask is not None:
        mask = _laid_out(call.attn_mask, shape, call)
        mask = mask[(*sample.batch, sample.heads, sample.queries, sample.keys)]
        if mask.dtype == torch.bool:
            logits.masked_fill_(~mask, -math.inf)
        else:
            logits = logits + mask.masked_fill(mask < -MASKED, -math.inf)
    if call.is_causal:
        places = torch.arange(max(queries, keys), device=logits.device)
        later = places[:keys][sample.keys] > places[:queries][sample.queries, None]
        logits = logits + torch.where(later, -math.inf, 0.0)
    return logits


def _laid_out(tensor: Tensor, shape: tuple[int, ...], call: _ScaledDotProduct) -> Tensor:
    """A tensor of a call as a view of the full shape, heads third from the end."""
    # Three dimensions may be heads or a batch; only grouped queries tell.
    if tensor.dim() == 3 == max(call.query.dim(), call.key.dim()) and not call.enable_gqa:
        tensor = tensor.unsqueeze(1)
    return tensor.expand(shape)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def row_statistics(logits: Tensor, limit: float) -> Tensor:
    """Five numbers of each row of logits, shape (..., keys) -> (5, ...), of which `reduce_rows` makes readings.

    With the row's largest logit m, and over its visible keys, which are those whose logit z lies above m - limit: m,
    the sum of exp(z - m), the sum of (z - m) exp(z - m), how many they are, and the smallest z - m. A row with a nan,
    and one whose logits are all -inf, has no visible keys.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    below = logits - largest
    visible = below > -limit
    # exp(-80) adds nothing to a sum that is at least 1, and further down exp is six times as slow on the CPU.
    near = below.clamp(min=-80.0)
    weights = near.exp()
    return torch.stack(
        [
            largest.squeeze(-1),
            weights.sum(dim=-1),
            (weights * near).sum(dim=-1),
            visible.sum(dim=-1, dtype=logits.dtype),
            torch.where(visible, below, 0.0).amin(dim=-1),
        ]
    )


def reduce_rows(rows: NDArray[Any], heads: int, limit: float) -> dict[str, float]:
    """Readings of an attention site from `row_statistics`, shape (5, batch..., heads looked at, queries).

    `heads`: how many there are, 1 where they cannot be told apart. `largest_logit`: the largest magnitude of a logit
    that is not masked. Of the rows that see two keys or more: `one_hot_share`, those with one weight above ONE_HOT;
    `entropy_head_<n>`, from 0 (one key) to 1 (all keys alike), the mean over rows of H = -sum of p log p, divided by
    the log of the number of visible keys; `entropy`, the mean of the heads; `entropy_smallest_head`. A name is missing
    where no row tells of it. After Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse", section 3, where the entropy is not divided.
    """
    by_head = np.moveaxis(rows.astype(np.float64), -2, 1).reshape(5, rows.shape[-2], -1)
    largest, total, moment, visible, lowest = by_head
    readings = {"heads": float(heads)}
    seen = (visible >= 1) & (largest >= -limit)
    if seen.any():
        readings["largest_logit"] = float(np.maximum(np.abs(largest), np.abs(largest + lowest))[seen].max())
    choosing = seen & (visible >= 2)
    if not choosing.any():
        return readings
    readings["one_hot_share"] = float((1.0 / total[choosing] > ONE_HOT).mean())
    numbers = range(heads)[_regular(heads, HEADS)]
    entropies = {}
    for number, chosen, sums, moments, counts in zip(numbers, choosing, total, moment, visible, strict=True):
        if chosen.any():
            entropy = (np.log(sums[chosen]) - moments[chosen] / sums[chosen]) / np.log(counts[chosen])
            entropies[f"entropy_head_{number}"] = float(np.clip(entropy, 0.0, 1.0).mean())
    values = list(entropies.values())
    return readings | {"entropy": float(np.mean(values)), "entropy_smallest_head": min(values)} | entropies
