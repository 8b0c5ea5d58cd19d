import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.health import health
from desat.diagnose.link_budget import measure_link_budget
from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.rows import Row, Site
from desat.show.report import LAYERS_SHOWN, write_report
from tests.browser import needs_chromium, opened
from tests.records import deep_network, write_record

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)><b>bold</b>"


def page(record: Record, compared=()) -> str:
    path = record.path.parent / "report.html"
    budget = measure_link_budget(record)
    return write_report(record, diagnose(record), budget, path, compared).read_text(encoding="utf-8")


def sick(directory: Path) -> Record:
    rows = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    return write_record(directory, rows, asked=["activation=relu"])


def without_library(text: str) -> str:
    """The page without plotly.js, which names addresses that it asks only when told to."""
    return "".join(part for part in re.split(r"(<script>.*?</script>)", text, flags=re.S) if len(part) < 1_000_000)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(without_library(text))
    return parser.tags


def test_the_page_has_the_pictures_the_findings_and_the_numbers(tmp_path: Path) -> None:
    text = page(sick(tmp_path / "run"))
    for heading in (
        "Does it learn?",
        "Findings",
        "Where the gradient is lost",
        "Gradient by layer",
        "Saturation by layer",
    ):
        assert heading in text
    assert "vanishing-gradient" in text
    figures = re.findall(r'<script type="application/json" id="figure-(\w+)">(.*?)</script>', text)
    assert [name for name, _ in figures] == ["loss", "budget", "gradient", "saturation", "updates"]
    assert all(json.loads(figure)["data"] for _, figure in figures)


def test_the_page_is_one_file_that_asks_nobody(tmp_path: Path) -> None:
    text = page(sick(tmp_path / "run"))
    assert len(text.encode()) < 6_000_000
    for _, attributes in elements(text):
        for name in ("src", "href", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "default-src 'none'" in text


def test_the_page_begins_with_the_summary_and_the_health(tmp_path: Path) -> None:
    record = sick(tmp_path / "run")
    header = page(record).partition("</header>")[0]
    assert '<h1 class="error">The network does not learn: its loss stayed at 2.3 in 91 steps.</h1>' in header
    assert "The only problem is at layer net.23 (Sigmoid)" in header
    assert "<code>desat run --apply activation=relu --apply initialization=he train.py</code> first;" in header
    assert f'<dt>health, 0 to 1</dt><dd class="error">{health(diagnose(record)):.2f} · Sick</dd>' in header
    assert "`" not in header.partition("<h1")[2]


def section(text: str, name: str) -> str:
    return text.partition(f'<section aria-labelledby="{name}">')[2].partition("</section>")[0]


def test_sick_layers_are_listed_and_the_others_folded_away(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=3))
    found = Diagnosis("run", 1, 1, 0.0, (Finding("x", "warning", "net.1", ("net.1",), None, 0, 1, "", ""),))
    write_report(record, found, None, tmp_path / "report.html")
    listed, _, folded = section((tmp_path / "report.html").read_text(), "layers").partition("<details>")
    (row,) = re.findall(r"<tr><th scope=\"row\">.*</tr>", listed)
    assert "net.1 (Sigmoid)" in row
    assert "<td>0.60</td>" in row
    assert '<span class="warning" style="width: 60.0%">' in row
    assert 'aria-hidden="true"' in row
    assert "5 other layers, all of them at 1" in folded
    assert re.findall(r'<th scope="row">(net.\d) ', folded) == ["net.0", "net.2", "net.3", "net.4", "net.5"]


def test_of_very_many_sick_layers_the_sickest_are_listed(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=20, layer_gain=0.2, loss=lambda step: 2.3))
    listed, _, folded = section(page(record), "layers").partition("<details>")
    assert listed.count('<th scope="row">') == LAYERS_SHOWN
    assert "20 other layers<" in folded


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows: list[Row] = [
        row._replace(name=f"{HOSTILE}{row.id}", source=HOSTILE) if isinstance(row, Site) else row
        for row in deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    ]
    text = page(write_record(tmp_path / "run", rows, script=HOSTILE, applied=[HOSTILE]))
    assert HOSTILE not in text
    assert "&lt;/script&gt;&lt;script&gt;" in section(text, "layers")
    assert "&lt;/script&gt;&lt;script&gt;" in text.partition("</header>")[0].partition("</h1>")[2]
    assert [tag for tag, _ in elements(text)].count("img") == 0
    assert "<b>bold" not in without_library(text)


@pytest.mark.parametrize(
    "rows",
    [
        deep_network(layers=1, steps=[0]),
        deep_network(layers=3, steps=[0]),
        deep_network(layers=3, nonfinite_from=0, loss=lambda step: None),
        [Site(0, "only", "module", "Linear", None, 0, None)],
    ],
    ids=["one layer, one step", "one step", "nan only", "no sample"],
)
def test_a_poor_record_gives_a_page_all_the_same(tmp_path: Path, rows: list[Row]) -> None:
    assert "</html>" in page(write_record(tmp_path / "run", rows))


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    cured = write_record(tmp_path / "cured", deep_network(operation="ReLU"), metrics={"accuracy": 0.97})
    text = page(sick(tmp_path / "sick"), [(cured, diagnose(cured))])
    assert "Side by side" in text
    assert "0.97" in text


def test_a_page_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    record = sick(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(DesatError, match="cannot write the report"):
        write_report(record, diagnose(record), None, tmp_path / "file" / "report.html")


@needs_chromium
@pytest.mark.parametrize("hostile", [False, True])
def test_a_browser_draws_every_figure_without_a_complaint(tmp_path: Path, hostile: bool) -> None:
    rows = deep_network(layers=6, layer_gain=0.2, loss=lambda step: 2.3)
    if hostile:
        rows = [row._replace(name=f"{HOSTILE}{row.id}") if isinstance(row, Site) else row for row in rows]
    path = (tmp_path / "run" / "report.html").resolve()
    page(write_record(tmp_path / "run", rows))
    done = opened(path, tmp_path / "profile")
    assert len(re.findall(r'class="main-svg"', done.stdout)) >= 5
    assert "<title>run · desat</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
