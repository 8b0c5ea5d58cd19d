"""What all pages share: one self-contained HTML file, which opens from disk and asks nobody for anything."""

import base64
import functools
import gzip
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from desat.errors import DesatError
from desat.show import words
from desat.show.plot import Figure, as_json
from desat.show.whole_file import partial_beside, write_whole

SCRIPTS = ("figure.js", "run.js")
"""What draws a run's figures and joins them, in every page; the page's own script comes after."""


def templates(load: Callable[[str], str]) -> jinja2.Environment:
    """Templates, of which `load` gives the text by its name: all values are escaped but Markup, none may be missing."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package, with our words in them; all values are escaped but Markup."""
    environment = templates(asset)
    environment.globals.update(
        plain=words.plain, number=words.number, decibels=words.decibels, places=words.places, since=words.since,
        command=words.command, advice=words.advice, evidence=words.evidence, symbols=words.SYMBOLS, place=words.place,
        score=words.health, count=words.count,
    )  # fmt: skip
    return environment


def asset(name: str) -> str:
    """A file of `templates`, as text."""
    return (files("desat.show") / "templates" / name).read_text(encoding="utf-8")


def library() -> str:
    """plotly.js, from plotly's package."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def render(template: str, views: Mapping[str, Figure | str], **values: Any) -> str:
    """A page as text, from a template that extends `page.html.j2`; all values are escaped but Markup.

    views: what the page shows, by the name that it asks for: figures and fragments of HTML.
    """
    return environment().get_template(template).render(
        style=Markup(asset("page.css")), scripts=[Markup(asset(name)) for name in (*SCRIPTS, "page.js")],
        library=_compressed(library()), views=_compressed(as_json(dict(views))), **values,
    )  # fmt: skip


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


def _compressed(text: str) -> Markup:
    """Text for a script element of data: nothing in it ends the element, and it takes a third of its room."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode())
