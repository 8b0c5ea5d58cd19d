from dataclasses import replace
from pathlib import Path

import pytest

from desat.diagnose.rules.loss_plateau import LOSS_PLATEAU
from desat.record.rows import ParameterStatistics, Reading, Row, Site
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine, with_input
from tests.records import deep_network


def network(update: float = 1e-4) -> list[Row]:
    return [
        row._replace(update_rms=update) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(steps=SAMPLES)
    ]


def test_it_names_the_losses_and_has_no_site(tmp_path: Path) -> None:
    found = examine(LOSS_PLATEAU, tmp_path, network())
    assert found is not None
    assert (found.severity, found.site, found.sites) == ("error", None, ())
    assert (found.first_step, found.last_step) == (0, 290)
    assert (found.evidence["loss_start"], found.evidence["loss_end"]) == (2.3, 2.3)


@pytest.mark.parametrize("learning", [LEARNED, HALF_WAY, UNKNOWN])
def test_no_plateau_no_finding(tmp_path: Path, learning) -> None:
    assert examine(LOSS_PLATEAU, tmp_path, network(), learning) is None


@pytest.mark.parametrize("change", [{"losses": 60}, {"fall": 0.3}], ids=["short", "after a fall"])
def test_a_short_plateau_or_one_after_a_fall_is_a_warning(tmp_path: Path, change: dict[str, float]) -> None:
    found = examine(LOSS_PLATEAU, tmp_path, network(), replace(HARMED, **change))
    assert found is not None
    assert found.severity == "warning"


@pytest.mark.parametrize(
    ("update", "cause"),
    [(1e-8, "steps are too small"), (0.1, "steps are too large"), (1e-4, "no sick layer")],
)
def test_the_cause_is_the_size_of_the_steps_where_that_is_unusual(tmp_path: Path, update: float, cause: str) -> None:
    found = examine(LOSS_PLATEAU, tmp_path, network(update))
    assert found is not None
    assert cause in found.cause


def test_the_longer_the_surer(tmp_path: Path) -> None:
    long = examine(LOSS_PLATEAU, tmp_path / "long", network(), HARMED)
    short = examine(LOSS_PLATEAU, tmp_path / "short", network(), replace(HARMED, losses=60))
    assert long is not None
    assert short is not None
    assert short.confidence < long.confidence


GUESSING = replace(HARMED, guessing=2.303)


def guessing(snr: float | None = 0.07, loss: float = 2.3, update: float = 1e-4) -> list[Row]:
    """A network that guesses, by gradients of this signal-to-noise ratio."""
    rows = [
        row._replace(update_rms=update) if isinstance(row, ParameterStatistics) else row
        for row in deep_network(steps=SAMPLES, loss=lambda step: loss + 0.01 * (step % 3))
    ]
    weights = [row.id for row in rows if isinstance(row, Site) and row.kind == "parameter"]
    if snr is not None:
        rows += [Reading(weight, "gradient_snr", step, snr) for weight in weights for step in SAMPLES]
    return rows


def test_labels_that_say_nothing(tmp_path: Path) -> None:
    found = examine(LOSS_PLATEAU, tmp_path, guessing(), GUESSING)
    assert found is not None
    assert found.cause.startswith("the labels carry nothing that the inputs tell: the loss stays at that of guessing")
    assert found.evidence["gradient_snr"] == pytest.approx(0.07)
    assert found.remedies == ()


@pytest.mark.parametrize(
    ("rows", "learning"),
    [
        (guessing(snr=1.0), GUESSING),
        (guessing(snr=None), GUESSING),
        (guessing(snr=float("nan")), GUESSING),
        (guessing(loss=1.8), GUESSING),
        (guessing(loss=4.0), GUESSING),
        (guessing(update=2e-6), GUESSING),
        (guessing(), HARMED),
        (guessing(), replace(GUESSING, front_frozen=True)),
        (with_input(guessing(), rms=0.01), GUESSING),
    ],
    ids=[
        "a lasting gradient", "an old record", "not finite", "below guessing", "above it", "small steps",
        "guessing is not known", "a frozen first layer", "next to nothing comes in",
    ],
)  # fmt: skip
def test_without_that_agreement_the_words_are_cautious(tmp_path: Path, rows: list[Row], learning) -> None:
    found = examine(LOSS_PLATEAU, tmp_path, rows, learning)
    assert found is not None
    assert "no sick layer explains it" in found.cause
