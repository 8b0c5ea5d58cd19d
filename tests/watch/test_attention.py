import math
from collections.abc import Callable
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
from desat.reference.attention import attention_logits, relative_entropy, softmax
from desat.watch import attention
from desat.watch.measurements import Measurements
from desat.watch.probes import FUNCTION_PROBES
from desat.watch.scene import Scene
from desat.watch.shipment import ship
from desat.watch.sites import Sites
from desat.watch.trouble import Trouble
from tests.watch.loops import classify


@pytest.fixture
def alert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every trouble an error of the test."""

    def report(self: Trouble, place: str, error: Exception) -> None:
        raise error

    monkeypatch.setattr(Trouble, "report", report)


def readings_of(function: Callable[..., Any], *args: Any, heads: int | None = None, **kwargs: Any) -> dict[str, float]:
    """What the probe of a function reads; empty if it is no attention."""
    trouble = Trouble()
    measurements = Measurements(trouble)
    scene = Scene(Sites(), measurements)
    scene.path, scene.heads = "layer", heads
    FUNCTION_PROBES[function](scene, function, args, kwargs)
    assert not trouble._off
    rows = [row for parcel in measurements.take(0) for row in ship([parcel])()]
    return {row.name: row.value for row in rows}


def expected_of(logits: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    """The readings by NumPy from all logits, shape (batch, heads, queries, keys)."""
    visible = np.broadcast_to(~masked, logits.shape)
    entropies = relative_entropy(softmax(np.where(visible, logits, -np.inf)), visible)
    weights = softmax(np.where(visible, logits, -np.inf)).max(-1)
    choosing = visible.sum(-1) >= 2
    expected = {"heads": float(logits.shape[1])}
    if visible.any():
        expected["largest_logit"] = np.abs(logits[visible]).max()
    if choosing.any():
        expected["one_hot_share"] = (weights[choosing] > 0.99).mean()
        heads = {
            f"entropy_head_{head}": np.nanmean(entropies[:, head])
            for head in range(logits.shape[1])
            if choosing[:, head].any()
        }
        values = list(heads.values())
        expected |= heads | {"entropy": np.mean(values), "entropy_smallest_head": min(values)}
    return expected


def mask_of(masking: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor | None, np.ndarray]:
    """A mask as F.scaled_dot_product_attention takes it, and where keys are masked."""
    if masking == "causal":
        return None, ~np.tri(*shape[-2:], dtype=np.bool_)
    if masking == "none":
        return None, np.zeros(shape, np.bool_)
    masked = torch.rand(shape[-2:] if masking == "shared" else shape, generator=generator) < 0.4
    if masking == "additive":
        bias = torch.randn(shape, generator=generator)
        return torch.where(masked, torch.tensor([-math.inf, -1e9])[torch.arange(shape[-1]) % 2], bias), masked.numpy()
    return ~masked, masked.numpy()


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 5),
    st.sampled_from(["none", "causal", "bool", "shared", "additive"]), st.sampled_from([None, 0.2, 30.0]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_readings_of_a_call_are_those_of_numpy(
    batch: int, heads: int, queries: int, keys: int, width: int, masking: str, scale: float | None
) -> None:
    shape = (batch, heads, queries, keys)
    generator = torch.Generator().manual_seed(sum(shape) + width)
    query = torch.randn(batch, heads, queries, width, generator=generator, requires_grad=True)
    key = torch.randn(batch, heads, keys, width, generator=generator, requires_grad=True)
    mask, masked = mask_of(masking, shape, generator)
    found = readings_of(
        F.scaled_dot_product_attention, query, key, key, mask, is_causal=masking == "causal", scale=scale
    )
    bias = mask.numpy() if mask is not None and mask.dtype != torch.bool else None
    logits = attention_logits(query.detach().numpy(), key.detach().numpy(), bias, scale=scale)
    assert found == pytest.approx(expected_of(logits, masked), rel=1e-6, abs=2e-5)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6),
    st.sampled_from([F.softmax, torch.softmax, Tensor.softmax]), st.sampled_from([-math.inf, -1e4, -1e9]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_readings_of_a_softmax_are_those_of_numpy(
    batch: int, heads: int, queries: int, keys: int, function: Callable[..., Tensor], mask: float
) -> None:
    generator = torch.Generator().manual_seed(batch + 3 * heads + 9 * queries + 27 * keys)
    logits = 10 * torch.randn(batch, heads, queries, keys, generator=generator)
    masked = torch.rand(queries, keys, generator=generator) < 0.4
    # BERT adds its mask; elsewhere masked logits are replaced.
    given_logits = logits + masked * mask if math.isfinite(mask) else logits.masked_fill(masked, mask)
    expected = expected_of(logits.double().numpy(), masked.numpy())
    assert readings_of(function, given_logits, dim=-1) == pytest.approx(expected, abs=1e-4)
    in_one = given_logits.reshape(batch * heads, queries, keys)
    assert readings_of(function, in_one, -1, heads=heads) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 2, 3, 4, 8).to(dtype).unbind()
    mask = torch.zeros(4, 4, dtype=dtype).masked_fill_(torch.ones(4, 4).triu(1).bool(), torch.finfo(dtype).min)
    logits = attention_logits(query.double().numpy(), key.double().numpy())
    expected = expected_of(logits, ~np.tri(4, dtype=np.bool_))
    assert readings_of(F.scaled_dot_product_attention, query, key, key, mask) == pytest.approx(expected, abs=1e-4)
    weights_of = (torch.from_numpy(logits) + mask).to(dtype)
    assert readings_of(F.softmax, weights_of, dim=-1)["entropy"] == pytest.approx(expected["entropy"], abs=0.01)


def test_under_autocast_logits_are_computed_in_single_precision() -> None:
    query, key = torch.randn(2, 2, 3, 4, 8).unbind()
    plain = readings_of(F.scaled_dot_product_attention, query, key, key)
    with torch.autocast("cpu", torch.bfloat16):
        assert readings_of(F.scaled_dot_product_attention, query, key, key) == plain


def test_shapes_with_more_and_with_fewer_dimensions() -> None:
    call = F.scaled_dot_product_attention
    query, key = torch.randn(2, 3, 4, 5, 8), torch.randn(2, 3, 4, 6, 8)
    expected = readings_of(call, query.flatten(0, 1), key.flatten(0, 1), key.flatten(0, 1))
    assert readings_of(call, query, key, key) == pytest.approx(expected)
    assert readings_of(call, query=query, key=key, value=key) == pytest.approx(expected)

    one_head = readings_of(call, query[:, :, 0].flatten(0, 1)[:, None], *2 * [key[:, :, 0].flatten(0, 1)[:, None]])
    assert readings_of(call, query[:, :, 0].flatten(0, 1), *2 * [key[:, :, 0].flatten(0, 1)]) == one_head
    assert readings_of(call, query[0, 0, 0], key[0, 0, 0], key[0, 0, 0])["heads"] == 1

    mask = torch.rand(6, 5, 6) < 0.7
    one_head = readings_of(
        call, query[:, :, 0].reshape(6, 1, 5, 8), *2 * [key[:, :, 0].reshape(6, 1, 6, 8)], mask[:, None]
    )
    assert readings_of(call, query[:, :, 0].reshape(6, 5, 8), *2 * [key[:, :, 0].reshape(6, 6, 8)], mask) == one_head


def test_grouped_and_shared_keys() -> None:
    call = F.scaled_dot_product_attention
    query, key = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8)
    repeated = key.repeat_interleave(2, dim=1)
    expected = readings_of(call, query, repeated, repeated)
    assert readings_of(call, query, key, key, enable_gqa=True) == pytest.approx(expected)
    expected = readings_of(call, query[:1], repeated[:1], repeated[:1])
    assert readings_of(call, query[0], key[0], key[0], enable_gqa=True) == pytest.approx(expected)
    shared = key[:, :1].expand(2, 6, 5, 8)
    assert readings_of(call, query, key[:, :1], key[:, :1]) == pytest.approx(readings_of(call, query, shared, shared))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_left_out(value: float) -> None:
    logits = torch.randn(2, 2, 3, 4)
    broken = logits.clone()
    broken[:, :, 1, 2] = value
    assert readings_of(F.softmax, broken, -1) == readings_of(F.softmax, logits[:, :, ::2], -1)
    assert readings_of(F.softmax, torch.full((2, 2, 3, 4), value), -1) == {"heads": 2}


def test_what_is_no_attention() -> None:
    assert readings_of(F.softmax, torch.randn(8, 10), dim=-1) == {}
    assert readings_of(F.softmax, torch.randn(8, 10, 5), dim=1) == {}
    assert readings_of(F.softmax, torch.randn(2, 21, 8, 8), dim=1) == {}
    assert readings_of(F.softmax, torch.randn(8, 10, 1), dim=-1) == {}
    assert readings_of(F.softmax, torch.zeros(8, 10, 5, dtype=torch.int64), dim=-1) == {}


def test_pooling_of_a_sequence_is_attention() -> None:
    logits = torch.randn(8, 10, 1)
    expected = expected_of(logits.double().numpy().reshape(1, 1, 8, 10), np.zeros((1, 1, 8, 10), np.bool_))
    assert readings_of(torch.softmax, logits, dim=1) == pytest.approx(expected, abs=1e-5)


@given(
    st.lists(st.integers(1, 5000), max_size=3), st.integers(1, 300), st.integers(1, 100_000), st.integers(1, 100_000),
    st.integers(1, 256),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_sample_is_bounded_and_never_empty(batch: list[int], heads: int, queries: int, keys: int, width: int) -> None:
    sample = attention._sample((*batch, heads, queries, keys), width)
    places = (*sample.batch, sample.heads, sample.queries, sample.keys)
    *sequences, number, rows, seen = (
        len(range(size)[place]) for size, place in zip((*batch, heads, queries, keys), places, strict=True)
    )
    taken = math.prod(sequences)
    assert min(taken, number, rows, seen) >= 1
    assert number <= attention.HEADS
    assert seen <= attention.KEYS
    assert taken * rows * number <= attention.ROWS
    assert taken * rows * number * seen <= max(attention.LOGITS, attention.QUERIES * number * seen)
    assert taken == 1 or taken * number * seen * width <= attention.KEY_ELEMENTS


@pytest.mark.parametrize("causal", [False, True])
def test_a_sample_of_a_large_call_tells_of_the_whole(causal: bool) -> None:
    query, key = (torch.randn(20, 40, 96, 16) for _ in range(2))
    found = readings_of(F.scaled_dot_product_attention, query, key, key, is_causal=causal)
    masked = ~np.tri(96, dtype=np.bool_) if causal else np.zeros((96, 96), np.bool_)
    expected = expected_of(attention_logits(query.double().numpy(), key.double().numpy()), masked)
    assert found["heads"] == 40
    assert "entropy_head_1" in found
    assert "entropy_head_0" not in found
    assert found["entropy"] == pytest.approx(expected["entropy"], abs=0.02)


class Classifier(nn.Module):
    """A transformer with an encoder layer of torch's or with an attention of the test's."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 8), attend, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(self.embed(x)).mean(1))


class Layers(nn.Module):
    """Attention layers by nn.MultiheadAttention; keeps the weights of the first call of each."""

    def __init__(self, need_weights: bool, masked: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, dropout, batch_first=True) for _ in range(2))
        self.need_weights, self.masked, self.first = need_weights, masked, []

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.masked else None
        for layer in self.layers:
            settings = {"need_weights": self.need_weights, "average_attn_weights": False}
            y, weights = layer(x, x, x, attn_mask=mask, is_causal=self.masked, **settings)
            if self.need_weights:
                self.first.append(weights.detach().numpy())
            x = x + y
        return x


def attention_sites(record: Record) -> dict[str, tuple[Site, dict[str, float]]]:
    """By name, the attention sites and their first readings."""
    return {
        site.name: (site, {name: series["value"][0] for name, series in record.readings(site).items()})
        for site in record.sites("attention")
    }


@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_is_seen_both_ways_and_alike(watched, alert, tmp_path, masked: bool) -> None:
    found, weights = {}, []
    for need_weights in (False, True):
        torch.manual_seed(0)
        layers = Layers(need_weights, masked)
        found[need_weights] = attention_sites(watched(Classifier(layers), classify(steps=1, shape=(5, 6))))
        weights = layers.first
        (tmp_path / "run" / "run.sqlite").unlink()
    assert list(found[True]) == list(found[False]) == ["attend.layers.0", "attend.layers.1"]
    assert found[False]["attend.layers.0"][0].operation == "F.scaled_dot_product_attention"
    assert found[True]["attend.layers.0"][0].operation == "softmax"
    visible = np.tri(5, dtype=np.bool_) if masked else np.ones((5, 5), np.bool_)
    for number in range(2):
        fused, by_hand = (found[way][f"attend.layers.{number}"][1] for way in (False, True))
        assert fused == pytest.approx(by_hand, abs=1e-5)
        assert by_hand["heads"] == 2
        entropies = np.nanmean(relative_entropy(weights[number], np.broadcast_to(visible, (8, 2, 5, 5))), axis=(0, 2))
        assert [by_hand[f"entropy_head_{head}"] for head in range(2)] == pytest.approx(entropies.tolist(), abs=1e-5)


def scaled_encoder(factor: float) -> nn.Module:
    """Torch's encoder layer with its query and key weights times a factor."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight[:16] *= factor
    return layer


def test_a_fresh_encoder_layer_looks_everywhere_and_one_with_large_weights_at_one_key(watched, alert, tmp_path) -> None:
    loop = classify(steps=1, shape=(12, 6))
    _, fresh = attention_sites(watched(Classifier(scaled_encoder(1)), loop))["attend.self_attn"]
    assert fresh["entropy"] > 0.95
    assert fresh["one_hot_share"] == 0
    (tmp_path / "run" / "run.sqlite").unlink()
    _, sick = attention_sites(watched(Classifier(scaled_encoder(30)), loop))["attend.self_attn"]
    assert sick["entropy"] < 0.05
    assert sick["one_hot_share"] > 0.8
    assert sick["largest_logit"] > 100 * fresh["largest_logit"]


class ByHand(nn.Module):
    """Self-attention as people write it. twice: a second softmax on another line."""

    def __init__(self, twice: bool = False, soft: nn.Module | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.twice, self.soft = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), twice, soft

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        logits = q @ k.transpose(-2, -1) / 2
        weights = logits.softmax(-1) if self.soft is None else self.soft(logits)
        if self.twice:
            weights = torch.softmax(3 * logits, dim=-1) @ weights
        return (weights @ v).transpose(1, 2).flatten(2)


def test_attention_by_hand_bears_the_name_of_its_module(watched, alert) -> None:
    model = Classifier(nn.Sequential(ByHand(), ByHand()))
    sites = attention_sites(watched(model, classify(steps=2, shape=(5, 6))))
    assert list(sites) == ["attend.0", "attend.1"]
    site, readings = sites["attend.1"]
    assert (site.kind, site.operation) == ("attention", "softmax")
    assert str(site.source).partition(":")[0].endswith("test_attention.py")
    assert readings["heads"] == 2
    assert 0.9 < readings["entropy_smallest_head"] <= readings["entropy"] <= 1


def test_two_calls_in_one_module_are_told_apart_by_their_lines(watched, alert) -> None:
    sites = attention_sites(watched(Classifier(ByHand(twice=True)), classify(steps=2, shape=(5, 6))))
    first, second = sites
    assert first == "attend"
    assert second == f"attend at {sites[second][0].source}"
    assert sites[second][1]["largest_logit"] == pytest.approx(3 * sites[first][1]["largest_logit"])


def test_the_softmax_of_torch_is_seen_and_one_that_serves_two_layers_is_told_apart(watched, alert) -> None:
    soft = nn.Softmax(dim=-1)
    model = Classifier(nn.Sequential(ByHand(soft=soft), ByHand(soft=soft), ByHand(soft=nn.Softmax(-1))))
    sites = attention_sites(watched(model, classify(steps=2, shape=(5, 6))))
    assert list(sites) == ["attend.0.soft", "attend.0.soft after attend.1.v", "attend.2.soft"]


class InALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, dim=-1)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(x.mean(1))


def test_one_line_that_serves_several_layers_is_told_apart_by_them(watched, alert) -> None:
    sites = attention_sites(watched(InALoop(), classify(steps=2, shape=(5, 6))))
    assert list(sites) == ["model", "model after layers.1", "model after layers.2"]


def test_a_classifier_of_each_place_is_no_attention(watched, alert) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.randn(3, 7, 6)).square().mean().backward()
        optimizer.step()

    record = watched(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Softmax(dim=-1)), loop)
    assert record.sites("attention") == ()


def test_a_module_called_from_two_lines_is_one_site(watched, alert) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        first = model(torch.randn(3, 5, 6))
        second = model(torch.randn(3, 5, 6))
        (first - second).square().mean().backward()
        optimizer.step()

    assert list(attention_sites(watched(Classifier(scaled_encoder(1)), loop))) == ["attend.self_attn"]


def trained(make: Callable[[], nn.Module], run: Callable[..., Any]) -> list[Tensor]:
    """Weights, the random state, and the outputs of validations between the steps."""
    torch.manual_seed(0)
    model, outputs = make(), []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            model.train()
            classify(steps=1, shape=(5, 6))(model, optimizer)
            model.eval()
            with torch.no_grad():
                outputs.append(model(torch.randn(8, 5, 6)))

    run(model, loop, torch.optim.Adam(model.parameters(), lr=0.01))
    return [*model.state_dict().values(), torch.get_rng_state(), *outputs]


@pytest.mark.parametrize(
    "attend",
    [
        lambda: Layers(need_weights=False, dropout=0.3),
        lambda: Layers(need_weights=True, dropout=0.3),
        lambda: scaled_encoder(1),
        lambda: ByHand(twice=True, soft=nn.Softmax(-1)),
    ],
)
def test_training_and_validation_are_the_same_bit_for_bit(attend: Callable[[], nn.Module], watched) -> None:
    plain = trained(lambda: Classifier(attend()), lambda model, loop, optimizer: loop(model, optimizer))
    seen = trained(lambda: Classifier(attend()), watched)
    assert all(torch.equal(*pair) for pair in zip(plain, seen, strict=True))
