from pathlib import Path

import pytest

from desat.diagnose.episode import Episode
from desat.diagnose.onset import rate_jump, update_at_onset
from desat.record.rows import ParameterStatistics, Row, Site, Step
from tests.diagnose.rules.cases import SAMPLES, with_biases, with_rates
from tests.records import deep_network, write_record

ROWS = deep_network(layers=2, steps=SAMPLES)
LATER = Episode(100, 290, 20, 20, False, True, 90)


def warm(rows: list[Row]) -> list[Row]:
    """The network trained with a learning rate that rises by equal steps up to step 100."""
    return [
        row._replace(learning_rate=0.01 * min(row.step + 10, 110)) if isinstance(row, Step) else row for row in rows
    ]


@pytest.mark.parametrize(
    ("rows", "step"),
    [
        (with_rates(ROWS, 0.1, 1.0, 95), 95),
        (with_rates(ROWS, 0.1, 1.0, 80), 80),
        (with_rates(ROWS, 0.1, 0.2, 95), None),
        (with_rates(ROWS, 1.0, 0.1, 95), None),
        (with_rates(ROWS, 0.1, 1.0, 20), None),
        (with_rates(ROWS, 0.1, 1.0, 150), None),
        (warm(ROWS), None),
        ([row._replace(learning_rate=None) if isinstance(row, Step) else row for row in ROWS], None),
    ],
    ids=["between the samples", "soon before", "too little", "a fall", "long before", "after", "warmup", "not known"],
)
def test_a_jump_of_the_learning_rate_before_a_symptom(tmp_path: Path, rows: list[Row], step: int | None) -> None:
    with write_record(tmp_path / "run", rows) as record:
        jump = rate_jump(record, 90, 100)
        assert rate_jump(record, None, 0) is None
    assert (None if jump is None else jump.step) == step
    if jump is not None:
        assert (jump.before, jump.after) == (0.1, 1.0)
        assert jump.words == f"the learning rate jumped from 0.1 to 1 at step {step}"


def test_the_largest_update_around_the_onset_leaves_biases_out(tmp_path: Path) -> None:
    rows = [
        row._replace(update_rms=0.05 if row.site < 500 else 5.0)
        if isinstance(row, ParameterStatistics) and row.step in (100, 200)
        else row
        for row in with_biases(ROWS, 0.1)
    ]
    with write_record(tmp_path / "run", rows) as record:
        layer = next(site for site in record.sites("module") if site.name == "net.0")
        assert update_at_onset(record, layer, LATER) == pytest.approx(0.5)
        birth = Episode(0, 290, 30, 30, True, True, None)
        assert update_at_onset(record, layer, birth) is None
        stranger = Site(99, "other", "module", "Linear", None, 9, None)
        assert update_at_onset(record, stranger, LATER) is None
