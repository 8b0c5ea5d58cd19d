import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from desat.record.reader import Record
from desat.watch.rank import COLUMNS, ROWS, effective_rank, sample_matrix
from desat.watch.sampling import FIRST, INTERVAL, is_occasion, spread
from tests.watch.loops import classify


@given(st.integers(1, 12), st.integers(1, 12), st.floats(-8, 8))
@settings(deadline=None, max_examples=40)
def test_the_effective_rank_is_that_of_numpy(rows: int, columns: int, exponent: float) -> None:
    matrix = np.random.default_rng(rows * 13 + columns).standard_normal((rows, columns)) * 10.0**exponent
    found = effective_rank(matrix.astype(np.float32))
    # From the eigenvalues of the Gram matrix, another way than the one under test.
    eigenvalues = np.linalg.eigvalsh(matrix @ matrix.T if rows <= columns else matrix.T @ matrix)
    shares = np.sqrt(np.clip(eigenvalues, 0.0, None))
    shares = shares[shares > 0] / shares.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert found["effective_rank"] == pytest.approx(expected, rel=1e-4)
    assert found["effective_rank_share"] == pytest.approx(expected / min(rows, columns), rel=1e-4)
    assert 0.999 < found["effective_rank"] < min(rows, columns) + 1e-3


@given(st.integers(1, 8), st.floats(1e-20, 1e20))
@settings(deadline=None, max_examples=20)
def test_orthogonal_directions_of_one_size_count_one_each(directions: int, size: float) -> None:
    orthogonal = np.linalg.qr(np.random.default_rng(directions).standard_normal((10, directions)))[0]
    matrix = (size * orthogonal @ np.eye(directions, 9)).astype(np.float32)
    assert effective_rank(matrix)["effective_rank"] == pytest.approx(directions, rel=1e-4)


def test_what_is_nearly_the_same_for_every_sample_is_of_rank_one() -> None:
    generator = np.random.default_rng(0)
    collapsed = generator.standard_normal(64) + 1e-6 * generator.standard_normal((64, 64))
    assert effective_rank(collapsed.astype(np.float32))["effective_rank"] == pytest.approx(1.0, abs=0.01)


def test_a_matrix_without_a_rank() -> None:
    assert effective_rank(np.zeros((4, 3), np.float32)) == {"effective_rank": 0.0, "effective_rank_share": 0.0}
    assert effective_rank(np.array([[1.0, np.nan], [2.0, 3.0]], np.float32)) == {}
    assert effective_rank(np.array([[1.0, np.inf], [2.0, 3.0]], np.float32)) == {}


@given(
    st.lists(st.integers(1, 90), min_size=2, max_size=4).filter(lambda shape: np.prod(shape) < 20_000),
    st.data(),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
@settings(deadline=None, max_examples=40)
def test_the_sample_is_a_regular_part_of_the_output(shape: list[int], data: st.DataObject, dtype: torch.dtype) -> None:
    dimension = data.draw(st.integers(0, len(shape) - 1))
    output = (torch.arange(int(np.prod(shape))) % 2048).reshape(shape).to(dtype)
    sample = sample_matrix(output, dimension)
    whole = np.moveaxis(output.float().numpy(), dimension, -1).reshape(-1, shape[dimension])
    rows, columns = sample.shape
    assert 1 <= rows <= ROWS
    assert columns == -(-shape[dimension] // -(-shape[dimension] // COLUMNS))
    assert sample.dtype is torch.float32
    assert sample.untyped_storage().nbytes() == sample.numel() * 4
    if whole.shape[0] <= 8:
        assert rows == whole.shape[0]
    stride = -(-shape[dimension] // COLUMNS)
    possible = {tuple(row) for row in whole[:, (stride - 1) // 2 :: stride].tolist()}
    assert all(tuple(row) in possible for row in sample.tolist())


@given(st.lists(st.integers(0, 300), max_size=4), st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_a_spread_is_bounded_and_misses_nothing_that_is_small(lengths: list[int], most: int) -> None:
    slices = spread(tuple(lengths), most)
    taken = [len(range(*one.indices(length))) for one, length in zip(slices, lengths, strict=True)]
    assert np.prod(taken) <= most
    assert all(count >= 1 for count, length in zip(taken, lengths, strict=True) if length)
    if len(lengths) == 1 and lengths[0] <= most:
        assert taken == lengths


def test_a_spread_gives_room_that_a_short_dimension_leaves_to_the_others() -> None:
    taken = [len(range(*one.indices(length))) for one, length in zip(spread((2, 512), 64), (2, 512), strict=True)]
    assert taken == [2, 32]


def test_occasions_are_the_first_samples_and_then_some() -> None:
    assert [sample for sample in range(1, 50) if is_occasion(sample)] == [1, 2, 3, 4, 16, 32, 48]


def ranks(record: Record) -> dict[str, np.ndarray]:
    found = {site.name: record.readings(site) for site in record.sites()}
    return {
        name: readings["effective_rank"]["value"] for name, readings in found.items() if "effective_rank" in readings
    }


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight_norm(nn.Linear(6, 8, bias=False)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_layers_with_weights_and_nonlinearities_have_a_rank(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.LayerNorm(8), nn.Flatten(), nn.Linear(8, 4))
    assert list(ranks(watched(model, classify(steps=2)))) == ["0", "1", "3", "5"]


def test_functional_nonlinearities_and_parametrized_layers_too(watched) -> None:
    names = list(ranks(watched(Functional(), classify(steps=2))))
    assert names[0] == "a"
    assert "torch.tanh" in names[1]
    assert names[2] == "b"


def test_the_rank_of_a_live_layer(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    outputs: list[np.ndarray] = []
    model[0].register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone().numpy()))
    steps = INTERVAL + 2
    record = watched(model, classify(steps=steps))
    (site,) = [site for site in record.sites() if site.name == "0"]
    measured = record.readings(site)["effective_rank"]
    expected = [step for step in range(steps) if is_occasion(step + 1)]
    assert measured["step"].tolist() == expected
    assert len(expected) == FIRST + 1
    for step, value in zip(expected, measured["value"], strict=True):
        singular = np.linalg.svd(outputs[step].astype(float), compute_uv=False)
        shares = singular / singular.sum()
        assert value == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-5)


def test_channels_are_the_units_of_images_whatever_stands_between(watched) -> None:
    """Four channels that are equal are of rank one, and rows of pixels would not be."""
    convolution = nn.Conv2d(1, 4, 3)
    with torch.no_grad():
        convolution.weight[1:] = convolution.weight[:1]
        assert convolution.bias is not None
        convolution.bias.zero_()
    model = nn.Sequential(convolution, nn.Dropout(0.0), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 4))
    found = ranks(watched(model, classify(steps=1, shape=(1, 8, 8))))
    assert found["0"][0] == pytest.approx(1.0, abs=1e-3)
    assert found["2"][0] == pytest.approx(1.0, abs=1e-3)


def test_one_unit_has_no_rank(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 4))
    assert list(ranks(watched(model, classify(steps=1)))) == ["2"]
