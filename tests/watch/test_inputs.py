from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from desat.record.reader import Record
from desat.record.rows import Site
from desat.watch.inputs import (
    FEATURES,
    INTEGERS,
    SAMPLE,
    TENSORS,
    describe_features,
    judge_features,
    judge_integers,
    sample_integers,
)
from tests.watch.loops import classify


def features_of(array: np.ndarray) -> np.ndarray:
    """Shape (samples, features)."""
    return array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array.reshape(len(array), -1)


@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
@settings(deadline=None, max_examples=40)
def test_features_are_judged_as_numpy_does(shape: list[int], constant: float, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(len(shape))
    array = generator.standard_normal(shape)
    matrix = features_of(array)  # a view of it
    matrix[:, : round(constant * matrix.shape[1])] = 0.25
    matrix *= 10.0 ** generator.uniform(-1, 1, matrix.shape[1])
    batch = torch.from_numpy(array).to(dtype)
    found = judge_features(describe_features(batch).numpy())

    matrix = features_of(batch.double().numpy())
    assert found["constant_features"] == pytest.approx(np.mean(np.ptp(matrix, axis=0) == 0))
    if matrix.shape[1] > 1:
        sizes = np.sqrt(np.mean(matrix**2, axis=0))
        assert found["feature_rms_largest_over_median"] == pytest.approx(sizes.max() / np.median(sizes), rel=1e-4)


def test_features_of_zeros_and_non_finite_features_have_no_scale() -> None:
    batch = torch.tensor([[0.0, 1.0, 4.0, 1.0], [0.0, -1.0, 4.0, torch.nan]])
    assert judge_features(describe_features(batch).numpy()) == {
        "constant_features": 0.5,
        "feature_rms_largest_over_median": pytest.approx(4.0 / 2.5),
    }
    assert judge_features(describe_features(torch.zeros(3, 4)).numpy()) == {"constant_features": 1.0}


@pytest.mark.parametrize("shape", [(4096, 3000), (128, 3, 64, 64), (3, 5000, 40), (100_000,), (2, 3, 500, 500)])
def test_large_batches_are_judged_in_part(shape: tuple[int, ...]) -> None:
    batch = torch.ones(shape)
    described = describe_features(batch)
    assert described.shape[1] <= FEATURES
    assert described[1].sum().item() <= SAMPLE  # of ones: the number of elements that were read
    assert judge_features(described.numpy())["constant_features"] == 1.0


def test_a_share_of_constant_features_is_estimated() -> None:
    batch = torch.randn(64, 3, 50, 50)
    batch[:, :, :25] = 0.0
    assert judge_features(describe_features(batch).numpy())["constant_features"] == pytest.approx(0.5, abs=0.1)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.bool]),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_integers_are_judged_as_numpy_does(shape: list[int], dtype: torch.dtype, turned: bool) -> None:
    batch = torch.from_numpy(np.random.default_rng(sum(shape)).integers(0, 4, shape)).to(dtype)
    if turned:
        batch = batch.movedim(0, -1)
    found = judge_integers(sample_integers(batch).numpy())
    array = batch.numpy().reshape(-1)
    _, counts = np.unique(array, return_counts=True)
    assert found == {
        "minimum": array.min(),
        "maximum": array.max(),
        "most_common_share": pytest.approx(counts.max() / array.size),
    }


@pytest.mark.parametrize("turned", [False, True])
def test_many_integers_are_sampled(turned: bool) -> None:
    batch = torch.zeros(512, 512, dtype=torch.int64)
    batch[:, 256:] = 7
    sample = sample_integers(batch.t() if turned else batch)
    assert INTEGERS // 2 <= sample.numel() <= INTEGERS
    assert sample.untyped_storage().nbytes() == sample.numel() * 8
    assert judge_integers(sample.numpy())["most_common_share"] == pytest.approx(0.5, abs=0.02)


def inputs_of(record: Record) -> dict[str, Site]:
    return {site.name: site for site in record.sites("input")}


def test_the_batch_comes_first_and_is_measured_whole(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    batches: list[np.ndarray] = []
    model.register_forward_pre_hook(lambda module, args: batches.append(args[0].double().numpy()))
    record = watched(model, classify(steps=3))
    site = inputs_of(record)["input"]
    assert record.sites()[0] == site
    assert site.operation == "float32"
    row = record.tensor(site, "output")
    assert row["mean"] == pytest.approx([batch.mean() for batch in batches], abs=1e-6)
    assert row["rms"] == pytest.approx([np.sqrt(np.mean(batch**2)) for batch in batches])
    assert row["minimum"] == pytest.approx([batch.min() for batch in batches])
    assert row["maximum"] == pytest.approx([batch.max() for batch in batches])
    assert row["nonfinite"].tolist() == [0, 0, 0]
    assert record.tensor(site, "gradient")["step"].size == 0
    readings = record.readings(site)
    assert readings["constant_features"]["value"].tolist() == [0, 0, 0]
    sizes = np.sqrt(np.mean(batches[2] ** 2, axis=0))
    assert readings["feature_rms_largest_over_median"]["value"][2] == pytest.approx(sizes.max() / np.median(sizes))


class Several(nn.Module):
    """Takes tensors in whatever nest it is given them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, batch: dict[str, Any], *more: Any, mask: Tensor | None = None) -> Tensor:
        x = self.layer(batch["image"]) + self.embed(batch["text"][0]).mean(1)
        return self.head(x if mask is None else x * mask[:, :1])


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
    F.cross_entropy(model(*args, **kwargs), torch.arange(8) % 4).backward()
    optimizer.step()


def test_a_nest_of_tensors_and_keywords_are_several_inputs(watched) -> None:
    image, tokens = torch.randn(8, 6), torch.randint(1, 9, (8, 5))
    tokens[:, 0] = 3

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            batch = {"image": image, "name": "a batch", "text": (tokens,)}
            learn(model, optimizer, batch, None, mask=torch.ones(8, 6, dtype=torch.bool))

    record = watched(Several(), loop)
    sites = inputs_of(record)
    assert {name: site.operation for name, site in sites.items()} == {
        "input": "float32",
        "input 2": "int64",
        "input 3": "bool",
    }
    assert [site.kind for site in record.sites()[:4]] == ["input", "input", "input", "module"]
    integers = record.readings(sites["input 2"])
    assert integers["minimum"]["value"].tolist() == [tokens.min()] * 2
    assert integers["maximum"]["value"].tolist() == [tokens.max()] * 2
    assert integers["most_common_share"]["value"][0] == pytest.approx(max(np.bincount(tokens.flatten())) / 40)
    assert record.tensor(sites["input 2"], "output")["step"].size == 0
    assert record.readings(sites["input 3"])["minimum"]["value"].tolist() == [1, 1]


class OnlyKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, *, x: Tensor) -> Tensor:
        return self.layer(x)


def test_an_input_by_keyword_comes_first_as_well(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            learn(model, optimizer, x=torch.full((8, 6), 2.0))

    record = watched(OnlyKeywords(), loop)
    site = record.sites()[0]
    assert (site.kind, site.name) == ("input", "input")
    assert record.tensor(site, "output")["rms"].tolist() == [2, 2]
    assert record.readings(site)["constant_features"]["value"].tolist() == [1, 1]


def test_of_many_tensors_the_first_are_looked_at(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        batch = {"image": torch.randn(8, 6), "text": [torch.zeros(8, 5, dtype=torch.int64)]}
        learn(model, optimizer, batch, *(torch.randn(8) for _ in range(6)))

    names = list(inputs_of(watched(Several(), loop)))
    assert names == ["input", "input 2", "input 3", "input 4"]
    assert len(names) == TENSORS


class Pair(nn.Module):
    """Two networks; the second is fed by the first, and by data."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 4)


def test_what_comes_from_another_network_is_no_input(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(model, Pair)
        made = model.generator(torch.full((8, 6), 3.0))
        loss = F.cross_entropy(model.critic(made), torch.zeros(8, dtype=torch.int64))
        (loss + F.cross_entropy(model.critic(torch.full((8, 6), 5.0)), torch.ones(8, dtype=torch.int64))).backward()
        optimizer.step()

    record = watched(Pair(), loop)
    found = {name: record.tensor(site, "output")["rms"].tolist() for name, site in inputs_of(record).items()}
    assert found == {"input": [3.0], "input of critic": [5.0]}


def test_an_evaluation_is_no_input(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            model(torch.full((8, 6), 1e6))
        model(torch.full((8, 6), 1e6))  # with gradients left on
        learn(model, optimizer, torch.full((8, 6), 2.0))

    record = watched(nn.Sequential(nn.Linear(6, 4)), loop)
    assert record.tensor(inputs_of(record)["input"], "output")["maximum"].tolist() == [2.0]


def test_a_nan_in_the_batch_is_seen(watched) -> None:
    batch = torch.ones(8, 6)
    batch[0, 0] = torch.nan
    record = watched(nn.Sequential(nn.Linear(6, 4)), lambda model, optimizer: learn(model, optimizer, batch))
    site = inputs_of(record)["input"]
    assert record.tensor(site, "output")["nonfinite"][0] == pytest.approx(1 / 48)
    assert record.readings(site)["constant_features"]["value"][0] == pytest.approx(5 / 6)
