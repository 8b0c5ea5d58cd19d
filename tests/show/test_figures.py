"""The figures of a run: valid for plotly.js, and their numbers those of the record."""

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.record.histogram import BINS, LOWEST_EXPONENT, pack_histogram
from desat.record.reader import Record
from desat.record.rows import Reading, Row, TensorStatistics
from desat.show.heat_maps import HEAT_MAPS, MOST_CELLS, MOST_COLUMNS, pooled
from desat.show.plot import SHORTEST_CUT, as_json, labels, packed
from desat.show.run_views import RunViews
from tests.records import deep_network, write_record

KINDS = {kind.name: kind for kind in HEAT_MAPS}
DTYPES = {"f4": "<f4", "i4": "<i4"}


def rows(layers: int = 4, samples: int = 30) -> list[Row]:
    histogram = np.zeros(BINS)
    histogram[-LOWEST_EXPONENT] = 100.0  # all between 1 and 2
    filled = [
        row._replace(histogram=pack_histogram(histogram)) if isinstance(row, TensorStatistics) else row
        for row in deep_network(layers=layers, layer_gain=0.5, dead_units=5, steps=range(0, 10 * samples, 10))
    ]
    return [*filled, *(Reading(1, "rank", step, float(step)) for step in range(0, 10 * samples, 10))]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return write_record(tmp_path / "run", rows())


@pytest.fixture
def views(record: Record) -> RunViews:
    return RunViews(record, diagnose(record), measure_link_budget(record))


def unpacked(value: dict[str, Any]) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(value["bdata"]), DTYPES[value["dtype"]])
    return found.reshape([int(size) for size in value["shape"].split(",")]) if "shape" in value else found


def test_every_figure_is_one_that_plotly_knows(views: RunViews) -> None:
    found = views.all()
    figures = {name: view for name, view in found.items() if isinstance(view, dict)}
    assert {"loss", "budget", "site/1/units", "site/1/saturation", "site/1/readings", "site/2/sizes"} <= figures.keys()
    assert {"site/1/magnitudes-input", "site/0/magnitudes-output"} <= figures.keys()
    for name, figure in figures.items():
        assert go.Figure(figure).data, name


def test_each_piece_is_the_same_alone_and_among_all(views: RunViews) -> None:
    found = views.all()
    for name, view in found.items():
        assert as_json(views.get(name)) == as_json(view), name
    for name in ("", "heat", "heat/nothing", "site/99", "site/-1", "site/1/nothing", "site/x", "site/²", "budget/x"):
        with pytest.raises(KeyError):
            views.get(name)


def test_a_heat_map_has_the_numbers_of_the_record(record: Record, views: RunViews) -> None:
    grids = {
        "gradient": np.log10(record.grid("gradient", "rms").values),
        "saturated": record.grid("input", "saturated_low").values + record.grid("input", "saturated_high").values,
        "dead": np.full((4, 30), 5 / 64),
        "updates": np.log10(record.grid("parameter", "update_rms").values / record.grid("parameter", "rms").values),
    }
    for name, expected in grids.items():
        figure = views.get(f"heat/{name}")
        assert isinstance(figure, dict)
        np.testing.assert_allclose(figure["data"][0]["z"], expected)
        assert figure["layout"]["meta"]["steps"].tolist() == list(range(0, 300, 10))
        sites = [views.sites[number].name for number in figure["layout"]["meta"]["sites"]]
        assert sites == figure["layout"]["meta"]["names"]


@given(
    arrays.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 60)), elements=st.floats(-9, 9)),
    st.integers(1, 70),
)
def test_pooling_keeps_the_mean_of_what_was_measured(values: np.ndarray, columns: int) -> None:
    values = np.where(np.abs(values) < 1.0, np.nan, values)
    steps = np.arange(values.shape[1]) * 7
    some, means = pooled(steps, values, columns)
    assert len(some) <= columns
    size = -(-len(steps) // columns)
    for index, step in enumerate(some):
        part = values[:, index * size : (index + 1) * size]
        assert step == steps[index * size]
        for row, mean in zip(part, means[:, index], strict=True):
            known = row[~np.isnan(row)]
            assert mean == pytest.approx(known.mean()) if len(known) else np.isnan(mean)


def test_a_large_run_is_pooled_to_what_a_screen_can_show(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=1, steps=range(900)))
    figure = RunViews(record, diagnose(record), None).get("heat/gradient")
    assert isinstance(figure, dict)
    assert figure["layout"]["meta"]["pooled"] == 2
    assert figure["data"][0]["z"].shape == (2, 450)
    assert figure["data"][0]["z"].size <= MOST_CELLS
    assert len(figure["data"][0]["x"]) <= MOST_COLUMNS


def test_the_waterfall_adds_up_to_the_budget(record: Record, views: RunViews) -> None:
    budget = measure_link_budget(record)
    assert budget is not None
    figure = views.get("budget")
    assert isinstance(figure, dict)
    bars = sorted(
        (y, base, x, of)
        for trace in figure["data"]
        for y, base, x, of in zip(trace["y"], trace["base"], trace["x"], trace["customdata"], strict=True)
    )
    assert bars[0][1] == 0.0
    for (_, base, gain, _), following in itertools.pairwise(bars):
        assert following[1] == pytest.approx(base + gain)
    assert bars[-1][1] + bars[-1][2] == pytest.approx(budget.total_db)
    assert [views.sites[number].name for *_, (_, _, number) in bars] == [link.site for link in budget.links]


def test_bands_of_one_power_of_two_lie_within_it(views: RunViews) -> None:
    figure = views.get("site/0/magnitudes-output")
    assert isinstance(figure, dict)
    low, high = figure["data"][0]["y"], figure["data"][1]["y"]
    assert ((low >= 1.0) & (low < high) & (high <= 2.0)).all()


def test_units_are_marked_where_they_are_saturated(views: RunViews) -> None:
    figure = views.get("site/1/units")
    assert isinstance(figure, dict)
    np.testing.assert_array_equal(figure["data"][0]["z"], np.repeat((np.arange(64) < 5)[:, None], 30, axis=1))


@given(arrays.arrays(float, st.integers(0, 20), elements=st.floats(-1e30, 1e30) | st.just(np.nan) | st.just(np.inf)))
def test_numbers_are_packed_to_half_a_thousandth(values: np.ndarray) -> None:
    found = unpacked(json.loads(as_json({"y": values}))["y"])
    np.testing.assert_allclose(found, values, rtol=5e-4, atol=1e-38)


def test_whole_numbers_and_tables_are_packed_as_they_are() -> None:
    np.testing.assert_array_equal(unpacked(packed(np.arange(5))), np.arange(5))
    np.testing.assert_array_equal(unpacked(packed(np.arange(6.0).reshape(2, 3))), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="JSON"):
        as_json({"value": float("nan")})


def test_names_are_told_apart_by_their_ends() -> None:
    shared = "encoder.layers"
    assert len(shared) >= SHORTEST_CUT
    assert labels([(f"{shared}.0.linear", "Linear"), (f"{shared}.1.act", "ReLU")]) == [
        "…0.linear (Linear)",
        "…1.act (ReLU)",
    ]
    assert labels([("net.0", "Linear"), ("net.1", "ReLU")]) == ["net.0 (Linear)", "net.1 (ReLU)"]
    assert labels([(f"{shared}.0", "<b>")]) == [f"{shared}.0 (&lt;b&gt;)"]
    assert labels([]) == []
