"""Loss scales and skipped steps, and shares of a format's range against NumPy's and torch's own casts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import desat
from desat.record.histogram import BINS, LOWEST_EXPONENT
from desat.record.precision import flushed_share, low_precision, overflow_share, subnormal_share
from desat.record.reader import Record
from desat.record.rows import Site
from tests.records import statistics, write_record


def histogram(values: np.ndarray) -> np.ndarray:
    exponents = np.frexp(np.abs(values[values != 0]).astype(np.float64))[1] - 1
    return np.bincount(np.clip(exponents - LOWEST_EXPONENT, 0, BINS - 1), minlength=BINS).astype(float)


@given(st.integers(0, 10**6), st.floats(-12, 5), st.floats(0.1, 6))
@settings(deadline=None, max_examples=40)
def test_shares_of_float16_are_those_of_its_casts(seed: int, decade: float, spread: float) -> None:
    random = np.random.default_rng(seed)
    values = (random.choice([-1, 1], 2000) * 10 ** random.normal(decade, spread, 2000)).astype(np.float64)
    values = values[np.abs(values) < 65504]
    if not len(values):
        return
    counts, cast = histogram(values), values.astype(np.float16)
    assert flushed_share(counts, "float16") == np.mean(cast == 0)
    information = np.finfo(np.float16)
    assert subnormal_share(counts, "float16") == np.mean(np.abs(values) < float(information.smallest_normal))
    near = np.mean(np.abs(values) >= 2.0**15)
    assert overflow_share(counts, "float16") == near
    assert near == pytest.approx(np.mean(np.abs(values) > float(information.max) / 2), abs=2e-3)


@given(st.integers(0, 10**6), st.floats(-8, 3))
@settings(deadline=None, max_examples=40)
def test_shares_of_wider_formats_are_known_where_the_ends_are_empty(seed: int, decade: float) -> None:
    values = 10 ** np.random.default_rng(seed).normal(decade, 1.0, 500)
    cast = torch.from_numpy(values).to(torch.bfloat16)
    counts = histogram(values)
    for dtype in ("bfloat16", "float32", "float64"):
        for share, filled in (
            (flushed_share(counts, dtype), counts[0]),
            (subnormal_share(counts, dtype), counts[0]),
            (overflow_share(counts, dtype), counts[-1]),
        ):
            assert np.isnan(share) if filled else share == 0
    if not counts[0]:
        assert flushed_share(counts, "bfloat16") == (cast == 0).double().mean().item()


def test_what_is_beyond_the_histogram_is_not_known() -> None:
    tiny = histogram(np.array([1e-30, 1.0, 1e30, 1e30]))
    assert np.isnan(subnormal_share(tiny, "float32"))
    assert np.isnan(overflow_share(tiny, "bfloat16"))
    assert subnormal_share(tiny, "float16") == 0.25
    assert overflow_share(tiny, "float16") == 0.5
    assert np.isnan(flushed_share(np.zeros(BINS), "float16"))


def test_a_record_tells_of_low_precision_by_step(tmp_path: Path) -> None:
    from desat.record.histogram import pack_histogram

    rows: list[Any] = [Site(0, "a", "module", "Linear", None, 0, None)]
    for step, (dtype, values) in enumerate(
        [("float16", [1e-5, 1.0, 4e4, 0.0]), ("bfloat16", [1e-5, 1.0]), (None, [1e-9, 1.0])]
    ):
        packed = pack_histogram(histogram(np.array(values)))
        rows.append(statistics(0, "gradient", step, histogram=packed, dtype=dtype))
    record = write_record(tmp_path / "run", rows)
    columns = low_precision(record, record.sites()[0], "gradient")
    assert columns["step"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(columns["subnormal"], [1 / 3, 0, np.nan])
    np.testing.assert_array_equal(columns["overflow"], [1 / 3, 0, np.nan])
    np.testing.assert_array_equal(columns["float16_flushed"], [0, 0, 0.5])
    np.testing.assert_array_equal(columns["float16_subnormal"], [1 / 3, 0.5, 0.5])
    np.testing.assert_array_equal(columns["bfloat16_flushed"], [0, 0, 0])
    assert len(low_precision(record, record.sites()[0], "output")["step"]) == 0


class Scaled:
    """A loop with a scaler; `overflows` are the steps whose loss is multiplied beyond the range."""

    def __init__(
        self, scale: float = 1024.0, overflows: tuple[int, ...] = (), clip: float = 0.0, parts: int = 1
    ) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        self.overflows, self.clip, self.parts = overflows, clip, parts
        self.losses: list[float] = []
        self.scales: list[float] = []
        self.norms: list[float] = []

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(1)
        for step in range(8):
            optimizer.zero_grad()
            losses = []
            for _ in range(self.parts):
                with torch.autocast("cpu", torch.bfloat16):
                    output = model(torch.randn(8, 6, generator=generator))
                loss = output.float().square().mean() * (1e38 if step in self.overflows else 1.0)
                losses.append(loss.item())
                (self.scaler.scale(loss) / self.parts if self.parts > 1 else self.scaler.scale(loss)).backward()
            self.losses.append(float(np.mean(losses)) / self.parts)
            self.scales.append(self.scaler.get_scale())
            if self.clip:
                self.scaler.unscale_(optimizer)
                self.norms.append(nn.utils.clip_grad_norm_(model.parameters(), self.clip).item())
            self.scaler.step(optimizer)
            self.scaler.update()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def optimizer_of(model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_what_is_recorded_is_without_the_scale(watched, fused: bool, clip: float, parts: int) -> None:
    model, plain_model = network(), network()
    loop = Scaled(clip=clip, parts=parts)
    record: Record = watched(model, loop, optimizer_of(model, fused))
    readings = record.readings(record.sites("optimizer")[0])
    assert readings["loss_scale"]["value"].tolist() == loop.scales
    assert max(loop.scales) > 1024
    assert record.steps()["loss"].tolist() == pytest.approx(loop.losses, rel=1e-5)
    assert readings["skipped"]["value"].tolist() == [0.0] * 8
    plain = desat_of_plain_gradients(plain_model, parts)
    weight = next(one for one in record.sites("parameter") if one.name == "0.weight")
    factors = readings["clip_factor"]["value"]
    if clip:
        assert readings["gradient_norm"]["value"].tolist() == pytest.approx(loop.norms, rel=1e-3)
        assert factors.tolist() == pytest.approx([min(1.0, clip / norm) for norm in loop.norms], rel=1e-3)
    else:
        assert factors.tolist() == [1.0] * 8
    assert record.parameter(weight)["gradient_rms"][0] / factors[0] == pytest.approx(plain, rel=1e-2)


def desat_of_plain_gradients(model: nn.Module, parts: int) -> float:
    """The gradient of the first step without a scaler."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(parts):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(8, 6, generator=generator))
        (output.float().square().mean() / parts).backward()
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    return gradient.double().square().mean().sqrt().item()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_skipped_step_is_a_step_without_gradients(tmp_path: Path, fused: bool, given: bool) -> None:
    model = network()
    optimizer = optimizer_of(model, fused)
    loop = Scaled(overflows=(0, 4), scale=2.0**20)
    with desat.watch(model, optimizer if given else None, every=1, run_dir=tmp_path / "run"):
        loop(model, optimizer)
    record = Record(tmp_path / "run")
    assert record.steps()["step"].tolist() == list(range(8))
    assert record.steps()["loss"].tolist() == pytest.approx(loop.losses, rel=1e-5)
    (site,) = record.sites("optimizer")
    readings = record.readings(site)
    skipped = dict(zip(readings["skipped"]["step"], readings["skipped"]["value"], strict=True))
    assert [skipped.get(step) for step in range(8)][0 if given else 1 :] == [1, 0, 0, 0, 1, 0, 0, 0][
        0 if given else 1 :
    ]
    scales = dict(zip(readings["loss_scale"]["step"], readings["loss_scale"]["value"], strict=True))
    assert all(scale == loop.scales[int(step)] for step, scale in scales.items())
    assert {4, 5}.issubset(scales)
    usual = [1, 2, 3, 5, 6, 7]
    for one in record.sites("parameter"):
        assert record.parameter(one)["step"].tolist() == usual
    for one in record.sites("module"):
        assert record.tensor(one, "output")["calls"].tolist() == [1] * 8
        assert record.tensor(one, "gradient")["step"].tolist() == usual
        assert (record.tensor(one, "gradient")["nonfinite"] == 0).all()


def test_a_scaler_that_is_switched_off_changes_nothing(watched) -> None:
    model = network()
    loop = Scaled()
    loop.scaler = torch.amp.GradScaler("cpu", enabled=False)
    record: Record = watched(model, loop, optimizer_of(model, False))
    assert record.steps()["loss"].tolist() == pytest.approx(loop.losses, rel=1e-5)
    assert "loss_scale" not in record.readings(record.sites("optimizer")[0])


def test_losses_that_are_scaled_and_others_are_told_apart(watched) -> None:
    model, seen = network(), list[float]()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            losses = [model(torch.randn(8, 6)).square().mean() for _ in range(3)]
            first, second = scaler.scale(losses[:2])
            second.backward()
            losses[2].backward()
            first.backward()
            seen.append(float(np.mean([loss.item() for loss in losses])))
            scaler.step(optimizer)
            scaler.update()

    record: Record = watched(model, loop)
    assert record.steps()["loss"].tolist() == pytest.approx(seen, rel=1e-5)


def test_the_scaler_is_as_it_was_afterwards(tmp_path: Path) -> None:
    before = torch.amp.GradScaler.scale, torch.amp.GradScaler.step
    model = network()
    with desat.watch(model, run_dir=tmp_path / "run"):
        assert torch.amp.GradScaler.scale is not before[0]
    assert (torch.amp.GradScaler.scale, torch.amp.GradScaler.step) == before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_scaled_training_is_the_same_bit_for_bit(tmp_path: Path, fused: bool, clip: float) -> None:
    left: list[list[Tensor]] = []
    for watch in (False, True):
        model = network()
        optimizer, loop = optimizer_of(model, fused), Scaled(overflows=(0, 4), clip=clip)
        if watch:
            with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run"):
                loop(model, optimizer)
        else:
            loop(model, optimizer)
        state = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
        left.append([*model.state_dict().values(), *state, torch.tensor(loop.scales), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*left, strict=True))
