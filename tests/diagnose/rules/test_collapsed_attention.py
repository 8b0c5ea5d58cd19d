from collections.abc import Iterable
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.collapsed_attention import COLLAPSED_ATTENTION
from desat.record.rows import ParameterStatistics, Reading, Row, Site
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network, statistics

SOUND = {"entropy": 0.7, "one_hot_share": 0.05, "largest_logit": 4.0}
SHARP = {"entropy": 0.01, "one_hot_share": 0.95, "largest_logit": 300.0}
FLAT = {"entropy": 1.0, "one_hot_share": 0.0, "largest_logit": 1e-4}


def network(second: dict[str, float], steps: Iterable[int] = SAMPLES, since: int = 0) -> list[Row]:
    """Two attentions; the second has the readings `second` from step `since` on."""
    steps = list(steps)
    rows = deep_network(layers=2, steps=steps)
    for site, name in ((100, "blocks.0"), (101, "blocks.1")):
        rows.append(Site(site, name, "attention", "softmax", "train.py:12", site, None))
        for step in steps:
            values = second if site == 101 and step >= since else SOUND
            rows += [Reading(site, key, step, value) for key, value in values.items()]
    return rows


@pytest.mark.parametrize(
    ("learning", "severity"), [(HARMED, "error"), (UNKNOWN, "error"), (HALF_WAY, "error"), (LEARNED, "note")]
)
def test_severity_follows_harm(tmp_path: Path, learning: Learning, severity: str) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, network(SHARP), learning)
    assert found is not None
    assert (found.severity, found.site, found.sites) == (severity, "blocks.1", ("blocks.1",))
    assert found.source == "train.py:12"


def test_it_names_the_logits_as_the_cause(tmp_path: Path) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, network(SHARP))
    assert found is not None
    assert found.evidence == pytest.approx(SHARP)
    assert "as large as 300 from the start" in found.cause
    assert "95% of the queries" in found.message
    assert found.remedies[0] == "attention=scale"


def test_logits_that_grew_are_told_from_large_ones(tmp_path: Path) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, network(SHARP, since=150))
    assert found is not None
    assert found.first_step == 150
    assert "300 since step 150" in found.cause


def test_sharp_attention_without_large_logits_is_told(tmp_path: Path) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, network(SHARP | {"largest_logit": 8.0}))
    assert found is not None
    assert "no logit is above 20" in found.cause


@pytest.mark.parametrize("change", [{"entropy": 0.2}, {"one_hot_share": 0.3}])
def test_one_sign_alone_is_no_collapse(tmp_path: Path, change: dict[str, float]) -> None:
    assert examine(COLLAPSED_ATTENTION, tmp_path, network(SHARP | change)) is None


def test_what_is_over_is_a_note(tmp_path: Path) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, _recovered())
    assert found is not None
    assert found.severity == "note"


def _recovered() -> list[Row]:
    return [
        row._replace(value=SOUND[row.name]) if isinstance(row, Reading) and row.step >= 150 else row
        for row in network(SHARP)
    ]


def test_attention_that_stays_a_plain_mean_is_one_with_harm_only(tmp_path: Path) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path / "1", network(FLAT))
    assert found is not None
    assert found.severity == "error"
    assert "next to nothing" in found.cause
    assert examine(COLLAPSED_ATTENTION, tmp_path / "2", network(FLAT), LEARNED) is None
    assert examine(COLLAPSED_ATTENTION, tmp_path / "3", network(FLAT, since=10)) is None
    young = Learning("stalled", 60, 2.3, 2.3, 0.0, 0.0, 0)
    assert examine(COLLAPSED_ATTENTION, tmp_path / "4", network(FLAT), young) is None


@pytest.mark.parametrize(
    "rows", [network(SHARP, steps=[]), network(dict.fromkeys(SHARP, float("nan"))), deep_network()]
)
def test_what_was_not_measured_is_no_finding(tmp_path: Path, rows: list[Row]) -> None:
    assert examine(COLLAPSED_ATTENTION, tmp_path, rows) is None


def projected(logit: float, weight: float, size: float | None, names: tuple[str, ...] = ("query", "key")) -> list[Row]:
    """One attention of four heads 16 wide, behind layers that put out queries and keys of a size."""
    site = Site(100, "block.attention", "attention", "softmax", None, 40, None)
    rows: list[Row] = [*deep_network(layers=2, steps=SAMPLES), site]
    for place, name in enumerate(names):
        owner, number = f"block.attention.{name}", 200 + 3 * place
        rows += [
            Site(number, owner, "module", "Linear", None, 30 + place, None),
            Site(number + 1, f"{owner}.weight", "parameter", "Linear", None, 30 + place, None),
            Site(number + 2, f"{owner}.bias", "parameter", "Linear", None, 30 + place, None),
        ]
        for step in SAMPLES:
            rows += [
                statistics(number, "output", step, rms=size),
                ParameterStatistics(number + 1, step, 4096, weight / 8.0, 1e-3, 0.0, 0.0, 1e-6),
                ParameterStatistics(number + 2, step, 64, 0.01, 1e-3, 0.0, 0.0, 1e-6),
            ]
    readings = SHARP | {"largest_logit": logit, "heads": 4.0}
    return [*rows, *(Reading(100, key, step, value) for step in SAMPLES for key, value in readings.items())]


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (projected(16 * 18.0, 4.0, 4.0), "they are not divided by the root of the head's width"),
        (projected(16 * 4.5, 4.0, 4.0), "the query and key weights are too large, their gain is 4"),
        (projected(16 * 4.5, 1.0, 4.0), "what comes into the attention is too large"),
        (projected(300.0, 4.0, None), "is missing, or the query and key weights are too large"),
        (projected(300.0, 4.0, 4.0, names=()), "is missing, or the query and key weights are too large"),
    ],
)
def test_a_missing_division_is_told_from_large_weights(tmp_path: Path, rows: list[Row], cause: str) -> None:
    found = examine(COLLAPSED_ATTENTION, tmp_path, rows)
    assert found is not None
    assert "from the start" in found.cause
    assert cause in found.cause


def test_a_head_too_narrow_to_tell_keeps_the_cautious_words(tmp_path: Path) -> None:
    rows = [
        row._replace(value=16.0) if isinstance(row, Reading) and row.name == "heads" else row
        for row in projected(300.0, 4.0, 4.0)
    ]
    found = examine(COLLAPSED_ATTENTION, tmp_path, rows)
    assert found is not None
    assert "is missing, or the query and key weights are too large" in found.cause


@pytest.mark.parametrize(("one_hot", "severity"), [(0.7, "error"), (0.55, "note")])
def test_rows_that_look_at_one_key_are_as_sure_a_sign_as_the_entropy(
    tmp_path: Path, one_hot: float, severity: str
) -> None:
    sharp = {"entropy": 0.06, "one_hot_share": one_hot, "largest_logit": 228.0}
    found = examine(COLLAPSED_ATTENTION, tmp_path, network(sharp), HALF_WAY)
    assert found is not None
    assert found.severity == severity
