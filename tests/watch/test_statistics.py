"""One pass over a tensor, by the kernel and by torch's operations, against NumPy."""

import math
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from desat.nonlinearity import Curve, measure_curve
from desat.record.histogram import BINS, LOWEST_EXPONENT
from desat.watch import statistics
from desat.watch.statistics import BINS_START, COLUMNS, LARGEST, SAMPLE, WIDTH, measure, measure_by_torch, subset

Measure = Callable[..., torch.Tensor | None]
both = pytest.mark.parametrize("by", [measure, measure_by_torch], ids=["kernel", "torch"])


def curve_of(function: Callable[[torch.Tensor], torch.Tensor]) -> Curve:
    curve = measure_curve(function)
    assert curve is not None
    return curve


TANH, RELU = curve_of(torch.tanh), curve_of(F.relu)


def measured(by: Measure, tensor: torch.Tensor, *args: object) -> tuple[dict[str, float], torch.Tensor | None]:
    row = torch.full((WIDTH,), math.nan, dtype=torch.float64)
    units = by(tensor, row, *args)
    return dict(zip(COLUMNS, row[:BINS_START].tolist(), strict=True)) | {"bins": row[BINS_START:].numpy()}, units


def reference(array: np.ndarray) -> dict[str, float]:
    known = np.isfinite(array)
    finite = array[known].astype(np.float64)
    extremes = {"minimum": finite.min(), "maximum": finite.max()} if finite.size else {}
    return extremes | {
        "count": array.size,
        "sum": finite.sum(),
        "sum_of_squares": np.square(finite).sum(),
        "zeros": (array == 0).sum(),
        "nonfinite": (~known).sum(),
        "sampled": known.sum(),
    }


def histogram(array: np.ndarray) -> np.ndarray:
    values = np.abs(array[np.isfinite(array) & (array != 0)]).astype(np.float32)
    exponents = np.frexp(values)[1] - 1
    return np.bincount(np.clip(exponents - LOWEST_EXPONENT, 0, BINS - 1), minlength=BINS)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, so the kernel could not be built")
def test_the_kernel_is_there() -> None:
    assert statistics._kernel is not None


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_statistics_are_those_of_numpy(by: Measure, dtype: type, data: st.DataObject) -> None:
    width = np.dtype(dtype).itemsize * 8
    largest = {16: 2.0**15, 32: 2.0**120, 64: 2.0**120}[width]
    # The histogram is of single precision: what lies below it is another test.
    numbers = st.floats(-largest, largest, width=width, allow_subnormal=False)
    elements = numbers.map(lambda value: 0.0 if abs(value) < 1e-30 else value)
    special = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan])
    array = data.draw(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=5, max_side=6), elements=elements | special)
    )
    row, units = measured(by, torch.from_numpy(array))
    scale = np.abs(np.where(np.isfinite(array), array, 0).astype(np.float64)).sum()
    for name, value in reference(array).items():
        assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-6 * scale if name == "sum" else 0), name
    np.testing.assert_array_equal(row["bins"], histogram(array))
    assert units is None
    assert row["gain"] == 0


@both
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_magnitudes_whose_squares_leave_single_precision_are_measured(by: Measure, scale: float) -> None:
    array = np.float32(scale) * np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    row, _ = measured(by, torch.from_numpy(array))
    assert row["sum_of_squares"] == pytest.approx(np.square(array.astype(np.float64)).sum(), rel=1e-5)
    assert row["sum"] == pytest.approx(array.astype(np.float64).sum(), abs=1e-4 * scale * 10_000**0.5)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_dtype_is_read(by: Measure, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1.5, -2.0], [0.0, 4.0]], dtype=dtype)
    row, _ = measured(by, tensor)
    assert (row["sum"], row["sum_of_squares"], row["zeros"]) == (3.5, 22.25, 1)


@both
@given(array=hnp.arrays(np.float32, (5, 7), elements=st.floats(-20, 20, width=32) | st.just(np.nan)))
@settings(deadline=None)
def test_saturation_of_an_input_is_two_comparisons_with_the_curve(by: Measure, array: np.ndarray) -> None:
    row, units = measured(by, torch.from_numpy(array), TANH, 1)
    low, high = array <= np.float32(TANH.low), array >= np.float32(TANH.high)
    assert (row["saturated_low"], row["saturated_high"]) == (low.sum(), high.sum())
    known = array[~np.isnan(array)].astype(np.float64)
    assert row["gain"] == pytest.approx((1 - np.tanh(known) ** 2).sum(), abs=0.01 * array.size)
    assert units is not None
    np.testing.assert_array_equal(units.numpy() != 0, (low | high).all(axis=0))


def layouts(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 1
    tensor.select(1, 1).fill_(-1.0)
    found = {
        "contiguous": tensor,
        "strided": tensor.repeat_interleave(2, dim=-1)[..., ::2],
        "transposed": tensor.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": tensor[:1].expand_as(tensor),
    }
    if len(shape) == 4:
        found["channels last"] = tensor.contiguous(memory_format=torch.channels_last)
    return found


@both
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed", "expanded", "channels last"])
def test_every_memory_layout_gives_the_same(by: Measure, shape: tuple[int, ...], layout: str) -> None:
    tensor = layouts(shape).get(layout)
    if tensor is None:
        return
    row, units = measured(by, tensor, RELU, 1)
    array = tensor.numpy()
    assert row["sum"] == pytest.approx(array.astype(np.float64).sum(), rel=1e-5)
    assert row["saturated_low"] == (array <= 0).sum()
    assert units is not None
    np.testing.assert_array_equal(
        units.numpy() != 0, (array <= 0).all(axis=tuple(i for i in range(array.ndim) if i != 1))
    )


@both
def test_gain_and_histogram_of_a_large_tensor_come_from_a_sample(by: Measure) -> None:
    tensor = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    row, _ = measured(by, tensor, TANH, 1)
    assert SAMPLE / 2 <= row["sampled"] <= 2 * SAMPLE
    assert row["bins"].sum() == row["sampled"]
    deviation = (1 - tensor.double().tanh() ** 2).std().item()
    exact = (1 - tensor.double().tanh() ** 2).mean().item()
    assert row["gain"] / row["sampled"] == pytest.approx(exact, abs=5 * deviation / row["sampled"] ** 0.5 + 0.003)


def test_kernel_and_torch_take_the_same_sample() -> None:
    tensor = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    tensor[::97] = math.nan
    ours, theirs = measured(measure, tensor, TANH)[0], measured(measure_by_torch, tensor, TANH)[0]
    np.testing.assert_array_equal(ours["bins"], theirs["bins"])
    assert ours["sampled"] == theirs["sampled"]
    assert ours["gain"] == pytest.approx(theirs["gain"], rel=1e-3)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_a_subset_keeps_all_units_and_is_bounded(shape: list[int], unit: int) -> None:
    most = 1000
    unit %= len(shape)
    tensor = torch.zeros(shape)
    part = subset(tensor, unit, most)
    assert part.shape[unit] == shape[unit]
    assert part.numel() <= max(2 * most, 2 * shape[unit])
    if tensor.numel() <= most:
        assert part is tensor


def test_a_very_large_tensor_is_read_in_part_with_a_small_error() -> None:
    tensor = torch.randn(3 * LARGEST // 64, 64, generator=torch.Generator().manual_seed(0))
    row, _ = measured(measure, tensor)
    assert row["count"] <= LARGEST
    rms = (row["sum_of_squares"] / row["count"]) ** 0.5
    assert rms == pytest.approx(1.0, abs=5 / row["count"] ** 0.5)


def test_an_empty_tensor_is_an_empty_row() -> None:
    row, _ = measured(measure, torch.zeros(0, 4))
    assert row["count"] == row["maximum"] == 0


def test_measuring_does_not_switch_denormal_numbers_off() -> None:
    measured(measure, torch.randn(100))
    assert torch.tensor(1e-40).mul(1.0).item() != 0.0
    assert np.float32(1e-40) * np.float32(1.0) != 0.0
