from pathlib import Path

import pytest

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Severity
from desat.diagnose.learning import Learning
from desat.diagnose.rule import Case
from desat.diagnose.starvation import Way, measure_way, starved_severity
from desat.record.rows import Step
from tests.records import deep_network, write_record

ONGOING = Episode(0, 290, 30, 30, True, True, None)
OVER = Episode(0, 100, 10, 10, True, False, None)


def test_the_way_is_the_sum_of_the_typical_ratio(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", deep_network(layers=3, steps=range(0, 100, 10))) as record:
        way = measure_way(record)
    assert way is not None
    assert way.ratio == pytest.approx(1e-3)
    assert way.path == pytest.approx(91 * 1e-3)


def test_without_weights_there_is_no_way(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", [Step(0, 0.0, 1.0, 0.1, None)]) as record:
        assert measure_way(record) is None


@pytest.mark.parametrize(
    ("learning", "way", "episode", "severity"),
    [
        (Learning("stalled", 300, fall=0.0), Way(1e-5, 1e-3), ONGOING, "error"),
        (Learning("stalled", 300, fall=0.0), Way(1e-5, 1e-3), OVER, "note"),
        (Learning("stalled", 300, fall=0.0), Way(1e-2, 3.0), ONGOING, "note"),
        (Learning("stalled", 300, fall=0.0), None, ONGOING, "note"),
        (Learning("slow", 300, fall=0.05), Way(1e-4, 0.03), ONGOING, "error"),
        (Learning("learning", 300, fall=0.2), Way(1e-4, 0.02), ONGOING, "error"),
        (Learning("learning", 300, fall=0.2), Way(4e-4, 0.12), ONGOING, "warning"),
        (Learning("learning", 300, fall=0.8), Way(1e-4, 0.02), ONGOING, "note"),
        (Learning("unknown", 20, fall=0.01), Way(1e-4, 2e-3), ONGOING, "note"),
        (Learning("unknown", 20, fall=0.01), Way(1e-6, 2e-5), ONGOING, "warning"),
    ],
)
def test_small_steps_are_grave_where_they_lead_nowhere(
    tmp_path: Path, learning: Learning, way: Way | None, episode: Episode, severity: Severity
) -> None:
    with write_record(tmp_path / "run", []) as record:
        assert starved_severity(Case(record, learning), episode, 1.0, way) == severity
