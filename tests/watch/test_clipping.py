from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.record.reader import Record
from desat.watch.clipping import Clipping, find_clipping

PARAMETERS, ENTRIES = 5, 30


def gradients(seed: int, scale: float = 1.0) -> np.ndarray:
    """Some zeros, some places without an entry."""
    random = np.random.default_rng(seed)
    values = scale * random.normal(size=(PARAMETERS, ENTRIES)) * np.exp(random.normal(size=(PARAMETERS, 1)))
    values[random.random(values.shape) < 0.2] = 0.0
    values[random.random(values.shape) < 0.1] = np.nan
    return values.astype(np.float32).astype(np.float64)


def find(before: np.ndarray, after: np.ndarray) -> Clipping | None:
    after = after.astype(np.float32).astype(np.float64)
    return find_clipping(before, after, np.full(PARAMETERS, 1e-5), np.full(PARAMETERS, 100))


SEEDS = st.integers(0, 10**6)


@given(SEEDS, st.floats(1e-6, 0.999).filter(lambda f: abs(np.log2(f) - np.rint(np.log2(f))) > 1e-4))
@settings(deadline=None, max_examples=40)
def test_clipping_by_norm_gives_its_factor(seed: int, factor: float) -> None:
    before = gradients(seed)
    found = find(before, factor * before)
    assert found is not None
    assert found.clip_factor == pytest.approx(factor, rel=1e-5)
    assert found.clipped_value_share == 0
    assert found.growth == pytest.approx(1 / factor, rel=1e-5)


@given(SEEDS, st.floats(0.05, 0.9), st.sampled_from([1.0, 0.3]))
@settings(deadline=None, max_examples=40)
def test_clipping_by_value_gives_the_share_of_what_was_cut(seed: int, quantile: float, factor: float) -> None:
    before = gradients(seed)
    limit = np.nanquantile(np.abs(before[before != 0]), quantile)
    found = find(before, factor * np.clip(before, -limit, limit))
    cut = np.abs(before[np.isfinite(before) & (before != 0)]) > limit
    assert found is not None
    assert found.clip_factor == 1
    assert found.clipped_value_share == pytest.approx(cut.mean(), abs=0.011)


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_clipping_each_parameter_by_its_own_norm(seed: int) -> None:
    before = gradients(seed)
    factors = np.array([1.0, 0.7, 0.3, 1.0, 0.11])[:, None]
    found = find(before, factors * before)
    power = [np.nanmean(np.where(before == 0, np.nan, one) ** 2, axis=1).sum() for one in (before, factors * before)]
    assert found is not None
    assert found.clip_factor == pytest.approx(np.sqrt(power[1] / power[0]), rel=1e-4)
    assert found.clipped_value_share == 0


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0**-16, 1.3])
def test_what_is_left_alone_or_only_unscaled_is_not_clipped(factor: float) -> None:
    before = gradients(1)
    assert find(before, factor * before) == Clipping(1.0, 0.0, 1.0)


def test_gradients_that_were_changed_otherwise_say_nothing() -> None:
    before = gradients(1)
    assert find(before, before + 0.1 * gradients(2)) is None
    assert find(before, -before * 0.3) in (None, Clipping(1.0, 0.0, 1.0))
    assert find(np.zeros((PARAMETERS, ENTRIES)), np.zeros((PARAMETERS, ENTRIES))) is None
    assert find(np.full((PARAMETERS, ENTRIES), np.nan), before) is None


def by_hand(parameters: list[nn.Parameter]) -> None:
    norm = torch.sqrt(sum((one.grad.square().sum() for one in parameters if one.grad is not None), torch.zeros(())))
    for one in parameters:
        if one.grad is not None and norm > 0.05:
            one.grad = one.grad * (0.05 / norm)


CLIPPERS: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.05),
    "hand": by_hand,
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.002),
    "none": lambda parameters: None,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", CLIPPERS)
def test_clipping_in_a_training(watched, how: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 4)).to(dtype)
    norms: list[tuple[float, float]] = []
    cut: list[float] = []

    def norm() -> float:
        return float(np.sqrt(sum(one.grad.double().square().sum().item() for one in model.parameters())))

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(2):
                model(torch.randn(8, 20, dtype=dtype)).square().mean().backward()
            before = norm()
            all_ = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
            cut.append((all_.abs() > 0.002).double().mean().item())
            CLIPPERS[how](list(model.parameters()))
            norms.append((before, norm()))
            optimizer.step()

    record: Record = watched(model, loop)
    (site,) = record.sites("optimizer")
    readings = record.readings(site)
    assert readings["clip_factor"]["step"].tolist() == [0, 1, 2, 3]
    rounding = 0.02 if dtype is torch.bfloat16 else 1e-4
    factors = [after / before if how in ("norm", "hand") else 1.0 for before, after in norms]
    assert readings["clip_factor"]["value"].tolist() == pytest.approx(factors, rel=rounding)
    tolerance = 0.15 if how == "value" else rounding
    assert readings["gradient_norm"]["value"].tolist() == pytest.approx([one for one, _ in norms], rel=tolerance)
    shares = cut if how == "value" else [0.0] * 4
    assert readings["clipped_value_share"]["value"].tolist() == pytest.approx(shares, abs=0.06 if how == "value" else 0)


def test_a_gradient_that_no_backward_pass_of_a_tensor_made_says_nothing_of_clipping(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            loss = model(torch.randn(4, 6)).square().mean()
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.grad = gradient
            optimizer.step()

    record: Record = watched(model, loop)
    readings = record.readings(record.sites("optimizer")[0])
    assert "clip_factor" not in readings
    assert readings["gradient_norm"]["step"].tolist() == [0, 1, 2]
