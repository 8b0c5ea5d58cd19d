"""What the attention remedies put into a network: norms of queries and keys, and attention over time."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure.order import REMEDY_PREFIX

NAME = "attention"
CHILD = REMEDY_PREFIX + NAME
"""The name under which a layer bears what was put in."""


class HeadNorm(nn.Module):
    """RMSNorm of each head's features, with a learned scale that all heads share (Dehghani et al. 2023, section 2.1).

    Takes (..., heads * size) or (..., size), the heads one after the other, and returns the same shape.
    """

    def __init__(self, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size, device=device, dtype=dtype)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(features.unflatten(-1, (-1, self.size))).flatten(-2)


class QueryKeyNorm(nn.Module):
    """The norms of the queries and of the keys of a fused attention layer."""

    def __init__(self, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.query = HeadNorm(size, device, dtype)
        self.key = HeadNorm(size, device, dtype)


class LastStepAttention(nn.Module):
    """Attention pooling over the steps of a recurrent layer (Bahdanau et al. 2015, with the dot product for a score).

    The scores are the products of the outputs with a learned query, which begins at zero, so as the mean over time.
    """

    def __init__(self, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))

    def forward(self, outputs: Tensor, time: int) -> Tensor:
        """outputs: (batch, time, size) or, with `time` 0, (time, batch, size). Returns (batch, size)."""
        shares = (outputs @ self.query).softmax(dim=time)
        return (shares.unsqueeze(-1) * outputs).sum(dim=time)


def norm_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook: the output of a query or key layer, normed."""
    return getattr(module, CHILD)(output)


def pool_output(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
    """A forward hook of a recurrent layer: its last output, and the last layer's last state, are the pooled outputs."""
    outputs, state = result
    if not isinstance(outputs, Tensor) or outputs.dim() != 3:
        return result  # a packed sequence, or one without a batch
    time = 1 if module.batch_first else 0
    pooled = getattr(module, CHILD)(outputs, time)
    outputs = torch.cat([outputs.narrow(time, 0, outputs.shape[time] - 1), pooled.unsqueeze(time)], dim=time)
    hidden = state[0] if isinstance(state, tuple) else state
    hidden = torch.cat([hidden[:-1], pooled.unsqueeze(0)])
    return outputs, ((hidden, *state[1:]) if isinstance(state, tuple) else hidden)


def stay_on_the_slow_path(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward hook that does nothing: where there is one, torch does not pass a transformer's layers by in C++."""


class NormalizedAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose queries and keys are normed for each head; the norms are its child CHILD."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = _mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = (logits if mask is None else logits + mask).softmax(dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, (batch, heads, steps, size) each, the first two normed."""
        if self._qkv_same_embed_dim:
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        offsets = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        norms: QueryKeyNorm = getattr(self, CHILD)
        q, k, v = (F.linear(*of) for of in zip((query, key, value), matrices, offsets, strict=True))
        return [
            one.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for one in (norms.query(q), norms.key(k), v)
        ]


def _mask(attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks of nn.MultiheadAttention as one that is added to logits of (batch, heads, queries, keys)."""
    batch, heads = q.shape[:2]
    total = None
    if attention is not None:
        total = _added(attention, q)
        total = total.unflatten(0, (batch, heads)) if total.dim() == 3 else total
    if padding is not None:
        padded = _added(padding, q)[:, None, None, :]
        total = padded if total is None else total + padded
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -math.inf)
