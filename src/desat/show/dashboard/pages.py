"""The pages around what is shown, and the list of runs: made without what draws, so that they are there at once."""

import base64
import datetime
import hashlib
import math
import urllib.parse
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from desat.show import words
from desat.show.dashboard.folder import Look, is_addressable
from desat.show.page import SCRIPTS, asset, library, templates

STATES = {"running": "▶", "finished": "✓", "failed": "✖", "interrupted": "■", "killed": "✖", "unknown": "?"}
"""A sign for each state, which is told in a word as well, and never by colour alone."""

VERDICTS = {"error": "✖ sick", "warning": "▲ not quite well", "healthy": "✓ healthy"}

STATIC = ("page.css", "dashboard.css", "plotly.js", *SCRIPTS, "list.js", "live.js", "compare.js")
"""Files that pages are made of."""

SPARK_WIDTH, SPARK_HEIGHT = 88, 22
"""Pixels of the small curve of a run."""


@cache
def environment() -> jinja2.Environment:
    found = templates(_text)
    found.globals.update(plain=words.plain, number=words.number, states=STATES, path=path, sources=_source, spark=spark)
    return found


def render(template: str, **values: Any) -> str:
    """All values are escaped."""
    return environment().get_template(template).render(values)


def row(look: Look, verdict: str | None) -> str:
    """A run's row of the list, as HTML."""
    return render(
        "row.html.j2", look=look, verdict=verdict, verdicts=VERDICTS, started=_moment(look.started),
        addressable=is_addressable(look.name),
    )  # fmt: skip


def comparison(looks: Sequence[Look]) -> str:
    """The page of runs side by side."""
    from desat.show.heat_maps import HEAT_MAPS

    kinds = [("budget", "Where the gradient is lost"), *((f"heat/{kind.name}", kind.title) for kind in HEAT_MAPS)]
    query = urllib.parse.urlencode([("run", look.name) for look in looks])
    return render("compare.html.j2", looks=looks, query=query, kinds=kinds)


def _moment(started: str) -> str:
    """When a run began, as people read it; what is no time is told as it is."""
    try:
        return f"{datetime.datetime.fromisoformat(started).astimezone(datetime.UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return started[:30]


def path(name: str) -> str:
    """The place of a run's page. Raises ValueError for a name that no address can tell."""
    return f"/runs/{urllib.parse.quote(name, safe='')}"


def spark(losses: Sequence[float]) -> Markup:
    """A small curve, of numbers alone."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2 or not math.isfinite(max(finite) - min(finite)):
        return Markup("")
    low, high = min(finite), max(finite)
    across, tall = (SPARK_WIDTH - 2) / (len(finite) - 1), SPARK_HEIGHT - 4
    shares = [(high - loss) / (high - low) if high > low else 0.5 for loss in finite]
    points = " ".join(f"{1 + index * across:.1f},{2 + share * tall:.1f}" for index, share in enumerate(shares))
    return Markup(
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}"'
        f' aria-hidden="true"><polyline points="{points}"/></svg>'
    )


@cache
def static(name: str) -> bytes:
    """One of STATIC."""
    return (library() if name == "plotly.js" else _text(name)).encode()


def inline_policy() -> str:
    """The header for a page that is one file: its own scripts, known by what they are, and no other."""
    texts = [static("plotly.js"), *(static(name) for name in SCRIPTS), asset("page.js").encode()]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _text(name: str) -> str:
    own = files("desat.show.dashboard") / "templates" / name
    return own.read_text(encoding="utf-8") if own.is_file() else asset(name)


@cache
def _source(name: str) -> str:
    """The address of one of STATIC; it changes with what it has, so that it can be kept."""
    mark = hashlib.sha256(_text(name).encode()).hexdigest()[:12] if name != "plotly.js" else _library_version()
    return f"/static/{name}?v={mark}"


def _library_version() -> str:
    from importlib.metadata import version

    return version("plotly")
