"""Parameters of every kind and optimizers of every kind, against NumPy and against what torch computes itself."""

import warnings
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from desat.record.reader import Record
from desat.record.rows import Site
from desat.watch import entries, statistics
from desat.watch.entries import (
    GRADIENTS,
    VALUES,
    Layout,
    measure_changes,
    measure_magnitudes,
    spacing,
    take_gradients,
    take_values,
)
from tests.watch.loops import classify

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = st.lists(st.lists(st.integers(1, 40), max_size=4).map(tuple), min_size=1, max_size=4)


@pytest.fixture(params=["kernel", "torch"])
def path(request) -> Iterator[str]:
    if request.param == "kernel" and statistics._kernel is None:
        pytest.skip("the kernel was not compiled here")
    with patch.object(statistics, "_kernel", statistics._kernel if request.param == "kernel" else None):
        yield request.param


def site(record: Record, name: str) -> Site:
    (found,) = [site for site in record.sites() if site.name == name and site.kind in ("parameter", "optimizer")]
    return found


def rms(tensor: Tensor | np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(tensor, np.float64)))))


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values over many magnitudes, with zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
    return (values * (torch.rand(shape, generator=generator) > 0.2)).to(dtype)


def in_memory(tensor: Tensor, how: str) -> Tensor:
    """The same values, laid out in memory in another way."""
    if how == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if how == "strided":
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    return tensor


@given(SHAPES, st.sampled_from(DTYPES), st.sampled_from(["plain", "transposed", "channels last", "strided"]),
       st.booleans(), st.integers(0, 1000))  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_samples_and_statistics_are_those_of_numpy(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, how: str, by_kernel: bool, seed: int
) -> None:
    kernel = statistics._kernel if by_kernel else None
    before = [random(shape, dtype, seed + i) for i, shape in enumerate(shapes)]
    gradients = [in_memory(random(shape, dtype, seed + 10 + i), how) for i, shape in enumerate(shapes)]
    after = [in_memory(torch.where(one > 0.5, one, one * 1.5), how) for one in before]
    broken = [one.clone() for one in gradients]
    broken[0][(0,) * broken[0].dim()] = np.nan
    with patch.object(statistics, "_kernel", kernel), torch.no_grad():
        layout = Layout.of(before)
        values, sample = take_values(layout, before), take_gradients(layout, gradients)
        changes = measure_changes(layout, after, values, sample).numpy()
        magnitudes, read = measure_magnitudes(layout, [*broken[:-1], None])

    for i in range(len(shapes)):
        old, new, gradient = (one[i].double().numpy().ravel() for one in (before, after, gradients))
        step, every = int(layout.steps[i]), int(layout.every[i])
        old, new = old[::step], new[::step]
        tracked = gradient[::step][::every]
        assert values[i].numpy()[: len(old)].tolist() == old.tolist()
        assert np.isnan(values[i].numpy()[len(old) :]).all()
        assert len(old) <= VALUES
        assert len(tracked) <= GRADIENTS
        np.testing.assert_allclose(sample[i].numpy()[: len(tracked)], tracked, rtol=1e-6, atol=1e-45)
        moving = tracked != 0
        expected = [
            np.square(new).sum(), 0, np.square(new - old).sum(), 0,
            moving.sum(), (moving & (old[::every] == new[::every])).sum(),
        ]  # fmt: skip
        np.testing.assert_allclose(changes[i], expected, rtol=1e-9)
        if i < len(shapes) - 1:
            whole = broken[i].double().numpy()
            finite = np.isfinite(whole)
            expected = [np.square(whole[finite]).sum(), (whole == 0).sum(), (~finite).sum()]
            np.testing.assert_allclose(magnitudes[i].numpy(), expected, rtol=1e-4)
            assert read[i] == whole.size
    assert read[-1] == 0
    assert magnitudes[-1].tolist() == [0, 0, 0]


@given(st.integers(1, 10**9), st.integers(1, 2000), st.integers(1, 5000))
@settings(deadline=None, max_examples=40)
def test_a_sample_is_bounded_and_meets_every_column(elements: int, most: int, row: int) -> None:
    step = spacing(elements, most, row)
    assert -(-elements // step) <= most
    assert step == 1 or np.gcd(step, row) == 1
    assert step < -(-elements // most) + 30


def test_of_a_very_large_gradient_a_part_is_read(path, monkeypatch) -> None:
    monkeypatch.setattr(entries, "LARGEST", 50_000)
    gradient = torch.arange(200_000.0)
    layout = Layout.of([gradient])
    magnitudes, read = measure_magnitudes(layout, [gradient])
    chunks = np.arange(200_000.0).reshape(-1)[: (200_000 // layout.spans[0].stride) * layout.spans[0].stride]
    chunks = chunks.reshape(-1, layout.spans[0].stride)[:, : entries.CHUNK]
    assert read[0] == chunks.size <= 50_000
    assert magnitudes[0, 0].item() == pytest.approx(np.square(chunks).sum(), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradients_beyond_the_squares_of_single_precision(path, scale: float) -> None:
    gradient = scale * random((300, 30), torch.float32, 1)
    magnitudes, _ = measure_magnitudes(Layout.of([gradient]), [gradient])
    assert magnitudes[0, 0].item() == pytest.approx(np.square(gradient.double().numpy()).sum(), rel=1e-4)


class Kinds(nn.Module):
    """Parameters of many kinds: large, shared, frozen, empty, unused, with channels last, not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3).to(memory_format=torch.channels_last)
        self.wide = nn.Linear(72, 300)
        self.back = nn.Linear(300, 72)
        self.back.weight = nn.Parameter(torch.randn(300, 72).t() / 17)
        self.again = nn.Linear(72, 300, bias=False)
        self.again.weight = self.wide.weight
        self.frozen = nn.Linear(300, 300).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).flatten(1)
        x = torch.tanh(self.back(torch.tanh(self.wide(x))))
        return self.head(torch.relu(self.frozen(self.again(x)))) * self.scalar + self.nothing.sum()


def test_every_parameter_is_recorded_as_torch_has_it(path, watched) -> None:
    model = Kinds()
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(6, 1, 5, 5)), torch.randint(0, 4, (6,))).backward()
            before = {name: one.detach().clone() for name, one in names.items() if one.grad is not None}
            optimizer.step()
            seen.append({
                name: (names[name].grad.clone(), names[name].detach().clone(), names[name].detach() - one)
                for name, one in before.items()
            })  # fmt: skip

    record = watched(model, loop, torch.optim.SGD(model.parameters(), lr=0.1))
    sites = [site for site in record.sites("parameter") if "frozen" not in record.readings(site)]
    recorded = {one.name.removeprefix("model."): one for one in sites}
    assert recorded.keys() == {name for name, one in names.items() if one.numel()}
    for name, found in recorded.items():
        columns = record.parameter(found)
        if "unused" in name:
            assert not len(columns["step"])
            continue
        assert columns["step"].tolist() == [0, 1, 2]
        for step in range(3):
            gradient, value, update = seen[step][name]
            assert columns["elements"][step] == value.numel()
            assert columns["gradient_rms"][step] == pytest.approx(rms(gradient), rel=1e-5)
            assert columns["gradient_zeros"][step] == pytest.approx((gradient == 0).double().mean().item())
            assert columns["gradient_nonfinite"][step] == 0
            tolerance = 1e-5 if value.numel() <= VALUES else 0.2
            assert columns["rms"][step] == pytest.approx(rms(value), rel=tolerance)
            assert columns["update_rms"][step] == pytest.approx(rms(update), rel=tolerance, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_too_small_for_the_dtype_leave_parameters_as_they_are(path, watched, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(30, 40, dtype=dtype), nn.Tanh(), nn.Linear(40, 4, dtype=dtype))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    shares: list[float] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(0.02 * torch.randn(8, 30, dtype=dtype)).square().sum().backward()
            weight = model.get_parameter("0.weight")
            before, gradient = weight.detach().clone(), weight.grad
            assert gradient is not None
            optimizer.step()
            step = spacing(1200, VALUES, 30)
            every = spacing(-(-1200 // step), GRADIENTS, 30)
            moving = (gradient != 0).flatten()[:: step * every]
            same = (before == weight.detach()).flatten()[:: step * every]
            shares.append(((moving & same).sum() / moving.sum()).item())

    record = watched(model, loop, torch.optim.SGD(model.parameters(), lr=0.02))
    unchanged = record.parameter(site(record, "0.weight"))["unchanged"]
    assert unchanged.tolist() == pytest.approx(shares)
    if dtype is torch.bfloat16:
        assert min(unchanged) > 0.5
    if dtype is torch.float64:
        assert max(unchanged) == 0


@pytest.mark.parametrize("kind", ["SGD", "SparseAdam"])
def test_sparse_gradients(path, watched, kind: str) -> None:
    model = nn.Sequential(nn.Embedding(400, 8, sparse=True), nn.Flatten(), nn.Tanh())
    tokens = torch.tensor([[1, 1, 7], [399, 0, 7]])
    dense: list[Tensor] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(5):
            optimizer.zero_grad()
            model(tokens).square().sum().backward()
            gradient = model.get_parameter("0.weight").grad
            assert gradient is not None
            dense.append(gradient.to_dense())
            optimizer.step()

    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    record = watched(model, loop, optimizer)
    columns = record.parameter(site(record, "0.weight"))
    assert len(columns["step"]) == 5
    for step, gradient in enumerate(dense):
        assert columns["gradient_rms"][step] == pytest.approx(rms(gradient), rel=1e-5)
        assert columns["gradient_zeros"][step] == pytest.approx((gradient == 0).double().mean().item())
    assert columns["update_rms"][0] > 0
    norm = record.readings(site(record, "optimizer"))["gradient_norm"]["value"]
    assert norm.tolist() == pytest.approx([one.double().norm().item() for one in dense], rel=1e-5)


def test_entries_of_a_sparse_gradient_are_those_of_the_dense_one() -> None:
    rows = torch.tensor([[3, 0, 3, 90]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = torch.sparse_coo_tensor(rows, torch.randn(4, 5), (100, 5)).coalesce()
        empty = torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.long), torch.randn(0, 5), (100, 5)).coalesce()
    layout = Layout.of([torch.empty(100, 5)] * 2)
    found = take_gradients(layout, [sparse, empty])
    expected = take_gradients(layout, [sparse.to_dense(), empty.to_dense()])
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["SGD", "LBFGS"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_gives_the_gradients_at_the_start_of_the_step(watched, kind: str, by_name: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    gradients: list[Tensor] = []

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        inputs = torch.randn(8, 6)
        for _ in range(3):
            calls = 0

            def closure() -> Tensor:
                nonlocal calls
                optimizer.zero_grad()
                loss = model(inputs).square().mean()
                loss.backward()
                gradient = model.get_parameter("0.weight").grad
                assert gradient is not None
                if calls == 0:
                    gradients.append(gradient.clone())
                calls += 1
                return loss

            if by_name:
                optimizer.step(closure=closure)
            else:
                optimizer.step(closure)
            assert calls == (1 if kind == "SGD" else 4)

    options = {"max_iter": 4, "tolerance_grad": 0, "tolerance_change": 0} if kind == "LBFGS" else {}
    record = watched(model, loop, getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options))
    columns = record.parameter(site(record, "0.weight"))
    assert columns["gradient_rms"].tolist() == pytest.approx([rms(one) for one in gradients], rel=1e-5)
    assert (columns["update_rms"] > 0).all()


def test_clipping_inside_of_a_closure_is_seen(watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(3, 6)).square().sum()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            return loss

        for _ in range(2):
            optimizer.step(closure)

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), loop)
    readings = record.readings(site(record, "optimizer"))
    assert (readings["clip_factor"]["value"] < 0.5).all()
    norm = readings["gradient_norm"]["value"]
    assert (norm * readings["clip_factor"]["value"]).tolist() == pytest.approx([0.01, 0.01], rel=1e-3)


def test_parameters_and_groups_that_come_in_mid_run(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rates: list[float] = []

    def loop(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        classify(steps=2)(model, optimizer)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.001})
        classify(steps=2)(model, optimizer)
        model[0].weight.data = torch.full((5, 6), 3.0)
        classify(steps=1)(model, optimizer)
        rates.append(rms(model[0].weight.detach()))

    record = watched(model, loop, optimizer)
    assert record.parameter(site(record, "0.weight"))["step"].tolist() == [0, 1, 2, 3, 4]
    added = record.parameter(site(record, "2.weight"))
    assert added["step"].tolist() == [2, 3, 4]
    assert (added["update_rms"] / added["gradient_rms"]).tolist() == pytest.approx([0.001] * 3, rel=1e-3)
    assert record.parameter(site(record, "0.weight"))["rms"][4] == pytest.approx(rates[0], rel=1e-5)


def test_two_optimizers_have_a_site_each(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[2].parameters())

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(8, 6)).square().sum().backward()
            second.step()
            first.step()

    record = watched(model, loop, first)
    assert {(one.name, one.operation) for one in record.sites("optimizer")} == {
        ("optimizer", "SGD"),
        ("optimizer 2", "Adam"),
    }
    for name in ("optimizer", "optimizer 2"):
        assert record.readings(site(record, name))["gradient_norm"]["step"].tolist() == [0, 1, 2]
    assert record.parameter(site(record, "2.bias"))["step"].tolist() == [0, 1, 2]
    assert max(one.position for one in record.sites("module")) < min(one.position for one in record.sites("optimizer"))


def test_a_parameter_whose_gradient_comes_and_goes(watched) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.turn = nn.Linear(6, 4), nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.turn += 1
            return (self.a if self.turn % 2 else self.b)(x)

    record = watched(Branches(), classify(steps=6))
    assert record.parameter(site(record, "a.weight"))["step"].tolist() == [0, 2, 4]
    assert record.parameter(site(record, "b.weight"))["step"].tolist() == [1, 3, 5]


def test_nothing_of_the_users_is_kept_alive(watched) -> None:
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    alive: list[int] = []

    def loop(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        classify(steps=2)(model, optimizer)
        extra = nn.Linear(6, 4)
        extra_optimizer = torch.optim.Adam(extra.parameters())
        classify(steps=2)(extra, extra_optimizer)
        gone = [weakref.ref(one) for one in (extra.weight, extra.weight.grad, extra_optimizer)]
        del extra, extra_optimizer
        gc.collect()
        alive.append(sum(one() is not None for one in gone))

    watched(model, loop)
    assert alive == [0]


def test_a_gradient_that_is_not_finite(path, watched) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            classify(steps=0)(model, optimizer)
            optimizer.zero_grad()
            model(torch.ones(2, 6)).sum().backward()
            weight = model.get_parameter("0.weight")
            assert weight.grad is not None
            if step == 1:
                weight.grad[0, 0] = torch.nan
            optimizer.step()
            with torch.no_grad():
                weight.nan_to_num_()

    record = watched(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), loop)
    columns = record.parameter(site(record, "0.weight"))
    assert columns["gradient_nonfinite"].tolist() == pytest.approx([0, 1 / 30, 0])
    assert np.isfinite(columns["gradient_rms"]).all()
    assert np.isnan(columns["update_rms"]).tolist() == [False, True, False]
    assert record.readings(site(record, "optimizer"))["gradient_norm"]["step"].tolist() == [0, 2]
