from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.low_precision_range import LOW_PRECISION_RANGE, UNCHANGED_SHARE, weights_dtype
from desat.record.histogram import BINS, LOWEST_EXPONENT, pack_histogram
from desat.record.rows import ParameterStatistics, Reading, Row, Site, Step
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import statistics, write_record

SLOW = Learning("slow", 300, 2.3, 2.2, 0.05, 0.03)
NON_FINITE = Learning("non-finite", 1, nonfinite_since=1)


def magnitudes(**shares: float) -> bytes | None:
    """A histogram of float16 values: shares that are `tiny` (subnormal) and `huge` (near overflow), the rest near 1."""
    counts = np.zeros(BINS)
    for name, exponent in (("tiny", -18), ("huge", 15)):
        counts[exponent - LOWEST_EXPONENT] = 10_000 * shares.get(name, 0.0)
    counts[0 - LOWEST_EXPONENT] = 10_000 - counts.sum()
    return pack_histogram(counts)


def network(
    *, dtype: str = "float16", inputs: str | None = None, unchanged: float | None = 0.0, steps: Iterable[int] = SAMPLES,
    gradient: dict[str, Any] | None = None, output: dict[str, Any] | None = None, operation: str = "SGD",
    rate: float = 0.01, layers: int = 3, scaler: dict[str, float] | None = None, sick_layers: Iterable[int] = (0, 1, 2),
) -> list[Row]:  # fmt: skip
    """Rows of linear layers in `dtype`; `inputs` and weights are of the same unless it is said."""
    steps = list(steps)
    rows: list[Row] = [
        Site(0, "input", "input", inputs or dtype, None, 0, None),
        Site(1, "optimizer", "optimizer", operation, None, 0, None),
    ]
    for layer in range(layers):
        rows.append(Site(2 + 2 * layer, f"net.{layer}", "module", "Linear", "train.py:5", layer, None))
        rows.append(Site(3 + 2 * layer, f"net.{layer}.weight", "parameter", "Linear", None, layer, None))
    rows += [Step(step, 0.01 * step, 2.3, rate, None) for step in range(max(steps) + 1)]
    usual = {"histogram": magnitudes(), "dtype": dtype}
    for step in steps:
        rows += [Reading(1, name, step, value) for name, value in (scaler or {}).items()]
        for layer in range(layers):
            sick = layer in sick_layers
            of_output, of_gradient = ((output if sick else None) or {}), ((gradient if sick else None) or {})
            rows.append(statistics(2 + 2 * layer, "output", step, **(usual | of_output)))
            rows.append(statistics(2 + 2 * layer, "gradient", step, **(usual | of_gradient)))
            share = unchanged if sick else 0.0
            rows.append(ParameterStatistics(3 + 2 * layer, step, 4096, 0.1, 1e-3, 0.0, 0.0, 1e-7, share))
    return rows


def test_a_sound_network_in_half_precision_is_no_finding(tmp_path: Path) -> None:
    assert examine(LOW_PRECISION_RANGE, tmp_path, network()) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 3])
def test_weights_that_no_update_changes_are_an_error(tmp_path: Path, dtype: str, layers: int) -> None:
    found = examine(LOW_PRECISION_RANGE, tmp_path, network(dtype=dtype, unchanged=0.99, layers=layers))
    assert found is not None
    assert (found.severity, found.site) == ("error", "net.0.weight")
    assert len(found.sites) == layers
    assert found.evidence["unchanged_share"] == pytest.approx(0.99)
    assert "99% of the weights" in found.message
    assert dtype in found.cause
    assert found.remedies[0] == "loss=float32-weights"


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(HARMED, "error"), (SLOW, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")],
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(LOW_PRECISION_RANGE, tmp_path, network(unchanged=0.99), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "inputs": "float32"},
        {"scaler": {"loss_scale": 1024.0, "skipped": 0.0}},
        {"rate": 0.0},
        {"unchanged": UNCHANGED_SHARE.value - 0.01},
        {"unchanged": None},
    ],
    ids=["float32", "autocast", "loss scaler", "no learning rate", "below", "not measured"],
)
def test_only_weights_that_are_held_in_half_precision_round_steps_off(tmp_path: Path, values: dict[str, Any]) -> None:
    chosen: dict[str, Any] = {"unchanged": 1.0} | values
    assert examine(LOW_PRECISION_RANGE, tmp_path, network(**chosen)) is None


def test_whole_layers_that_stand_still_do_harm_though_the_loss_falls_a_little(tmp_path: Path) -> None:
    little = Learning("learning", 300, 2.3, 1.5, 0.35, 0.3)
    frozen = examine(LOW_PRECISION_RANGE, tmp_path / "frozen", network(unchanged=1.0), little)
    nearly = examine(LOW_PRECISION_RANGE, tmp_path / "nearly", network(unchanged=0.85), little)
    assert frozen is not None
    assert nearly is not None
    assert (frozen.severity, nearly.severity) == ("error", "note")
    assert frozen.evidence["frozen_share"] == 1.0


def test_a_network_of_integers_is_told_by_its_first_output(tmp_path: Path) -> None:
    rows = network(inputs="int64", dtype="bfloat16")
    with write_record(tmp_path / "run", rows) as record:
        assert weights_dtype(record) == "bfloat16"


def test_gradients_flushed_to_zero(tmp_path: Path) -> None:
    rows = network(gradient={"histogram": magnitudes(tiny=0.9), "zeros": 0.4}, sick_layers=[1])
    found = examine(LOW_PRECISION_RANGE, tmp_path, rows)
    assert found is not None
    assert (found.severity, found.site, found.source) == ("error", "net.1", "train.py:5")
    assert "without a loss scale" in found.cause
    assert found.remedies[0] == "loss=bfloat16"
    wide = network(dtype="bfloat16", gradient={"histogram": magnitudes(tiny=0.9)})
    assert examine(LOW_PRECISION_RANGE, tmp_path / "wide", wide) is None


def test_a_gradient_of_nothing_but_zeros_at_the_output_was_lost(tmp_path: Path) -> None:
    lost = {"histogram": None, "zeros": 1.0}
    found = examine(LOW_PRECISION_RANGE, tmp_path / "lost", network(gradient=lost))
    assert found is not None
    assert found.site == "net.2"
    # Dead units hand on no gradient either.
    assert examine(LOW_PRECISION_RANGE, tmp_path / "dead", network(gradient=lost, sick_layers=[0])) is None


def test_values_one_doubling_from_infinity(tmp_path: Path) -> None:
    rows = network(output={"histogram": magnitudes(huge=0.02)})
    found = examine(LOW_PRECISION_RANGE, tmp_path, rows)
    assert found is not None
    assert "65504" in found.cause
    assert found.evidence["overflow_share"] == pytest.approx(0.02, rel=0.01)
    learned = examine(LOW_PRECISION_RANGE, tmp_path / "learned", rows, LEARNED)
    assert learned is not None
    assert learned.severity == "note"


def test_adam_on_float16_weights_divides_by_zero(tmp_path: Path) -> None:
    broken = network(operation="Adam", output={"nonfinite": 1.0, "minimum": None, "maximum": None})
    found = examine(LOW_PRECISION_RANGE, tmp_path, broken, NON_FINITE)
    assert found is not None
    assert (found.severity, found.site) == ("error", "optimizer")
    assert "Adam on float16 weights divides by zero" in found.cause
    other = network(operation="SGD", output={"nonfinite": 1.0, "minimum": None, "maximum": None})
    assert examine(LOW_PRECISION_RANGE, tmp_path / "sgd", other, NON_FINITE) is None


def test_values_that_grew_beyond_float16(tmp_path: Path) -> None:
    rows = network(inputs="float32", output={"nonfinite": 0.1, "maximum": 60_000.0})
    found = examine(LOW_PRECISION_RANGE, tmp_path, rows, NON_FINITE)
    assert found is not None
    assert "values grew to 6e+04" in found.cause
    wide = network(dtype="bfloat16", output={"nonfinite": 0.1, "maximum": 60_000.0})
    assert examine(LOW_PRECISION_RANGE, tmp_path / "wide", wide, NON_FINITE) is None


def test_a_scaler_that_finds_no_scale(tmp_path: Path) -> None:
    found = examine(LOW_PRECISION_RANGE, tmp_path, network(scaler={"loss_scale": 1e-9, "skipped": 1.0}))
    assert found is not None
    assert (found.severity, found.site) == ("error", "optimizer")
    assert "100% of the steps" in found.message
    searching = network(scaler={"loss_scale": 1024.0, "skipped": 1.0}, steps=range(8))
    assert examine(LOW_PRECISION_RANGE, tmp_path / "searching", searching, UNKNOWN) is None


def test_all_values_not_finite_say_nothing_of_range(tmp_path: Path) -> None:
    broken = {"histogram": None, "nonfinite": 1.0, "zeros": 0.0}
    rows = network(gradient=broken, output=broken, unchanged=None)
    assert examine(LOW_PRECISION_RANGE, tmp_path, rows) is None


def test_few_samples_are_less_sure(tmp_path: Path) -> None:
    one = examine(LOW_PRECISION_RANGE, tmp_path / "one", network(unchanged=1.0, steps=[0]), UNKNOWN)
    many = examine(LOW_PRECISION_RANGE, tmp_path / "many", network(unchanged=1.0), UNKNOWN)
    assert one is not None
    assert many is not None
    assert one.confidence < many.confidence
