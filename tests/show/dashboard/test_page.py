"""The dashboard in a real browser: every control, three widths, nobody else asked, no complaint on the console."""

import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desat.record.run import annotate
from tests.browser import Visit, needs_chromium, visit
from tests.show.dashboard.asking import IMAGE, SCRIPT
from tests.show.dashboard.serving import served

pytestmark = needs_chromium

HOSTILE = f"/runs/{urllib.parse.quote(IMAGE, safe='')}"
PAGES = ("/", "/runs/sick", "/latest", "/compare?run=sick&run=sound", "/cures/kept", HOSTILE)


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served(runs) as (address, _):
        yield address


@pytest.fixture
def visited(browser: Any, address: str) -> Iterator[Visit]:
    with visit(browser, address) as found:
        yield found
        assert found.complaints == []


@pytest.mark.parametrize(("widths", "scheme"), [((1024, 1440), "dark"), ((390,), "light")])
def test_pages_fit_without_a_complaint(browser: Any, address: str, widths: tuple[int, ...], scheme: str) -> None:
    with visit(browser, address, widths[0], scheme) as found:
        for path in PAGES:
            found.page.set_viewport_size({"width": widths[0], "height": 900})
            found.open(path)
            for width in widths:
                found.page.set_viewport_size({"width": width, "height": 900})
                fits = "innerWidth === %d && document.documentElement.scrollWidth <= innerWidth"
                found.until(lambda fits=fits % width: found.page.evaluate(fits), f"{path} at {width}", seconds=10.0)
        assert found.complaints == []


def shown(visited: Visit) -> list[str]:
    return visited.page.evaluate(
        "[...document.querySelectorAll('#rows tr:not([hidden])')].map((row) => row.dataset.name)"
    )


def test_runs_are_searched_ordered_and_chosen(visited: Visit) -> None:
    page = visited.page
    visited.open("/")
    everything = shown(visited)
    page.fill("#search", "DIGITS finished")
    assert shown(visited) == ["sound", "sick"]
    assert visited.text("#count") == "2 of 14 runs"
    page.fill("#search", "no such run")
    assert page.is_visible("#none")
    page.fill("#search", "")
    for button in page.query_selector_all("[data-sort]"):
        button.click()
    page.click("[data-sort='step']")
    steps = page.evaluate("[...document.querySelectorAll('#rows tr')].map((row) => Number(row.dataset.step))")
    assert steps == sorted(steps)
    page.click("[data-sort='step']")
    assert shown(visited)[-1] in ("broken", "empty", "endless", "json", "outside", "outside-file", "nothing")
    assert page.get_attribute("th[data-key='step']", "aria-sort") == "descending"
    page.reload()
    visited.until(lambda: page.get_attribute("th[data-key='step']", "aria-sort") == "descending")
    page.click("[data-sort='step']")
    assert shown(visited) == everything
    assert page.is_disabled("#compare-runs")
    boxes = page.query_selector_all("#rows input")
    for box in boxes[:5]:
        box.check()
    assert all(box.is_disabled() for box in boxes[5:])
    for box in boxes[2:5]:
        box.uncheck()
    assert visited.text("#chosen") == "2 chosen"
    page.click("#compare-runs")
    visited.until(lambda: "/compare?" in page.url)
    assert visited.text("h1") == "2 runs side by side"


def test_what_stays_as_it_is_in_the_list_is_not_replaced(runs: Path, visited: Visit) -> None:
    page = visited.page
    visited.open("/")
    page.evaluate("document.querySelectorAll('#rows td, #rows th').forEach((cell, index) => { cell.was = index })")
    page.check("#rows tr[data-name='sick'] input")
    page.focus("#rows tr[data-name='sick'] a")
    known = (runs / "sick" / "run.sqlite").read_bytes()
    try:
        annotate(runs / "sick", script="another.py", status="failed")
        row = "#rows tr[data-name='sick']"
        visited.until(
            lambda: page.query_selector(f"{row}[data-state='failed']") is not None, "the list does not follow"
        )
    finally:
        (runs / "sick" / "run.sqlite").write_bytes(known)
    fresh = "[...document.querySelectorAll('#rows td, #rows th')].filter((cell) => cell.was === undefined)"
    assert {*page.evaluate(f"{fresh}.map((cell) => cell.dataset.label)")} - {"verdict"} == {"script", "state"}
    assert page.evaluate("document.activeElement.textContent") == "sick"
    assert page.is_checked(f"{row} input")
    assert page.get_attribute(row, "data-script") == "another.py"


def press_everything(visited: Visit) -> int:
    """Every button, choice and summary of what is shown. Returns their number."""
    page, pressed = visited.page, 0
    for summary in page.query_selector_all("summary"):
        summary.click()
    for label in page.query_selector_all("fieldset label"):
        label.click()
        pressed += 1
    for name in ("PNG", "SVG"):
        with page.expect_download() as download:
            page.query_selector(f".tools button:has-text('{name}')").click()
        assert download.value.suggested_filename.endswith(name.lower())
        pressed += 1
    for _ in range(2):
        for button in page.query_selector_all(".tools button:has-text('Numbers')"):
            button.click()
            pressed += 1
    return pressed


def test_every_control_of_a_run(visited: Visit) -> None:
    page = visited.page
    visited.open("/runs/sick")
    assert page.query_selector_all(".js-plotly-plot")
    assert press_everything(visited) > 10
    for button in page.query_selector_all("button[data-site]"):
        if button.is_visible():
            button.click()
    page.fill("#filter", "net.1")
    page.fill("#filter", "")
    page.select_option("#site-choice", index=3)
    first = page.input_value("#site-choice")
    page.click("#site-after")
    visited.until(lambda: page.input_value("#site-choice") != first)
    page.click("#site-before")
    visited.until(lambda: page.input_value("#site-choice") == first)
    assert "site=" in page.url
    assert page.is_hidden("#freeze")
    assert page.is_hidden("#trouble")


def test_every_control_of_a_comparison(visited: Visit) -> None:
    visited.open("/compare?run=sick&run=sound")
    assert "vanishing-gradient" in visited.text("#comparison-table")
    assert press_everything(visited) > 10
    visited.page.click("text=Where the gradient is lost")
    visited.until(lambda: len(visited.page.query_selector_all(".js-plotly-plot")) == 3)


def test_the_newest_run_is_shown(visited: Visit) -> None:
    visited.open("/latest")
    assert visited.text("header strong") == "sound"
    visited.page.check("#stay")
    visited.page.click("nav a >> nth=0")
    visited.until(lambda: visited.page.query_selector("#rows") is not None)


def test_text_of_a_record_is_shown_to_the_letter(visited: Visit) -> None:
    visited.open("/")
    assert SCRIPT in visited.text("#rows")
    assert IMAGE in visited.text("#rows")
    visited.open(HOSTILE)
    assert SCRIPT in visited.text("header")
    assert f"{SCRIPT}net.1" in visited.text("#run")
    assert IMAGE in visited.text("#site-detail")
    assert visited.page.evaluate("document.querySelectorAll('#run script, #run img').length") == 0
    visited.page.hover(".js-plotly-plot")
    assert "owned" not in visited.page.title().replace(IMAGE, "")


@pytest.mark.parametrize("name", ["endless", "json", "broken", "outside", "text", "nothing"])
def test_a_broken_run_has_a_page_that_says_so(visited: Visit, name: str) -> None:
    visited.open(f"/runs/{name}")
    assert len(visited.text("#waiting")) > 30
    assert visited.text("#waiting") != "Reading the record …"


def test_a_page_that_is_not_there(browser: Any, address: str) -> None:
    with visit(browser, address) as found:
        found.page.goto(f"{address}/runs/<img src=x>")
        assert found.text("h1") == "There is nothing here"
        assert [one for one in found.complaints if "404" not in one] == []


def test_a_page_of_another_port_reads_nothing(browser: Any, address: str, tmp_path: Path) -> None:
    with served(tmp_path) as (other, _), visit(browser, other) as found:
        found.open("/")
        wanted = f"fetch('{address}/rows').then((answer) => answer.text(), () => 'refused')"
        assert found.page.evaluate(wanted) == "refused"
        assert found.page.evaluate(f"fetch('{other}/rows').then((answer) => answer.text())") == "[]"
