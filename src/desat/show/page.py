"""What all pages share: one self-contained HTML file, which opens from disk and asks nobody for anything."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from markupsafe import Markup, escape

from desat.errors import DesatError
from desat.show import words
from desat.show.whole_file import partial_beside, write_whole


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and what to see in it; `json` is the figure for plotly.js, `height` is in pixels."""

    name: str
    title: str
    caption: str
    json: Markup
    height: int


def picture(name: str, title: str, caption: str, figure: go.Figure) -> Picture:
    return Picture(name, title, caption, _as_json(figure), int(figure.to_dict()["layout"]["height"]))


def render(template: str, **values: Any) -> str:
    """A page as text, from a template that extends `page.html.j2`; all values are escaped but Markup."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        plain=words.plain, number=words.number, decibels=words.decibels, places=words.places, since=words.since,
        command=words.command, advice=words.advice, evidence=words.evidence, symbols=words.SYMBOLS, place=words.place,
        score=words.health, count=words.count,
    )  # fmt: skip
    return environment.get_template(template).render(
        style=Markup(_asset("page.css")),
        library=Markup(plotly.offline.get_plotlyjs()),
        script=Markup(_asset("page.js")),
        **values,
    )


def with_code(sentence: str) -> Markup:
    """A sentence as HTML: what stands between backticks is to be typed."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def write_page(path: Path, page: str, option: str = "-o") -> Path:
    """Write a page to `path`, whole or not at all. Returns the path.

    Raises DesatError where it cannot be written, which names the option that says where.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page.encode())
    except OSError as error:
        raise _cannot_write(path, error, option) from error
    return path


def check_place(path: Path, option: str = "-o", *, overwrite: bool = False) -> None:
    """Raise DesatError where a page could not be written to `path`, before the work that it is to tell of.

    Makes the folder that it is to lie in.
    """
    if path.is_dir():
        raise DesatError(f"{path} is a folder: {option} takes the name of a file")
    if path.exists() and not overwrite:
        raise DesatError(f"{path} exists: choose another name, or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_beside(path).unlink()
    except OSError as error:
        raise _cannot_write(path, error, option) from error


def _cannot_write(path: Path, error: OSError, option: str) -> DesatError:
    return DesatError(f"cannot write the report to {path}: {error.strerror}; choose another place with {option}")


def _asset(name: str) -> str:
    return (files("desat.show") / "templates" / name).read_text(encoding="utf-8")


def _as_json(figure: go.Figure) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = plotly.io.to_json(figure, validate=False, remove_uids=True) or "{}"
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
