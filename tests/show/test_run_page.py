"""The page of a run in a browser: every control, every view that is joined to another, and records of all kinds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import measure_link_budget
from desat.record.reader import Record
from desat.record.rows import Reading, Row, Site
from desat.show.heat_maps import HEAT_MAPS
from desat.show.report import write_report
from tests.big_record import write_big_record
from tests.browser import Visit, needs_chromium, visit
from tests.records import deep_network, write_record
from tests.show.test_report import HOSTILE

pytestmark = needs_chromium

LARGEST_PAGE = 6_000_000
"""Bytes, of 300 sites over 2,000 samples."""


def written(record: Record) -> str:
    """The address of a record's page."""
    path = record.path.parent / "report.html"
    write_report(record, diagnose(record), measure_link_budget(record), path)
    return path.resolve().as_uri()


def sick_rows() -> list[Row]:
    readings = [Reading(1, name, step, 0.1 * step) for step in range(0, 100, 10) for name in ("entropy", "rank")]
    return [*deep_network(layers=6, layer_gain=0.2, dead_units=8, loss=lambda step: 2.3), *readings]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(write_record(tmp_path_factory.mktemp("runs") / "sick", sick_rows()))


def layout_of(seen: Visit, selector: str) -> Any:
    """What plotly.js shows in a place."""
    text = seen.page.evaluate(
        f"(({{data, layout}}) => JSON.stringify({{y: data[0].y, shapes: layout.shapes, x: layout.xaxis.title,"
        f" bar: data[0].colorbar?.title?.text}}))(document.querySelector('{selector}'))"
    )
    return json.loads(text)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1024, "dark"), (390, "light")])
def test_the_page_is_drawn_at_every_width_and_nothing_sticks_out(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    with visit(browser, address, width, scheme) as seen:
        seen.open()
        assert seen.page.locator(".plot .main-svg").count() >= 2 * 6
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        for text, property in ((".xtick text", "fill"), (".caption", "color"), (".finding p", "color")):
            style = f"getComputedStyle(document.querySelector('{text}')).{property}"
            lightness = sum(map(int, re.findall(r"\d+", seen.page.evaluate(style))[:3]))
            assert (lightness > 3 * 140) == (scheme == "dark"), text
        assert seen.complaints == []


def test_a_finding_shows_its_site_and_its_steps_everywhere(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        button = seen.page.locator("article.error .act button").first
        site, first, last = (button.get_attribute(f"data-{name}") for name in ("site", "first", "last"))
        button.click()
        seen.until(lambda: f"site={site}&steps={first}-{last}" in seen.page.url, "the address")
        seen.until(lambda: layout_of(seen, '[data-view="loss"]')["shapes"][-1]["x1"] == int(last or 0), "the loss")
        (mark,) = layout_of(seen, "#heat-map")["shapes"]
        assert (mark["y0"], mark["y1"]) != (mark["x0"], mark["x1"])
        assert seen.page.input_value("#site-choice") == site
        assert seen.text("#site-detail h3") in seen.page.inner_text(f'#site-choice option[value="{site}"]')
        url = seen.page.url
        with visit(browser, address) as again:
            again.open(url.removeprefix(address))
            assert again.page.input_value("#site-choice") == site
            assert layout_of(again, '[data-view="loss"]')["shapes"][-1]["x1"] == int(last or 0)
        assert seen.complaints == []


def test_every_statistic_can_be_chosen_and_the_sites_filtered(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        for kind in HEAT_MAPS:
            seen.page.check(f'input[value="{kind.name}"]', force=True)
            seen.until(lambda kind=kind: layout_of(seen, "#heat-map")["bar"] == kind.unit, kind.name)
            assert seen.page.locator(f'[data-heat="{kind.name}"]').is_visible()
        seen.page.check('input[value="gradient"]', force=True)
        seen.page.fill("#filter", "NET.3")
        seen.until(lambda: len(layout_of(seen, "#heat-map")["y"]) == 1, "one row is left")
        seen.page.fill("#filter", "no such site")
        seen.until(lambda: layout_of(seen, "#heat-map")["y"] == [], "no row is left")
        seen.page.fill("#filter", "")
        seen.until(lambda: len(layout_of(seen, "#heat-map")["y"]) == 12, "all rows are back")
        assert seen.complaints == []


def test_a_row_and_a_bar_lead_to_their_site(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        for place, row in (("#heat-map .heatmaplayer", 0), ('[data-view="budget"] .barlayer', 1)):
            seen.page.evaluate("document.querySelector('#site-detail').textContent = ''")
            before = seen.page.input_value("#site-choice")
            target = seen.page.locator(place).locator("image, .point path").nth(row and 3)
            target.scroll_into_view_if_needed()
            box = target.bounding_box()
            seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 3)
            seen.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 3)
            seen.until(lambda before=before: seen.page.input_value("#site-choice") != before, place)
        assert seen.complaints == []


def test_sites_are_gone_through_by_keyboard(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        choices = seen.page.locator("#site-choice option").evaluate_all("all => all.map(one => one.value)")
        seen.page.focus("#site-choice")
        seen.page.select_option("#site-choice", choices[0])
        seen.page.focus("#site-after")
        for number in choices[1:4]:
            seen.page.keyboard.press("Enter")
            seen.until(lambda number=number: seen.page.input_value("#site-choice") == number, number)
        seen.page.focus("#site-before")
        seen.page.keyboard.press("Space")
        seen.until(lambda: seen.page.input_value("#site-choice") == choices[2], "one back")
        focusable = "button, select, input, summary, a, [tabindex='0']"
        unnamed = seen.page.locator(focusable).evaluate_all(
            "all => all.filter(one => !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length"
        )
        assert unnamed == 0
        assert seen.complaints == []


def test_a_figure_is_saved_as_a_picture(browser: Any, address: str, tmp_path: Path) -> None:
    with visit(browser, address) as seen:
        seen.open()
        for form, magic in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
            with seen.page.expect_download() as download:
                seen.page.click(f'button[aria-label="save Does it learn? as {form}"]')
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            assert re.fullmatch(r"sick-Does-it-learn-\." + form.lower(), path.name)
            assert path.read_bytes().startswith(magic)
        assert seen.complaints == []


def test_every_figure_tells_its_numbers(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        buttons = seen.page.locator(".tools button[aria-expanded]")
        assert buttons.count() == seen.page.locator(".plot").count()
        for index in range(buttons.count()):
            buttons.nth(index).click()
            assert buttons.nth(index).get_attribute("aria-expanded") == "true"
        tables = seen.page.locator(".told table")
        assert tables.count() == buttons.count()
        assert all(len(text.splitlines()) > 1 for text in tables.all_inner_texts())
        budget = seen.page.locator('[data-view="budget"] + .tools tbody tr').first
        assert budget.locator("th").inner_text() == "net.11"
        assert float(budget.locator("td").nth(1).inner_text()) == pytest.approx(0.0, abs=20.0)
        buttons.first.click()
        assert tables.count() == buttons.count() - 1
        assert seen.complaints == []


def hostile_rows() -> list[Row]:
    return [
        row._replace(name=f"{HOSTILE}{row.id}", operation=HOSTILE, source=HOSTILE) if isinstance(row, Site)
        else row._replace(name=HOSTILE) if isinstance(row, Reading) else row
        for row in sick_rows()
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        [Site(0, "only", "module", "Linear", None, 0, None)],
        deep_network(layers=3, steps=[0]),
        deep_network(layers=3, nonfinite_from=0, loss=lambda step: None),
        hostile_rows(),
    ],
    ids=["no sample", "one step", "nan only", "hostile"],
)
def test_records_of_all_kinds_are_shown_without_a_complaint(browser: Any, rows: list[Row], tmp_path: Path) -> None:
    address = written(write_record(tmp_path / "run", rows))
    with visit(browser, address) as seen:
        seen.open()
        for button in seen.page.locator(".tools button[aria-expanded], #site-after, article button").all():
            button.click()
        if seen.page.locator("#heat-map").count():
            for kind in HEAT_MAPS:
                if seen.page.locator(f'input[value="{kind.name}"]').count():
                    seen.page.check(f'input[value="{kind.name}"]', force=True)
        assert seen.page.title() == "run · desat"
        assert seen.page.locator("img, b").count() == 0
        assert seen.complaints == []


def test_hundreds_of_sites_over_thousands_of_samples_stay_small_and_smooth(browser: Any, tmp_path: Path) -> None:
    record, path = write_big_record(tmp_path / "big"), tmp_path / "report.html"
    write_report(record, Diagnosis("big", 10_000, 2000, 0.01, ()), measure_link_budget(record), path)
    assert path.stat().st_size < LARGEST_PAGE
    with visit(browser, path.as_uri()) as seen:
        seen.open()
        assert len(layout_of(seen, "#heat-map")["y"]) == 200
        assert seen.page.locator("#pooled").inner_text() == "Each column is the mean of 4 samples."
        assert seen.page.locator("#heat-map").bounding_box()["height"] < 1000
        seen.page.fill("#filter", "layers.7.")
        seen.until(lambda: len(layout_of(seen, "#heat-map")["y"]) == 2, "the filter", seconds=20.0)
        seen.page.click("#site-after")
        seen.until(lambda: "site=" in seen.page.url, "the next site", seconds=20.0)
        assert seen.complaints == []
