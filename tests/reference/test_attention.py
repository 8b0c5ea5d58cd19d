import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from desat.reference.attention import attention_logits, relative_entropy, scaled_dot_product_attention, softmax

LOGITS = arrays.arrays(
    np.float64, arrays.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=st.floats(-1000, 1000)
)
SIZES = st.integers(1, 6)


@given(LOGITS, st.floats(-1e6, 1e6))
@settings(deadline=None, max_examples=20)
def test_softmax_is_that_of_torch_sums_to_one_and_does_not_see_a_shift(logits: np.ndarray, shift: float) -> None:
    weights = softmax(logits)
    np.testing.assert_allclose(weights, F.softmax(torch.from_numpy(logits), -1).numpy(), atol=1e-12)
    np.testing.assert_allclose(weights.sum(-1), 1.0)
    np.testing.assert_allclose(softmax(logits + shift), weights, atol=1e-8)
    np.testing.assert_allclose(softmax(logits, axis=0), F.softmax(torch.from_numpy(logits), 0).numpy(), atol=1e-12)


def test_softmax_survives_large_logits_and_masked_rows() -> None:
    assert softmax(np.array([1e300, 0.0])).tolist() == [1.0, 0.0]
    assert softmax(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]])).tolist() == [[0.0, 1.0], [0.0, 0.0]]


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(["none", "bool", "float", "causal"]), st.sampled_from([None, 0.3]))
@settings(deadline=None, max_examples=20)
def test_attention_is_that_of_torch(
    heads: int, queries: int, keys: int, width: int, masking: str, scale: float | None
) -> None:
    generator = torch.Generator().manual_seed(heads + 7 * queries + 49 * keys)
    query = torch.randn(2, heads, queries, width, generator=generator)
    key, value = (torch.randn(2, heads, keys, size, generator=generator) for size in (width, 3))
    mask = None
    if masking == "bool":
        mask = torch.rand(heads, queries, keys, generator=generator) < 0.5
    elif masking == "float":
        mask = torch.randn(queries, keys, generator=generator)
    causal = masking == "causal"
    expected = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)
    found, weights = scaled_dot_product_attention(
        query.numpy(), key.numpy(), value.numpy(), None if mask is None else mask.numpy(), causal, scale
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    sees_a_key = np.ones(weights.shape[:-1]) if masking != "bool" or mask is None else mask.any(-1).numpy()
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(sees_a_key, weights.shape[:-1]))


def test_without_the_scale_the_variance_of_the_logits_is_the_width() -> None:
    generator = np.random.default_rng(0)
    query, key = generator.standard_normal((2, 400, 64))
    assert attention_logits(query, key).var() == pytest.approx(1.0, rel=0.1)
    assert attention_logits(query, key, scale=1.0).var() == pytest.approx(64.0, rel=0.1)


def test_relative_entropy_is_one_for_equal_weights_and_zero_for_one_key() -> None:
    weights = np.array([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    visible = np.array([[True] * 4, [True] * 4, [True] * 4, [True, False, False, False]])
    np.testing.assert_allclose(relative_entropy(weights, visible), [1.0, 0.0, 0.5, math.nan])


@pytest.mark.parametrize(
    ("query", "key", "value"), [((3, 4), (3, 5), (3, 4)), ((4,), (3, 4), (3, 4)), ((3, 4), (5, 4), (3, 4))]
)
def test_shapes_that_do_not_fit_are_refused(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected .* got shape"):
        scaled_dot_product_attention(np.zeros(query), np.zeros(key), np.zeros(value))
