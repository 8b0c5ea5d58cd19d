from collections.abc import Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.vanishing_signal import VANISHING_SIGNAL
from desat.record.rows import Row, Site, TensorStatistics
from tests.diagnose.rules.cases import (
    HALF_WAY,
    HARMED,
    LEARNED,
    SAMPLES,
    UNKNOWN,
    examine,
    spliced,
    with_biases,
    with_input,
)
from tests.records import deep_network


def network(
    gain: float = 0.05, layers: int = 6, mean: float = 0.0, steps: Iterable[int] = SAMPLES, operation: str = "ReLU"
) -> list[Row]:
    """Outputs of each Linear are `gain` times the ones before; `mean` is added to all of them."""
    rows = deep_network(layers=layers, steps=steps, operation=operation)
    layer = {row.id: row.id // 3 for row in rows if isinstance(row, Site)}
    scaled = []
    for row in rows:
        if isinstance(row, TensorStatistics) and row.quantity == "output" and row.rms is not None:
            level = gain ** layer[row.site]
            row = row._replace(rms=(level**2 + mean**2) ** 0.5, mean=mean)
        scaled.append(row)
    return scaled


def test_it_names_the_loss_and_the_layers_that_take_it(tmp_path: Path) -> None:
    found = examine(VANISHING_SIGNAL, tmp_path, network())
    assert found is not None
    assert found.severity == "error"
    assert found.evidence["signal_gain_db"] == pytest.approx(-4 * 26.02, abs=0.1)
    assert found.evidence["gain_per_layer_db"] == pytest.approx(-26.02, abs=0.1)
    assert found.sites == ("net.0", "net.2", "net.4", "net.6", "net.8")
    assert found.cause.startswith("the weights were drawn too small")
    assert "0.05 of it" in found.message
    assert found.remedies[0] == "initialization=he"


def test_a_constant_is_no_signal(tmp_path: Path) -> None:
    assert examine(VANISHING_SIGNAL, tmp_path / "1", network(gain=0.1, mean=0.05)) is not None
    assert examine(VANISHING_SIGNAL, tmp_path / "2", network(gain=0.9, mean=5.0)) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(VANISHING_SIGNAL, tmp_path, network(gain=0.001), learning)
    assert found is not None
    assert found.severity == severity


def test_biases_that_hide_it_later_do_not_undo_it(tmp_path: Path) -> None:
    rows = spliced(network(), network(gain=0.8), 10)
    found = examine(VANISHING_SIGNAL, tmp_path / "1", rows, HARMED)
    assert found is not None
    assert (found.severity, found.first_step, found.last_step) == ("error", 0, 290)
    assert examine(VANISHING_SIGNAL, tmp_path / "2", rows, LEARNED) is None


def test_weights_that_shrink_later_are_told_from_small_ones(tmp_path: Path) -> None:
    found = examine(VANISHING_SIGNAL, tmp_path, spliced(network(gain=1.0), network(), 150))
    assert found is not None
    assert found.first_step == 150
    assert "have shrunk since step 150" in found.cause


def test_nonlinearities_that_squash_are_told_from_weights(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=1e-3 * (row.rms or 0.0))
        if isinstance(row, TensorStatistics) and row.quantity == "output" and row.site == 13
        else row
        for row in network(gain=0.6, operation="Sigmoid")
    ]
    found = examine(VANISHING_SIGNAL, tmp_path, rows)
    assert found is not None
    assert found.site == "net.9"
    assert "squash" in found.cause
    assert found.remedies[0] == "activation=relu"


def test_a_normalization_begins_anew(tmp_path: Path) -> None:
    rows = [
        row._replace(operation="LayerNorm", kind="module") if isinstance(row, Site) and row.id == 10 else row
        for row in network()
    ]
    assert examine(VANISHING_SIGNAL, tmp_path, rows) is None


def test_the_head_is_left_out(tmp_path: Path) -> None:
    rows = [
        row._replace(rms=1e-9) if isinstance(row, TensorStatistics) and row.site in (15, 16) else row
        for row in network(gain=1.0)
    ]
    assert examine(VANISHING_SIGNAL, tmp_path, rows) is None


@pytest.mark.parametrize("layers", [1, 2])
def test_without_a_hidden_weight_there_is_no_path(tmp_path: Path, layers: int) -> None:
    assert examine(VANISHING_SIGNAL, tmp_path, network(gain=1e-6, layers=layers)) is None


@pytest.mark.parametrize("rows", [network(gain=0.3), network(steps=[]), deep_network(steps=SAMPLES, nonfinite_from=0)])
def test_above_the_threshold_or_unmeasured_there_is_nothing(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(VANISHING_SIGNAL, tmp_path, rows) is None


@pytest.mark.parametrize(
    ("size", "cause"), [(1e-5, "the network's input is next to nothing"), (1.0, "the weights were drawn too small")]
)
def test_an_input_that_is_next_to_nothing_is_told_from_small_weights(tmp_path: Path, size: float, cause: str) -> None:
    found = examine(VANISHING_SIGNAL, tmp_path, with_input(with_biases(network(), 0.01), rms=size))
    assert found is not None
    assert found.cause.startswith(cause)
    assert (found.remedies[0] == "input=standardize") == (size < 1.0)
