from pathlib import Path

import pytest

from desat.diagnose.scale import Scale, layer_before, measure_scale, trace_scale
from desat.record.rows import ParameterStatistics, Row, Site, TensorStatistics
from tests.diagnose.rules.cases import SAMPLES, weighing, with_biases, with_input
from tests.records import deep_network, write_record

LAYER = Site(1, "net.0", "module", "Linear", None, 0, None)
INPUT = Site(2, "input", "input", "float32", None, -1, None)
BEFORE = Site(3, "net.1", "nonlinearity", "ReLU", None, 1, None)


def network(layers: int = 2) -> list[Row]:
    return deep_network(layers=layers, steps=SAMPLES)


def scale(**values: float | Site | None) -> Scale:
    plain = {
        "output": 1.0,
        "mean": 0.0,
        "bias": 0.0,
        "origin": INPUT,
        "incoming": 1.0,
        "incoming_mean": 0.0,
        "gain": 1.0,
    }
    return Scale(**({"layer": LAYER} | plain | values))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "blame"),
    [
        ({"output": 4.0, "bias": 4.0}, "bias"),
        ({"output": 0.01, "bias": 0.01}, None),
        ({"output": 10.0, "gain": 10.0}, "weights"),
        ({"output": 10.0, "incoming": 10.0}, "input"),
        ({"output": 80.0, "incoming": 40.0, "gain": 4.0}, "input"),
        ({"output": 80.0, "incoming": 40.0, "gain": 4.0, "origin": BEFORE}, "weights"),
        ({"output": 1.5}, None),
        ({"output": None, "bias": None, "incoming": None, "gain": None, "origin": None}, None),
    ],
)
def test_what_is_to_blame_for_a_large_output(values: dict[str, float | None], blame: str | None) -> None:
    assert scale(**values).blame == blame
    assert (scale(**values).words is None) == (blame is None)


def test_what_comes_in_may_be_faint_or_off_centre() -> None:
    assert scale(incoming=1e-3).input_is_faint
    assert not scale(incoming=1e-3, gain=0.01).input_is_faint
    assert not scale(incoming=1e-3, bias=2.0).input_is_faint
    assert scale(output=0.1, bias=0.1, gain=0.05).weights_are_faint
    assert scale(incoming=1.0, incoming_mean=0.99).input_is_off_centre
    assert not scale(incoming=1.0, incoming_mean=0.6).input_is_off_centre
    assert not scale(incoming=None).input_is_off_centre


def test_it_is_measured_as_the_step_found_it(tmp_path: Path) -> None:
    rows = [
        row._replace(update_rms=row.rms) if isinstance(row, ParameterStatistics) and row.site >= 500 else row
        for row in with_input(with_biases(weighing(network(), 0.25), 0.3), rms=5.0)
    ]
    with write_record(tmp_path / "run", rows) as record:
        first = next(site for site in record.sites("nonlinearity"))
        measured = measure_scale(record, first, 0)
    assert measured is not None
    assert measured.layer.name == "net.0"
    assert measured.bias == pytest.approx(0.0, abs=1e-9)
    assert (measured.incoming, measured.input_is_the_networks) == (5.0, True)
    assert measured.gain == pytest.approx(2.0)
    assert (measured.units, measured.fan_in) == (64, 64)


def test_without_the_bias_units_come_from_the_place_and_without_units_growth_is_the_gain(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=6.0) if isinstance(row, TensorStatistics) and row[:2] == (3, "output") else row
        for row in network()
    ]
    with write_record(tmp_path / "run", rows) as record:
        by_place = measure_scale(record, record.sites("nonlinearity")[1], 0)
        by_growth = measure_scale(record, record.sites("module")[1], 0)
        nowhere = measure_scale(record, record.sites("module")[1], 5)
    assert by_place is not None
    assert by_place.gain == pytest.approx(0.8)
    assert by_growth is not None
    assert by_growth.gain == pytest.approx(6.0)
    assert nowhere is not None
    assert (nowhere.output, nowhere.incoming, nowhere.gain) == (None, None, None)


def test_a_normalization_makes_its_input_one(tmp_path: Path) -> None:
    rows = [
        row._replace(operation="BatchNorm1d") if isinstance(row, Site) and row.id in (3, 5) else row
        for row in network()
    ]
    with write_record(tmp_path / "run", rows) as record:
        measured = measure_scale(record, record.sites("nonlinearity")[1], 0)
    assert measured is not None
    assert (measured.layer.name, measured.incoming, measured.gain) == ("net.2", 1.0, pytest.approx(0.1))


def test_a_large_input_is_traced_back(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=9.0) if isinstance(row, TensorStatistics) and row[:2] == (1, "output") else row
        for row in with_input(with_biases(weighing(weighing(network(), 0.125), 1.25, site=2), 0.01), rms=1.0)
    ]
    with write_record(tmp_path / "run", rows) as record:
        traced = trace_scale(record, record.sites("nonlinearity")[1], 0)
    assert traced is not None
    assert (traced.layer.name, traced.blame) == ("net.0", "weights")


def test_where_no_layer_is_before_there_is_no_scale(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", [INPUT]) as record:
        assert layer_before(record, INPUT) is None
        assert measure_scale(record, INPUT, 0) is None
        assert trace_scale(record, INPUT, 0) is None
