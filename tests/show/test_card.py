import html.parser
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import desat
from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.record.rows import Row, Site
from desat.show.card import COLOURS, LARGEST, card, problem_card, told
from desat.show.sketch import FRAME, MOST_MARKS, MOST_POINTS, Sketch, sketch
from desat.show.summary import summarize
from tests.records import deep_network, write_record

HOSTILE = (
    "</svg></section><script>alert('x')</script><style>*{display:none}</style>\"'><img src=x onerror=y>\x1b[2J&`$x$"
)
FINDING = Finding(
    "dead-units", "error", "net.3", ("net.3",), None, 40, 90, "an update", "38.", {}, ("activation=relu",)
)
VOID = {"path", "rect", "polyline", "circle", "br"}
ALLOWED = {"section", "div", "strong", "code", "svg", "title", "text", "g", "span", *VOID} | {
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


class Reader(html.parser.HTMLParser):
    """Elements and attributes of a fragment; fails where they are not closed in order."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(fragment)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def carded(directory: Path, rows: list[Row], diagnosis: Diagnosis | None = None, **information: object) -> str:
    with write_record(directory / "run", rows, **information) as record:
        return card(record, diagnosis or diagnose(record))


def text_of(fragment: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", "", fragment)))


def drawn(losses: list[float], *findings: Finding) -> Sketch | None:
    return sketch(np.arange(len(losses), dtype=np.float64), np.array(losses, np.float64), findings)


def test_a_sick_run_is_told_as_by_diagnose(tmp_path: Path) -> None:
    rows = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3 + 0.001 * (step % 3))
    shown = text_of(carded(tmp_path, rows))
    with desat.open(tmp_path / "run") as record:
        found = diagnose(record)
        for sentence in summarize(record, found):
            assert sentence.replace("`", "") in shown
            assert sentence in told(record, found)
    assert "Sick · health" in shown
    for finding in found.findings:
        assert f"{finding.severity}{finding.code}" in shown
    assert "91 steps, 10 sampled, watching added 1.0%" in shown
    assert f"desat report {tmp_path / 'run'}" in shown
    assert "desat run --apply activation=relu --apply initialization=he train.py" in shown


def test_without_a_script_the_change_is_proposed_as_a_call(tmp_path: Path) -> None:
    writer_knows_no_script = {"script": None}
    shown = text_of(
        carded(tmp_path, deep_network(), Diagnosis("run", 91, 10, 0.0, (FINDING,)), **writer_knows_no_script)
    )
    assert shown.count('desat.apply(model, optimizer, "activation=relu")') == 2  # in the sentence and in the table
    assert "desat run" not in shown


def test_a_healthy_run_has_no_table(tmp_path: Path) -> None:
    shown = carded(tmp_path, deep_network(operation="ReLU"))
    assert "Healthy" in shown
    assert "<table" not in shown


def test_it_is_static_and_cannot_reach_the_page_around_it(tmp_path: Path) -> None:
    read = Reader(carded(tmp_path, deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)))
    assert set(read.names) <= ALLOWED
    assert {"svg", "table"} <= set(read.names)
    assert not {"id", "class", "href", "src"} & read.attributes
    assert not any(name.startswith("on") for name in read.attributes)


def test_the_text_of_a_record_is_escaped_and_bounded(tmp_path: Path) -> None:
    rows: list[Row] = [*deep_network(), Site(90, HOSTILE * 20, "module", HOSTILE, None, 90, None)]
    bad = replace(
        FINDING, code=HOSTILE * 9, site=HOSTILE * 20, cause=HOSTILE * 50, remedies=(HOSTILE * 9, "activation=relu")
    )
    found = Diagnosis(HOSTILE * 9, 91, 10, 0.0, (bad,) * 60)
    shown = carded(tmp_path, rows, found, script=HOSTILE * 9, status=HOSTILE * 9)
    assert set(Reader(shown).names) <= ALLOWED
    assert "\x1b" not in shown
    assert len(shown.encode()) <= LARGEST
    assert re.search(r"and \d+ findings more", text_of(shown))
    assert set(Reader(problem_card(HOSTILE, HOSTILE)).names) <= ALLOWED


def test_many_findings_are_listed_in_part(tmp_path: Path) -> None:
    findings = tuple(replace(FINDING, first_step=step, last_step=90) for step in range(40))
    shown = carded(tmp_path, deep_network(), Diagnosis("run", 91, 10, 0.0, findings))
    assert shown.count("<tr") == 1 + 12
    assert "and 28 findings more" in text_of(shown)
    assert len(shown.encode()) <= LARGEST


def test_a_live_run_shows_its_state(tmp_path: Path) -> None:
    assert "· running" in text_of(carded(tmp_path, deep_network(), status="running"))


@pytest.mark.parametrize("colour", COLOURS.values())
@pytest.mark.parametrize("ground", ["#ffffff", "#111111"])
def test_its_colours_are_told_from_light_and_dark_grounds(colour: str, ground: str) -> None:
    """The contrast ratio of WCAG 2.2; 3 is asked of graphics and of large or bold text."""
    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_the_curve_spans_its_frame() -> None:
    seen = drawn([3.0, 1.0, 2.0])
    assert seen is not None
    middle = (FRAME.left + FRAME.right) / 2
    half = (FRAME.top + FRAME.bottom) / 2
    assert points(seen.lines[0]) == [(FRAME.left, FRAME.top), (middle, FRAME.bottom), (FRAME.right, half)]
    assert seen.losses == ((FRAME.bottom, "1"), (FRAME.top, "3"))
    assert seen.steps == ((FRAME.left, "0"), (FRAME.right, "2"))
    assert seen.name == "Loss over the steps 0 to 2: from 3 to 2, at the lowest 1"


def test_a_long_curve_is_thinned_and_keeps_its_spikes() -> None:
    losses = list(np.linspace(2.0, 1.0, 20_000))
    losses[7_123], losses[15_001] = 50.0, 0.9
    seen = drawn(losses)
    assert seen is not None
    kept = points(seen.lines[0])
    assert MOST_POINTS / 2 <= len(kept) <= MOST_POINTS
    assert min(y for _, y in kept) == FRAME.top
    assert max(y for _, y in kept) == FRAME.bottom
    assert kept == sorted(kept)
    assert [kept[0][0], kept[-1][0]] == [FRAME.left, FRAME.right]


def test_a_loss_over_decades_is_drawn_on_a_logarithmic_axis() -> None:
    seen, mild = drawn([100.0, 10.0, 1.0, 0.1]), drawn([100.0, 10.0, 1.0])
    assert seen is not None
    assert seen.is_logarithmic
    heights = [y for _, y in points(seen.lines[0])]
    assert np.diff(heights).tolist() == pytest.approx([(FRAME.bottom - FRAME.top) / 3] * 3, abs=0.11)
    assert mild is not None
    assert not mild.is_logarithmic


@pytest.mark.parametrize("losses", [[], [math.nan], [math.inf, -math.inf]])
def test_where_no_loss_is_finite_there_is_no_drawing(losses: list[float]) -> None:
    assert drawn(losses) is None


def test_one_loss_is_a_point() -> None:
    seen = drawn([2.5])
    assert seen is not None
    assert not seen.lines
    assert seen.points == (((FRAME.left + FRAME.right) / 2, (FRAME.top + FRAME.bottom) / 2),)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_a_band_and_break_the_curve(bad: float) -> None:
    seen = drawn([2.0] * 40 + [bad] * 20 + [1.0] * 40)
    assert seen is not None
    assert len(seen.lines) == 2
    assert [band.words for band in seen.bands] == ["no finite loss from step 40 to step 59"]
    assert points(seen.lines[0])[-1][0] < seen.bands[0].x
    assert points(seen.lines[1])[0][0] > seen.bands[0].x + seen.bands[0].width
    assert "20 steps without a finite loss" in seen.name


def test_a_loss_that_is_missing_now_and_then_does_not_break_the_curve() -> None:
    seen = drawn([2.0, math.nan] * 50)
    assert seen is not None
    assert len(seen.lines) == 1
    assert not seen.bands


def test_the_largest_floats_are_drawn() -> None:
    seen = drawn([-1.7e308, 1.7e308])
    assert seen is not None
    assert points(seen.lines[0]) == [(FRAME.left, FRAME.bottom), (FRAME.right, FRAME.top)]


def test_findings_are_marked_where_they_begin() -> None:
    note = replace(FINDING, severity="note", code="a-note")
    elsewhere = replace(FINDING, first_step=1000)
    seen = drawn([2.0] * 100 + [1.0], note, FINDING, replace(note, first_step=0), elsewhere)
    assert seen is not None
    assert [(mark.severity, mark.words) for mark in seen.marks] == [
        ("note", "since step 0: a-note"), ("error", "since step 40: a-note, dead-units"),
    ]  # fmt: skip
    assert seen.marks[1].x == pytest.approx(FRAME.left + 0.4 * (FRAME.right - FRAME.left), abs=0.06)
    assert "findings marked at 2 steps" in seen.name
    many = drawn([2.0] * 100, *(replace(FINDING, first_step=step) for step in range(100)))
    assert many is not None
    assert len(many.marks) == MOST_MARKS
