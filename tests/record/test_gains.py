import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import desat
from desat.diagnose.link_budget import measure_link_budget
from desat.record.gains import backward_gains, forward_gains
from desat.record.reader import Grid, Record
from desat.record.rows import Row, Site
from tests.records import SIGMOID_CURVE, deep_network, statistics, write_record


def gain(grid: Grid, name: str) -> list[float]:
    (place,) = [place for place, site in enumerate(grid.sites) if site.name == name]
    return grid.values[place].tolist()


def decibels(ratio: float) -> float:
    return float(20 * np.log10(ratio))


def site(number: int, name: str, kind: str = "module", operation: str = "Linear") -> Site:
    curve = SIGMOID_CURVE if kind == "nonlinearity" else None
    return Site(number, name, kind, operation, None, number, curve)


CHAIN = (
    Site(9, "input", "input", "float32", None, -1, None),
    site(0, "first"),
    site(1, "bend", "nonlinearity", "Sigmoid"),
    site(2, "last"),
)


def chain(step: int, levels: dict[tuple[str, str], float | None], **common: float) -> list[Row]:
    """Rows of CHAIN at a step: rms by name of site and quantity."""
    numbers = {known.name: known.id for known in CHAIN}
    return [
        statistics(numbers[name], quantity, step, **({"rms": rms} | common)) for (name, quantity), rms in levels.items()
    ]


FORWARD: dict[tuple[str, str], float | None] = {
    ("input", "output"): 2.0,
    ("first", "output"): 4.0,
    ("bend", "input"): 5.0,
    ("bend", "output"): 0.5,
    ("last", "output"): 1.0,
}


def test_forward_gains_of_a_chain(tmp_path: Path) -> None:
    grid = forward_gains(write_record(tmp_path, [*CHAIN, *chain(0, FORWARD)]))
    assert [known.name for known in grid.sites] == ["first", "bend", "last"]
    assert grid.steps.tolist() == [0]
    assert gain(grid, "first") == pytest.approx([decibels(2)])
    assert gain(grid, "bend") == pytest.approx([decibels(0.1)])  # over its own input, and not the output before it
    assert gain(grid, "last") == pytest.approx([decibels(2)])


def test_without_an_input_batch_the_first_gain_is_not_known(tmp_path: Path) -> None:
    levels = {key: rms for key, rms in FORWARD.items() if key[0] != "input"}
    grid = forward_gains(write_record(tmp_path, [*CHAIN, *chain(0, levels)]))
    assert np.isnan(gain(grid, "first")).all()
    assert gain(grid, "last") == pytest.approx([decibels(2)])


def test_of_several_inputs_the_first_stands_for_the_batch(tmp_path: Path) -> None:
    second = Site(10, "input 2", "input", "float32", None, -1, None)
    rows = [*CHAIN, second, *chain(0, FORWARD), statistics(10, "output", 0, rms=100.0)]
    assert gain(forward_gains(write_record(tmp_path, rows)), "first") == pytest.approx([decibels(2)])


def test_what_did_not_run_is_passed_over(tmp_path: Path) -> None:
    skipping = {key: rms for key, rms in FORWARD.items() if key[0] != "bend"}
    grid = forward_gains(write_record(tmp_path, [*CHAIN, *chain(0, FORWARD), *chain(3, skipping)]))
    assert grid.steps.tolist() == [0, 3]
    assert gain(grid, "last") == pytest.approx([decibels(2), decibels(0.25)])
    assert np.isnan(gain(grid, "bend")[1])


def test_what_was_not_finite_has_no_gain_nor_has_what_comes_after(tmp_path: Path) -> None:
    rows = [*CHAIN, *chain(0, FORWARD)]
    rows += chain(1, {**FORWARD, ("first", "output"): None}) + chain(2, FORWARD, nonfinite=0.1)
    rows += chain(3, {**FORWARD, ("bend", "output"): np.inf})
    rows = [row._replace(nonfinite=1.0) if getattr(row, "rms", 0.0) is None else row for row in rows]
    grid = forward_gains(write_record(tmp_path, rows))
    assert np.isnan(gain(grid, "first")).tolist() == [False, True, True, False]
    assert np.isnan(gain(grid, "bend")).tolist() == [False, False, True, True]
    assert np.isnan(gain(grid, "last")).tolist() == [False, False, True, True]


def test_silence_is_a_finite_gain(tmp_path: Path) -> None:
    grid = forward_gains(write_record(tmp_path, [*CHAIN, *chain(0, {**FORWARD, ("bend", "output"): 0.0})]))
    assert gain(grid, "bend") == pytest.approx([-897.1 - decibels(5)], abs=0.1)
    assert gain(grid, "last") == pytest.approx([897.1], abs=0.1)


def test_losses_and_other_sites_are_no_part_of_the_chain(tmp_path: Path) -> None:
    others = [site(3, "sum", "residual", "torch.Tensor.add"), site(4, "criterion", operation="CrossEntropyLoss")]
    rows = [*CHAIN, *others, *chain(0, FORWARD), statistics(3, "output", 0), statistics(4, "output", 0)]
    rows += [*chain(0, {("first", "gradient"): 1.0, ("last", "gradient"): 2.0}), statistics(4, "gradient", 0)]
    with write_record(tmp_path, rows) as record:
        assert [known.name for known in forward_gains(record).sites] == ["first", "bend", "last"]
        assert [known.name for known in backward_gains(record).sites] == ["first", "last"]
        assert gain(backward_gains(record), "last") == pytest.approx([decibels(0.5)])


def test_behind_the_last_site_that_the_loss_depends_on_there_is_no_gradient(tmp_path: Path) -> None:
    levels: dict[tuple[str, str], float | None] = {("first", "gradient"): 0.0, ("bend", "gradient"): 1.0}
    grid = backward_gains(write_record(tmp_path, [*CHAIN, *chain(0, {**levels, ("last", "gradient"): 0.0})]))
    assert np.isnan(gain(grid, "last")).all()
    assert gain(grid, "bend") == pytest.approx([-897.1], abs=0.1)


def test_an_empty_record_has_no_gains(tmp_path: Path) -> None:
    with write_record(tmp_path, []) as record:
        for grid in (forward_gains(record), backward_gains(record)):
            assert grid.sites == ()
            assert grid.values.shape == (0, 0)


@given(st.integers(1, 5), st.integers(1, 3), st.floats(0.01, 3))
@settings(deadline=None, max_examples=15)
def test_backward_gains_add_up_to_the_link_budget(tmp_path_factory, layers: int, steps: int, layer_gain: float) -> None:
    folder = tmp_path_factory.mktemp("record")
    record = write_record(folder, deep_network(layers, range(steps), layer_gain=layer_gain))
    grid = backward_gains(record)
    budget = measure_link_budget(record, step=steps - 1)
    assert budget is not None
    assert np.nansum(grid.values[:, -1]) == pytest.approx(budget.total_db, abs=1e-6)
    assert np.isnan(grid.values[0]).all()
    for link in budget.links:
        assert gain(grid, link.site)[-1] == pytest.approx(link.gain_db, abs=1e-6)


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def test_a_watched_network_against_autograd_in_double_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 4)
    )
    inputs, labels = 3.0 * torch.randn(32, 6), torch.randint(0, 4, (32,))
    reference = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with desat.watch(model, optimizer, every=1, run_dir=tmp_path / "run"):
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    values = [inputs.double()]
    for layer in reference:
        values.append(layer(values[-1]))
        values[-1].retain_grad()
    nn.functional.cross_entropy(values[-1], labels).backward()
    gradients = [value.grad for value in values[1:]]
    with Record(tmp_path / "run") as record:
        forward, backward = forward_gains(record), backward_gains(record)
    assert [known.name for known in forward.sites] == [str(number) for number in range(7)]
    for number in range(7):
        expected = decibels(rms(values[number + 1]) / rms(values[number]))
        assert gain(forward, str(number)) == pytest.approx([expected], abs=1e-3)
        if number:
            after, before = gradients[number], gradients[number - 1]
            assert after is not None
            assert before is not None
            assert gain(backward, str(number)) == pytest.approx([decibels(rms(before) / rms(after))], abs=1e-3)
    assert np.isnan(gain(backward, "0")).all()
