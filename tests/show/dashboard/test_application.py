"""What the dashboard answers: pages and JSON, for sound runs and for those that are made to do harm."""

import html
import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from desat.show.dashboard.application import dashboard
from desat.show.dashboard.pages import STATIC
from tests.records import deep_network, write_record
from tests.show.dashboard.asking import IMAGE, SCRIPT, Answer, asked


@pytest.fixture(scope="module")
def app(runs: Path) -> Any:
    return dashboard(runs)


def loaded(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.text)


def test_the_list_has_a_row_for_each_run(app: Any) -> None:
    page = asked(app, "/")
    assert page.status == 200
    assert page.text.count("<tr data-name=") == 14
    assert 'href="/runs/sound"' in page.text
    assert "✓ finished" in page.text
    assert "no table step" in page.text
    assert 'href="/cures/kept"' in page.text


def test_folders_of_runs_within_the_folder_are_told_and_not_shown(tmp_path: Path) -> None:
    write_record(tmp_path / IMAGE / "run", deep_network(layers=1)).close()
    page = asked(dashboard(tmp_path), "/").text
    assert "<tr data-name=" not in page
    assert f"desat serve {html.escape(str(tmp_path / IMAGE), quote=False)}" in page.replace("&#39;", "'")
    assert IMAGE not in page


def test_text_of_a_record_is_text(app: Any) -> None:
    name = urllib.parse.quote(IMAGE, safe="")
    assert name in asked(app, "/").text
    for path in ("/", "/latest", f"/runs/{IMAGE}", "/cures/kept"):
        page = asked(app, path)
        assert page.status == 200
        assert SCRIPT not in page.text, path
        assert IMAGE not in page.text, path
    shown = loaded(asked(app, f"/runs/{IMAGE}/page"))["html"]
    assert "&lt;script&gt;" in shown
    assert SCRIPT not in shown
    assert "<img" not in shown
    detail = loaded(asked(app, f"/runs/{IMAGE}/views/site/1"))["view"]
    assert "&lt;img" in detail
    assert "<img" not in detail
    figure = json.dumps(loaded(asked(app, f"/runs/{IMAGE}/views/heat/gradient")))
    assert "<script" not in figure
    assert "<img" not in asked(app, f"/runs/{IMAGE}x").text


def test_a_run_has_a_page_its_parts_and_its_figures(app: Any) -> None:
    page = loaded(asked(app, "/runs/sick/page"))
    parts = loaded(asked(app, "/runs/sick/parts"))
    assert "vanishing-gradient" in page["html"]
    assert parts["outline"] == page["outline"]
    assert {"head", "findings", "numbers"} <= parts["parts"].keys()
    for view in re.findall('data-view="([^"]+)"', page["html"]):
        assert loaded(asked(app, f"/runs/sick/views/{view}"))["view"]["data"], view
    assert loaded(asked(app, "/runs/sick/views/nothing/of/this")) == {}


@pytest.mark.parametrize("name", ["endless", "json", "broken", "empty", "outside", "outside-file", "text", "nothing"])
def test_a_broken_run_is_told_and_nothing_else_suffers(app: Any, name: str) -> None:
    assert asked(app, f"/runs/{name}").status == 200
    for path in ("page", "parts", "views/loss"):
        found = loaded(asked(app, f"/runs/{name}/{path}"))
        assert found["problem"]
        assert "secret" not in str(found)
    compared = loaded(asked(app, "/compare/table", f"run=sound&run={name}"))
    assert compared["problem"]
    assert "problem" not in loaded(asked(app, "/runs/sound/page"))


@pytest.mark.parametrize("name", ["one-step", "only-nan", "nan"])
def test_odd_runs_are_shown(app: Any, name: str) -> None:
    page = loaded(asked(app, f"/runs/{name}/page"))
    for view in ["loss", *re.findall('data-view="([^"]+)"', page["html"])]:
        assert "problem" not in loaded(asked(app, f"/runs/{name}/views/{view}")), view


def test_runs_stand_side_by_side(app: Any) -> None:
    query = "run=sound&run=sick"
    assert asked(app, "/compare", query).status == 200
    table = loaded(asked(app, "/compare/table", query))["table"]
    assert table[0] == ["", "sound", "sick"]
    assert ["verdict", "healthy", "error"] in table
    losses = loaded(asked(app, "/compare/views/loss", query))["view"]["data"]
    assert {trace["name"] for trace in losses if trace.get("name")} >= {"sound", "sick"}
    figure = loaded(asked(app, "/compare/views/1/heat/gradient", query))["view"]
    assert figure["layout"]["meta"]["labels"][0].startswith("net.0")
    assert loaded(asked(app, "/compare/views/2/heat/gradient", query)) == {}


@pytest.mark.parametrize("query", ["", "run=sound", "&".join(["run=sound"] * 6)])
def test_two_to_five_are_compared(app: Any, query: str) -> None:
    assert "two to 5" in loaded(asked(app, "/compare/table", query))["problem"]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/runs/", "/runs/..", "/runs/../secret", "/runs/../../etc/passwd", "/runs/sound/../../secret",
        "/runs//etc/passwd", "/runs/secret", "/runs/kept", "/cures/sound", "/cures/..", "/static/",
        "/static/run.html.j2", "/static/../guard.py", "/static//etc/passwd", "/runs/sound/run.sqlite",
        "/sound/run.sqlite", "/runs/nothing-like", "/runs/..%2fsecret/page", "/compare/nothing", "/runs/<script>",
    ],
)  # fmt: skip
def test_what_is_not_in_the_folder_is_not_there(app: Any, path: str) -> None:
    answer = asked(app, path)
    assert answer.status == 404
    assert "secret.py" not in answer.text
    assert "root:" not in answer.text
    assert "<script>" not in answer.text


def test_a_comparison_with_a_run_that_is_not_there(app: Any) -> None:
    assert asked(app, "/compare", "run=sound&run=../secret").status == 404
    assert asked(app, "/compare/table", "run=sound&run=../secret").status == 404


@pytest.mark.parametrize("name", STATIC)
def test_pages_are_made_of_files_of_this_package(app: Any, name: str) -> None:
    answer = asked(app, f"/static/{name}")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("path", ["/", "/latest", "/runs/sick", "/compare", "/nothing"])
def test_pages_have_no_code_in_them(app: Any, path: str) -> None:
    page = asked(app, path, "run=sound&run=sick" if path == "/compare" else "")
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert all(re.fullmatch(r'<script src="/static/[^"]+" defer></script>', one) for one in _scripts(page.text))
    attributes = [
        one for tag in re.findall(r"<[a-z][^>]*>", page.text) for one in re.findall(r'([\w-]+)="([^"]*)"', tag)
    ]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    assert {place for name, place in attributes if name in ("src", "href") and not place.startswith("/")} <= {"data:,"}


def _scripts(page: str) -> list[str]:
    return re.findall("<script.*?</script>", page, re.DOTALL)


def test_the_page_of_a_cure_runs_its_own_scripts_alone(app: Any) -> None:
    policy = asked(app, "/cures/kept").headers["content-security-policy"]
    scripts = policy.partition("script-src ")[2].partition(";")[0].split()
    assert len(scripts) == 4
    assert all(one.startswith("'sha256-") for one in scripts)


def test_the_dashboard_listens_before_it_has_loaded_what_draws() -> None:
    code = (
        "import sys, desat.cli.serve, desat.show.dashboard.application, starlette.applications, uvicorn;"
        "print([name for name in ('torch', 'plotly', 'pandas', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
