import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from desat.record.histogram import BINS, LOWEST_EXPONENT, magnitude_quantile, pack_histogram, unpack_histograms


def unpack_histogram(packed: bytes | None) -> np.ndarray:
    return unpack_histograms([packed])[0]


@given(hnp.arrays(np.int64, BINS, elements=st.integers(0, 60_000)))
def test_counts_that_fit_come_back_as_they_were(counts: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_histogram(pack_histogram(counts)), counts)


@given(hnp.arrays(np.int64, BINS, elements=st.integers(0, 10**9)))
def test_larger_counts_keep_their_proportions_and_no_filled_bin_is_lost(counts: np.ndarray) -> None:
    back = unpack_histogram(pack_histogram(counts))
    np.testing.assert_array_equal(back > 0, counts > 0)
    if counts.any():
        np.testing.assert_allclose(back / back.max(), counts / counts.max(), atol=2e-5)


@given(st.floats(-40, 10), st.sampled_from([0.05, 0.5, 0.95]))
def test_quantiles_are_right_within_a_factor_of_two(scale: float, share: float) -> None:
    values = np.exp2(np.random.default_rng(0).normal(scale, 2, 4000))
    counts = np.bincount(np.clip(np.floor(np.log2(values)) - LOWEST_EXPONENT, 0, BINS - 1).astype(int), minlength=BINS)
    found = magnitude_quantile(counts.astype(float), share)
    if np.log2(values).min() > LOWEST_EXPONENT and np.log2(values).max() < LOWEST_EXPONENT + BINS:
        assert 0.5 <= found / np.quantile(values, share) <= 2


def test_an_empty_histogram_has_no_quantile() -> None:
    assert pack_histogram(np.zeros(BINS)) is None
    assert np.isnan(magnitude_quantile(np.zeros(BINS), 0.5))
    assert magnitude_quantile(np.eye(BINS), 0.5).shape == (BINS,)
    assert unpack_histogram(b"") == pytest.approx(np.zeros(BINS))
