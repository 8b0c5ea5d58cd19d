import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from desat.reference.normalization import batch_norm, group_norm, layer_norm, normalize_over_everything, rms_norm

SHAPES = pytest.mark.parametrize("shape", [(8, 6), (4, 6, 5), (3, 6, 4, 5), (2, 6, 2, 3, 2)])
BATCHES = arrays.arrays(
    np.float64, st.tuples(st.integers(8, 20), st.integers(1, 5)), elements=st.integers(-1000, 1000).map(float)
)


def drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, shape)


def spread_out(batch: np.ndarray) -> np.ndarray:
    """The batch with a ramp added to each feature, so that none is constant."""
    return batch + 5000.0 * np.arange(len(batch))[:, None]


@SHAPES
def test_batch_norm_is_that_of_torch(shape: tuple[int, ...]) -> None:
    x, gamma, beta = drawn(shape), drawn(shape[1:2], 1), drawn(shape[1:2], 2)
    values, weight, bias = (torch.from_numpy(array) for array in (x, gamma, beta))
    for eps in (1e-5, 0.1):
        expected = F.batch_norm(values, None, None, weight, bias, training=True, eps=eps)
        np.testing.assert_allclose(batch_norm(x, gamma, beta, eps), expected.numpy(), atol=1e-11)
    plain = F.batch_norm(values, None, None, training=True)
    np.testing.assert_allclose(batch_norm(x), plain.numpy(), atol=1e-11)


@SHAPES
@pytest.mark.parametrize("dimensions", [1, 2])
def test_layer_and_rms_norm_are_those_of_torch(shape: tuple[int, ...], dimensions: int) -> None:
    x, features = drawn(shape), shape[-dimensions:]
    gamma, beta = drawn(features, 1), drawn(features, 2)
    values, weight, bias = (torch.from_numpy(array) for array in (x, gamma, beta))
    expected = F.layer_norm(values, features, weight, bias, 1e-3)
    np.testing.assert_allclose(layer_norm(x, gamma, beta, 1e-3, dimensions), expected.numpy(), atol=1e-11)
    np.testing.assert_allclose(layer_norm(x, dimensions=dimensions), F.layer_norm(values, features).numpy(), atol=1e-11)
    expected = F.rms_norm(values, features, weight, 1e-3)
    np.testing.assert_allclose(rms_norm(x, gamma, 1e-3, dimensions), expected.numpy(), atol=1e-11)


@SHAPES
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_is_that_of_torch(shape: tuple[int, ...], groups: int) -> None:
    x, gamma, beta = drawn(shape), drawn(shape[1:2], 1), drawn(shape[1:2], 2)
    if len(shape) == 2 and groups == 6:
        return  # a group of one value, which torch refuses
    values, weight, bias = (torch.from_numpy(array) for array in (x, gamma, beta))
    expected = F.group_norm(values, groups, weight, bias, 1e-3)
    np.testing.assert_allclose(group_norm(x, groups, gamma, beta, 1e-3), expected.numpy(), atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_extreme_inputs_are_normalized_as_by_torch(offset: float, scale: float) -> None:
    x = offset + scale * np.random.default_rng(0).standard_normal((32, 4))
    values = torch.from_numpy(x)
    expected = F.batch_norm(values, None, None, training=True)
    np.testing.assert_allclose(batch_norm(x), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(layer_norm(x), F.layer_norm(values, (4,)).numpy(), atol=1e-6)
    np.testing.assert_allclose(rms_norm(x), F.rms_norm(values, (4,), eps=1e-6).numpy(), atol=1e-6)
    np.testing.assert_allclose(group_norm(x, 2), F.group_norm(values, 2).numpy(), atol=1e-6)


@given(BATCHES)
@settings(deadline=None, max_examples=20)
def test_batch_norm_gives_each_feature_mean_zero_and_variance_one(batch: np.ndarray) -> None:
    normalized = batch_norm(spread_out(batch))
    np.testing.assert_allclose(normalized.mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(normalized.var(axis=0), 1.0, atol=1e-8)


@given(BATCHES, st.floats(-1e5, 1e5), st.floats(0.1, 100.0))
@settings(deadline=None, max_examples=20)
def test_batch_norm_does_not_see_a_shift_or_scale_of_a_feature(batch: np.ndarray, shift: float, scale: float) -> None:
    batch = spread_out(batch)
    changed = batch.copy()
    changed[:, 0] = shift + scale * batch[:, 0]
    np.testing.assert_allclose(batch_norm(changed), batch_norm(batch), atol=1e-7)
    changed[:, 0] *= -1.0
    np.testing.assert_allclose(batch_norm(changed)[:, 0], -batch_norm(batch)[:, 0], atol=1e-7)


@given(BATCHES, st.floats(-1e5, 1e5), st.floats(0.1, 100.0))
@settings(deadline=None, max_examples=20)
def test_layer_norm_does_not_see_a_shift_and_rms_norm_does_not_see_a_scale(
    batch: np.ndarray, shift: float, scale: float
) -> None:
    samples = spread_out(batch).T
    normalized = layer_norm(samples)
    np.testing.assert_allclose(layer_norm(shift + scale * samples), normalized, atol=1e-7)
    np.testing.assert_allclose(normalized.var(axis=1), 1.0, atol=1e-8)
    root_mean_square = rms_norm(samples)
    np.testing.assert_allclose(np.mean(root_mean_square**2, axis=1), 1.0, atol=1e-8)
    np.testing.assert_allclose(rms_norm(scale * samples), root_mean_square, atol=1e-7)


def test_normalizing_over_everything_leaves_features_of_unlike_scale_apart() -> None:
    x = np.random.default_rng(0).normal([0.0, 100.0], [1.0, 10.0], (200, 2))
    sketch = normalize_over_everything(x)
    assert sketch.mean() == pytest.approx(0.0, abs=1e-12)
    assert sketch.var() == pytest.approx(1.0, abs=1e-6)
    assert np.abs(sketch.mean(axis=0)).min() > 0.9
    assert sketch.var(axis=0).max() < 0.1
    np.testing.assert_allclose(batch_norm(x).mean(axis=0), 0.0, atol=1e-12)
    one_feature = x[:, :1]
    np.testing.assert_allclose(normalize_over_everything(one_feature, 2.0, 3.0), 2.0 * batch_norm(one_feature) + 3.0)


def test_one_group_is_layer_norm_and_constant_features_become_beta() -> None:
    x = drawn((3, 6, 4))
    np.testing.assert_allclose(group_norm(x, 1), layer_norm(x, dimensions=2), atol=1e-12)
    np.testing.assert_array_equal(batch_norm(np.full((4, 2), 7.0), beta=np.array([1.0, 2.0])), [[1.0, 2.0]] * 4)


def test_input_is_not_changed() -> None:
    x = drawn((4, 6))
    before = x.copy()
    for result in (batch_norm(x), layer_norm(x), rms_norm(x), group_norm(x, 2), normalize_over_everything(x)):
        assert not np.shares_memory(result, x)
    np.testing.assert_array_equal(x, before)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, features\) or .* got shape \(3,\)"):
        batch_norm(np.zeros(3))
    with pytest.raises(ValueError, match=r"more than one value per feature, got shape \(1, 3\)"):
        batch_norm(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"gamma of shape \(3,\), got shape \(4,\)"):
        batch_norm(np.zeros((4, 3)), gamma=np.ones(4))
    with pytest.raises(ValueError, match=r"beta of shape \(3, 2\), got shape \(2,\)"):
        layer_norm(np.zeros((4, 3, 2)), beta=np.ones(2), dimensions=2)
    with pytest.raises(ValueError, match=r"at least 3 axes of features, got shape \(4, 3\)"):
        rms_norm(np.zeros((4, 3)), dimensions=3)
    with pytest.raises(ValueError, match=r"divided into 4 groups, got shape \(2, 6\)"):
        group_norm(np.zeros((2, 6)), 4)
    with pytest.raises(ValueError, match=r"at least one value, got shape \(0, 2\)"):
        normalize_over_everything(np.zeros((0, 2)))
