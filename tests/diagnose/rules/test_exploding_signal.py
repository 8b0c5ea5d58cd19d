from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.exploding_signal import EXPLODING_SIGNAL
from desat.record.rows import Row, Site, TensorStatistics
from tests.diagnose.rules.cases import (
    BORN_WRONG,
    HALF_WAY,
    HARMED,
    LEARNED,
    SAMPLES,
    UNKNOWN,
    examine,
    spliced,
    with_biases,
    with_input,
    with_rates,
)
from tests.diagnose.rules.test_vanishing_signal import network
from tests.records import deep_network

NONFINITE = Learning("non-finite", 300, nonfinite_since=60)


def test_it_names_the_growth_and_the_layers(tmp_path: Path) -> None:
    found = examine(EXPLODING_SIGNAL, tmp_path, network(gain=10.0))
    assert found is not None
    assert found.severity == "error"
    assert found.evidence["signal_gain_db"] == pytest.approx(80.0)
    assert found.evidence["since_initialization"] == 1.0
    assert found.sites == ("net.0", "net.2", "net.4", "net.6", "net.8")
    assert "drawn too large" in found.cause
    assert "multiplies it by 10" in found.message
    assert found.remedies[0] == "initialization=he"


@pytest.mark.parametrize(
    ("learning", "severity"),
    [(HARMED, "error"), (NONFINITE, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")],
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(EXPLODING_SIGNAL, tmp_path, network(gain=10.0), learning)
    assert found is not None
    assert found.severity == severity


def test_weights_that_grow_later_are_told_from_large_ones(tmp_path: Path) -> None:
    found = examine(EXPLODING_SIGNAL, tmp_path, spliced(network(gain=1.0), network(gain=10.0), 150))
    assert found is not None
    assert (found.first_step, found.evidence["since_initialization"]) == (150, 0.0)
    assert "have grown since step 150" in found.cause
    assert found.remedies[0] == "optimizer=rate:0.1"


def test_a_signal_that_overflows_is_seen_up_to_there(tmp_path: Path) -> None:
    sick = [
        row._replace(rms=None, nonfinite=1.0) if isinstance(row, TensorStatistics) and row.step >= 20 else row
        for row in network(gain=10.0)
    ]
    found = examine(EXPLODING_SIGNAL, tmp_path, sick, NONFINITE)
    assert found is not None
    assert (found.severity, found.first_step, found.last_step) == ("error", 0, 10)


def test_an_embedding_is_not_where_it_begins(tmp_path: Path) -> None:
    rows = [
        row._replace(operation="Embedding")
        if isinstance(row, Site) and row.id == 0
        else row._replace(rms=1e-3)
        if isinstance(row, TensorStatistics) and row.site in (0, 1)
        else row
        for row in network(gain=1.0)
    ]
    assert examine(EXPLODING_SIGNAL, tmp_path, rows) is None


@pytest.mark.parametrize(
    "rows",
    [
        network(gain=1.8),
        network(gain=100.0, layers=1),
        network(gain=10.0, steps=[]),
        deep_network(steps=SAMPLES, nonfinite_from=0),
    ],
)
def test_below_the_threshold_or_unmeasured_there_is_nothing(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(EXPLODING_SIGNAL, tmp_path, rows) is None


def test_growth_in_training_is_by_the_input_or_by_a_jump_of_the_learning_rate(tmp_path: Path) -> None:
    rows = spliced(network(gain=1.0), network(gain=10.0), 150)
    by_input = examine(EXPLODING_SIGNAL, tmp_path / "input", with_input(with_biases(rows, 0.01), rms=1e4))
    assert by_input is not None
    assert "since step 150: the network's input is too large" in by_input.cause
    by_rate = examine(EXPLODING_SIGNAL, tmp_path / "rate", with_rates(rows, 0.01, 1.0, 148))
    assert by_rate is not None
    assert "since step 150: the learning rate jumped from 0.01 to 1 at step 148" in by_rate.cause


def test_a_network_that_was_born_sure_and_wrong_is_harmed_whatever_the_training_loss_says(tmp_path: Path) -> None:
    found = examine(EXPLODING_SIGNAL, tmp_path, network(gain=10.0), BORN_WRONG)
    assert found is not None
    assert found.severity == "error"


def test_growth_after_the_start_is_not_what_made_the_loss_begin_high(tmp_path: Path) -> None:
    rows = spliced(network(gain=1.0), network(gain=10.0), 100)
    found = examine(EXPLODING_SIGNAL, tmp_path, rows, BORN_WRONG)
    assert found is not None
    assert found.severity == "note"
