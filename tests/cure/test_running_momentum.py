"""normalization=momentum: the running statistics follow the batches, and nothing else changes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import desat
from desat.cure import origins
from desat.cure.edit import edited


def normed(momentum: float | None = 1e-6, **options: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum, **options), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(("remedy", "momentum"), [("momentum", 0.1), ("momentum:0.25", 0.25)])
def test_running_statistics_are_the_moving_average_of_the_batches(remedy: str, momentum: float) -> None:
    net = normed()
    (change,) = desat.apply(net, None, f"normalization={remedy}")
    assert (change.site, change.refused) == ("1", None)
    batches = [torch.randn(32, 4, generator=torch.Generator().manual_seed(seed)) + 3 for seed in range(5)]
    mean, variance = np.zeros(8), np.ones(8)
    for batch in batches:
        inner = net[0](batch).detach().double().numpy()
        mean = (1 - momentum) * mean + momentum * inner.mean(0)
        variance = (1 - momentum) * variance + momentum * inner.var(0, ddof=1)
        net(batch)
    np.testing.assert_allclose(net[1].running_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(net[1].running_var, variance, rtol=1e-5)


def test_training_is_as_it_was_and_a_checkpoint_fits_both() -> None:
    torch.manual_seed(0)
    net, twin = normed(), normed()
    twin.load_state_dict(net.state_dict())
    desat.apply(net, None, "normalization=momentum")
    batch = torch.randn(16, 4)
    assert torch.equal(net(batch), twin(batch))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(net.eval()(batch), twin.eval()(batch))


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # within torch
def test_a_compiled_network_follows_too() -> None:
    net = normed()
    desat.apply(net, None, "normalization=momentum")
    torch.compile(net, backend="eager")(torch.randn(16, 4) + 3)
    assert float(net[1].running_mean.abs().sum()) > 0.01  # pyright: ignore


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (normed(0.1), "it has that momentum"),
        (normed(track_running_stats=False), "it keeps no running statistics"),
        (nn.Linear(3, 2), "it has no batch normalization"),
    ],
)
def test_what_it_leaves(net: nn.Module, reason: str) -> None:
    (change,) = desat.apply(net, None, "normalization=momentum")
    assert change.refused == reason


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("nn.BatchNorm1d(8, momentum=1e-6)", "nn.BatchNorm1d(8, momentum=0.1)"),
        ("nn.BatchNorm1d(8, 1e-3, 1e-6)", "nn.BatchNorm1d(8, 1e-3, 0.1)"),
        ("nn.BatchNorm1d(8, **dict(momentum=1e-6))", None),
    ],
)
def test_the_source_says_it_in_the_constructor(call: str, expected: str | None, tmp_path: Path) -> None:
    source = f"from torch import nn\nnet = nn.Sequential(nn.Linear(4, 8), {call}, nn.ReLU(), nn.Linear(8, 2))\n"
    path = tmp_path / "network.py"
    path.write_text(source)
    names: dict[str, nn.Module] = {}
    origins.install()
    try:
        exec(compile(source, str(path), "exec"), names)
        (change,) = desat.apply(names["net"], None, "normalization=momentum")
    finally:
        origins.uninstall()
    assert change.refused is None
    told = edited(source, change.edits) if change.edits else None
    assert told == (None if expected is None else source.replace(call, expected))
