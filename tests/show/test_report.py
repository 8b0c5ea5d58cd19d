import re
from pathlib import Path

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.health import health
from desat.diagnose.link_budget import measure_link_budget
from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.rows import Row, Site
from desat.show.heat_maps import HEAT_MAPS
from desat.show.report import write_report
from desat.show.run_views import LAYERS_SHOWN
from tests.pages import elements, views_of, without_data
from tests.records import deep_network, write_record

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)><b>bold</b>"


def page(record: Record, compared=()) -> str:
    path = record.path.parent / "report.html"
    budget = measure_link_budget(record)
    return write_report(record, diagnose(record), budget, path, compared).read_text(encoding="utf-8")


def sick(directory: Path) -> Record:
    rows = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    return write_record(directory, rows, asked=["activation=relu"])


def test_the_page_has_the_pictures_the_findings_and_the_numbers(tmp_path: Path) -> None:
    record = sick(tmp_path / "run")
    text = page(record)
    for heading in (
        "Does it learn?",
        "Findings",
        "Where the gradient is lost",
        "Layers by step",
        "One site",
    ):
        assert heading in text
    assert "vanishing-gradient" in text
    views = views_of(text)
    heat = {f"heat/{kind.name}" for kind in HEAT_MAPS}
    assert {name for name in views if not name.startswith("site/")} == {"loss", "budget"} | heat
    assert {name for name in views if name.count("/") == 1} - heat == {f"site/{site.id}" for site in record.sites()}


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
    assert re.findall(r'data-site="\d+">(net.\d) ', folded) == ["net.0", "net.2", "net.3", "net.4", "net.5"]


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
    assert "<b>bold" not in without_data(text)


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
