import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from desat.nonlinearity import measure_curve
from desat.watch.statistics import COLUMNS, LARGEST_SAMPLE, WIDTH, measure, subset


def measured(tensor: torch.Tensor, *args: object) -> tuple[dict[str, float], torch.Tensor | None]:
    row = torch.full((WIDTH,), float("nan"), dtype=torch.float64)
    units = measure(tensor, row, *args)  # type: ignore[arg-type]
    return dict(zip(COLUMNS, row.tolist(), strict=True)), units


def reference(array: np.ndarray) -> dict[str, float]:
    finite = array[np.isfinite(array)].astype(np.float64)
    clean = np.where(np.isfinite(array), array, 0)
    return {
        "count": array.size,
        "sum": finite.sum(),
        "sum_of_squares": np.square(finite).sum(),
        "minimum": clean.min(),
        "maximum": clean.max(),
        "zeros": (array == 0).sum(),
        "nonfinite": (~np.isfinite(array)).sum(),
    }


arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, np.inf, -np.inf, np.nan]),
)


@given(arrays)
@settings(deadline=None)
def test_statistics_are_those_of_numpy(array: np.ndarray) -> None:
    row, units = measured(torch.from_numpy(array))
    for name, value in reference(array).items():
        assert row[name] == pytest.approx(value, rel=1e-6), name
    assert units is None
    assert row["gain"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_dtype_is_read(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1.5, -2.0], [0.0, 4.0]], dtype=dtype)
    row, _ = measured(tensor)
    assert (row["sum"], row["sum_of_squares"], row["zeros"]) == (3.5, 22.25, 1)


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-20, 20, width=32)))
@settings(deadline=None)
def test_saturation_of_an_input_is_two_comparisons_with_the_curve(array: np.ndarray) -> None:
    curve = measure_curve(torch.tanh)
    assert curve is not None
    row, units = measured(torch.from_numpy(array), curve, 1)
    assert row["saturated_low"] == (array <= np.float32(curve.low)).sum()
    assert row["saturated_high"] == (array >= np.float32(curve.high)).sum()
    assert row["gain"] == pytest.approx((1 - np.tanh(array.astype(np.float64)) ** 2).sum(), abs=0.02 * array.size)
    expected = ((array <= np.float32(curve.low)) | (array >= np.float32(curve.high))).all(axis=0)
    assert units is not None
    np.testing.assert_array_equal(units.numpy(), expected)


def test_units_of_images_are_channels() -> None:
    curve = measure_curve(F.relu)
    images = torch.ones(2, 3, 4, 4)
    images[:, 1] = -1
    _, units = measured(images, curve, 1)
    assert units is not None
    assert units.tolist() == [False, True, False]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_a_subset_keeps_all_units_and_is_bounded(shape: list[int], unit: int) -> None:
    unit %= len(shape)
    tensor = torch.zeros(shape)
    part = subset(tensor, unit)
    assert part.shape[unit] == shape[unit]
    assert part.numel() <= 2 * LARGEST_SAMPLE or tensor.numel() <= LARGEST_SAMPLE
    if tensor.numel() <= LARGEST_SAMPLE:
        assert part is tensor


def test_a_large_tensor_is_read_in_part_with_a_small_error() -> None:
    tensor = torch.randn(64, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    row, _ = measured(tensor)
    assert row["count"] <= 2 * LARGEST_SAMPLE
    rms = (row["sum_of_squares"] / row["count"]) ** 0.5
    assert rms == pytest.approx(1.0, abs=5 / row["count"] ** 0.5)


def test_an_empty_tensor_is_an_empty_row() -> None:
    row, _ = measured(torch.zeros(0, 4))
    assert set(row.values()) == {0.0}
