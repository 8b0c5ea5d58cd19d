import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.watch.gradient_noise import FEWEST, WINDOW, NoiseWindow, noise_floor


def expected_snr(window: list[np.ndarray]) -> float:
    """One parameter's, from the last gradients, shape (entries,) each."""
    kept = np.array([gradient for gradient in window[-WINDOW:] if np.isfinite(gradient).all()], np.float64)
    if len(kept) < FEWEST:
        return np.nan
    mean, variance = kept.mean(0), kept.var(0, ddof=1)
    varies = variance > 1e-9 * mean**2
    return float(np.mean(mean[varies] ** 2 / variance[varies])) if varies.any() else np.nan


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(0, 10**6), st.floats(1e-20, 1e10))
@settings(deadline=None, max_examples=40)
def test_the_ratio_is_that_of_numpy(steps: int, parameters: int, width: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    entries = random.integers(1, width + 1, parameters)
    drift = random.normal(size=(parameters, width))
    window = NoiseWindow()
    seen: list[np.ndarray] = []
    for _ in range(steps):
        gradients = (scale * (drift + random.normal(size=(parameters, width)))).astype(np.float32)
        gradients[random.random((parameters, width)) < 0.02] = np.nan
        gradients[:, 0] = 0.0
        gradients[np.arange(width) >= entries[:, None]] = np.nan
        seen.append(gradients)
        found = window.add(gradients, entries)
        expected = [expected_snr([one[i, : entries[i]] for one in seen]) for i in range(parameters)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pure_noise_gives_the_floor() -> None:
    random, window, found = np.random.default_rng(0), NoiseWindow(), np.zeros(0)
    for _ in range(WINDOW):
        found = window.add(random.normal(size=(400, 128)).astype(np.float32), np.full(400, 128))
    assert found.mean() == pytest.approx(noise_floor(WINDOW), rel=0.03)


def test_a_known_ratio_of_signal_to_noise() -> None:
    random, window, found = np.random.default_rng(0), NoiseWindow(), np.zeros(0)
    for _ in range(WINDOW):
        found = window.add(random.normal(3.0, 2.0, size=(400, 128)).astype(np.float32), np.full(400, 128))
    # The mean of a noncentral F with 1 and n - 1 degrees of freedom, over n.
    expected = (WINDOW - 1) / (WINDOW - 3) * (1 + WINDOW * 2.25) / WINDOW
    assert found.mean() == pytest.approx(expected, rel=0.03)


def test_a_large_gradient_of_the_past_is_forgotten() -> None:
    random, window, found = np.random.default_rng(0), NoiseWindow(), np.zeros(0)
    seen = [random.normal(1e6 if step == 3 else 0.0, 1e-3, size=(1, 50)).astype(np.float32) for step in range(50)]
    for gradients in seen:
        found = window.add(gradients, np.array([50]))
    assert found[0] == pytest.approx(expected_snr([one[0] for one in seen]), rel=1e-5)


def test_readings_of_a_training(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    seen: list[np.ndarray] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).mean().backward()
            gradient = model.get_parameter("0.weight").grad
            assert gradient is not None
            seen.append(gradient.numpy().ravel().copy())
            optimizer.step()

    record = watched(model, loop)
    (weight,) = [one for one in record.sites("parameter") if one.name == "0.weight"]
    readings = record.readings(weight)["gradient_snr"]
    assert readings["step"].tolist() == list(range(FEWEST - 1, 20))
    expected = [expected_snr(seen[: step + 1]) for step in range(FEWEST - 1, 20)]
    assert readings["value"].tolist() == pytest.approx(expected, rel=1e-4)
