from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import desat
from desat.record.reader import Record
from desat.record.rows import Site
from desat.watch.residual import NODES, SAMPLE, judge_sizes, measure_sizes, stream_of
from tests.watch.loops import classify

WIDTH = 8


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4).filter(lambda shape: np.prod(shape) > 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.floats(1e-3, 1e3),
)
@settings(deadline=None, max_examples=40)
def test_sizes_are_those_of_numpy(shape: list[int], dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    stream = torch.randn(shape, generator=generator).to(dtype)
    branch = (scale * torch.randn(shape, generator=generator)).to(dtype)
    found = judge_sizes(measure_sizes(stream, branch).numpy())
    expected = np.sqrt(np.mean(branch.double().numpy() ** 2) / np.mean(stream.double().numpy() ** 2))
    assert found["branch_over_stream"] == pytest.approx(expected, rel=1e-5)
    assert found["branch_over_stream_db"] == pytest.approx(20 * np.log10(expected), abs=1e-4)


def test_a_large_sum_is_measured_in_part_and_the_user_s_memory_is_not_kept() -> None:
    stream, branch = torch.ones(64, 4096), torch.zeros(64, 4096)
    branch[::2] = 2.0
    found = measure_sizes(stream, branch)
    assert found[0].item() ** 2 <= SAMPLE
    assert found.untyped_storage().nbytes() == 2 * found.element_size()


def test_silence_and_noise_are_told_in_finite_numbers() -> None:
    assert judge_sizes(np.array([1.0, 0.0])) == {
        "branch_over_stream": 0.0,
        "branch_over_stream_db": pytest.approx(-897.1, abs=0.1),
    }
    assert judge_sizes(np.array([0.0, 1.0])) == {}
    assert judge_sizes(np.array([1.0, np.nan])) == {}
    assert judge_sizes(np.array([np.inf, 1.0])) == {}


class Net(nn.Module):
    """Embeds the input, does `body` with it, and classifies."""

    def __init__(self, body: Callable[["Net", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        self.f, self.g = (
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
            nn.Linear(WIDTH, WIDTH),
        )
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.body = body
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, self.embed(x))
        return self.head(y if y.dim() == 2 else y.mean(1))


def in_place(net: Net, x: Tensor) -> Tensor:
    x += net.f(x * 1.0)  # what a Linear needs for its backward pass may not be overwritten
    return x


def formula(net: Net, x: Tensor) -> Tensor:
    return net.g(0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044 * x**3))))


def recurrent(net: Net, x: Tensor) -> Tensor:
    state = x.new_zeros(x.shape[0], WIDTH)
    for step in range(x.shape[1]):
        state = torch.tanh(net.g(x[:, step]) + net.cell(state))  # pyright: ignore[reportCallIssue]
    return state


def looped(net: Net, x: Tensor) -> Tensor:
    for layer in net.layers:  # pyright: ignore[reportGeneralTypeIssues]
        x = x + torch.tanh(layer(x))
    return x


RESIDUAL: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "x + f(x)": lambda net, x: x + net.f(x),
    "f(x) + x": lambda net, x: net.f(x) + x,
    "torch.add": lambda net, x: torch.add(x, net.f(x)),
    "x.add": lambda net, x: x.add(net.f(x)),
    "x.add_": lambda net, x: (x * 1.0).add_(net.f(x)),
    "x += f(x)": in_place,
    "scaled": lambda net, x: x + 0.1 * net.f(x),
    "of one linear layer": lambda net, x: x + net.g(x),
    "projection": lambda net, x: (lambda y: net.g(y) + net.f(y))(torch.relu(x)),
    "projection, the other way": lambda net, x: (lambda y: net.f(y) + net.g(y))(torch.relu(x)),
}
NOT_RESIDUAL: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "bias": lambda net, x: x + net.bias,
    "bias of the whole shape": lambda net, x: x + net.bias.expand(x.shape[0], WIDTH),
    "constant": lambda net, x: x + 1.0,
    "data": lambda net, x: x + torch.ones(x.shape),
    "two linear maps": lambda net, x: net.g(x) + net.embed.weight.sum() * x,
    "doubled": lambda net, x: x + x,
    "a formula": formula,
    "no sum": lambda net, x: net.f(x),
    "halves": lambda net, x: torch.cat([x[:, :4] + x[:, 4:]] * 2, 1),
    "cut": lambda net, x: x + net.f(x.detach()),
    "a shared weight": lambda net, x: net.g(torch.ones_like(x)) + net.g(torch.zeros_like(x)) + x.sum(),
}


def residual_sites(record: Record) -> list[Site]:
    return list(record.sites("residual"))


@pytest.mark.parametrize("body", RESIDUAL.values(), ids=RESIDUAL.keys())
def test_a_residual_sum_is_one(watched, body) -> None:
    record = watched(Net(body), classify(steps=3))
    (site,) = residual_sites(record)
    readings = record.readings(site)
    assert set(readings) == {"branch_over_stream", "branch_over_stream_db"}
    assert readings["branch_over_stream"]["step"].tolist() == [0, 1, 2]
    assert np.all(readings["branch_over_stream"]["value"] > 0)


@pytest.mark.parametrize("body", NOT_RESIDUAL.values(), ids=NOT_RESIDUAL.keys())
def test_another_sum_is_none(watched, body) -> None:
    assert residual_sites(watched(Net(body), classify(steps=2))) == []


@pytest.mark.parametrize("name", [*RESIDUAL])
def test_the_stream_is_told_from_the_branch(watched, name: str) -> None:
    """A branch a thousand times smaller reads -60 dB whichever side of the plus it is on."""
    net = Net(RESIDUAL[name])
    with torch.no_grad():
        weaken = net.g if name == "of one linear layer" else net.f[2]
        for parameter in weaken.parameters():
            parameter *= 1e-3
    record = watched(net, classify(steps=1))
    (site,) = residual_sites(record)
    decibels = record.readings(site)["branch_over_stream_db"]["value"][0]
    assert -90 < decibels < -45


def test_the_value_is_that_of_the_training(watched) -> None:
    seen: list[float] = []

    def body(net: Net, x: Tensor) -> Tensor:
        branch = net.f(x)
        ratio = np.linalg.norm(branch.detach().double().numpy()) / np.linalg.norm(x.detach().double().numpy())
        seen.append(20 * np.log10(ratio))
        x = x * 1.0
        x += branch
        return x

    record = watched(Net(body), classify(steps=3))
    (site,) = residual_sites(record)
    assert record.readings(site)["branch_over_stream_db"]["value"] == pytest.approx(seen, abs=1e-4)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(11, WIDTH), nn.Embedding(5, WIDTH)
        self.pos = nn.Parameter(torch.randn(1, 9, WIDTH))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(5).expand(len(tokens), 5))
        x = x + self.pos[:, :5].expand(len(tokens), 5, WIDTH)
        x = x + self.token(tokens.flip(1))  # the same weight is no common origin
        return self.head(x.mean(1))


def test_positions_are_no_branch(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            F.cross_entropy(model(torch.randint(0, 11, (8, 5))), torch.randint(0, 4, (8,))).backward()
            optimizer.step()

    assert residual_sites(watched(Positions(), loop)) == []


def test_a_recurrent_cell_is_no_residual_sum(watched) -> None:
    net = Net(recurrent, cell=nn.Linear(WIDTH, WIDTH))
    assert residual_sites(watched(net, classify(steps=2, shape=(5, 6)))) == []


def test_a_loop_has_one_site_for_each_layer(watched) -> None:
    net = Net(looped, layers=nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)))
    names = [site.name for site in residual_sites(watched(net, classify(steps=2)))]
    assert [name.rpartition(" after ")[2] for name in names] == ["layers.0", "layers.1", "layers.2"]


def test_a_sequential_has_none(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    assert residual_sites(watched(model, classify(steps=2))) == []


class Attending(nn.Module):
    """A transformer's layer, written by hand, and torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.attn, self.norm = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.LayerNorm(WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return self.head(self.layer(x).mean(1))


class ResNet(nn.Module):
    """Two blocks of He et al. 2016: one whose skip is the identity, one whose skip is a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv4, self.bn4 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.skip = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)
        y = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        y += self.skip(x)
        return self.head(F.relu(y, inplace=True).mean((2, 3)))


WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet": (ResNet, (1, 8, 8), 2),
    "transformer": (Attending, (5, 6), 3),
    "in place": (lambda: Net(in_place), (6,), 1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(watched, name: str) -> None:
    make, shape, expected = WHOLE[name]
    assert len(residual_sites(watched(make(), classify(steps=2, shape=shape)))) == expected


def test_the_projection_is_the_stream(watched) -> None:
    net = ResNet()
    with torch.no_grad():
        assert isinstance(net.skip[1], nn.BatchNorm2d)
        net.skip[1].weight *= 1e3
    record = watched(net, classify(steps=1, shape=(1, 8, 8)))
    *_, projection = residual_sites(record)
    assert record.readings(projection)["branch_over_stream_db"]["value"][0] == pytest.approx(-60, abs=1)


def trained(make: Callable[[], nn.Module], shape: tuple[int, ...], run_dir: Path | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if run_dir is None:
        classify(steps=4, shape=shape)(model, optimizer)
    else:
        with desat.watch(model, optimizer, every=1, run_dir=run_dir):
            classify(steps=4, shape=shape)(model, optimizer)
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("name", WHOLE)
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    make, shape, _ = WHOLE[name]
    for plain, found in zip(trained(make, shape, None), trained(make, shape, tmp_path / "run"), strict=True):
        assert torch.equal(plain, found)


def test_the_walk_is_bounded() -> None:
    x = torch.randn(2, WIDTH, requires_grad=True) * 1.0
    layer, near, far = nn.Linear(WIDTH, WIDTH), x, x
    for _ in range(20):
        near = torch.relu(layer(near))
    assert stream_of(x, near) is x
    for _ in range(NODES):
        far = torch.relu(layer(far))
    assert stream_of(x, far) is None
