"""The deck's cache: slides that were made, as JSON, below the folder that the deck is written to.

It lies in DIR/.cache and not in the user's cache folder: a deck is made for one folder, nothing is written outside of
what the user named, and it goes away with that folder. The name of an entry has all that the page depends on: the
source of the slide's module and of every module of desat that it imports, directly or not, the settings, and the
versions of Python and of the libraries that compute and draw.
"""

import ast
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import desat
from desat.deck.files import write_file
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement

FORMAT = 1
"""Of an entry; changes with the fields of a page."""

LIBRARIES = ("numpy", "torch", "matplotlib", "scikit-learn", "keras", "torchvision")
"""What computes and draws; one that is not installed counts as such."""

SOURCE = Path(desat.__file__).parent


def load(entry: Path) -> Page | None:
    """The page as it was made before under the same conditions; None where there is none that can be read."""
    try:
        return _page(json.loads(entry.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def store(entry: Path, page: Page) -> None:
    """Keep a page. Entries of the same settings that are out of date go.

    Those of other settings stay, so that a fast deck and a whole one do not displace each other.
    """
    write_file(entry, json.dumps(_document(page)).encode())
    for other in entry.parent.glob(f"{entry.stem.rpartition('-')[0]}-*.json"):
        if other != entry:
            other.unlink(missing_ok=True)


def entry_of(slide: Slide, settings: Settings, folder: Path) -> Path:
    """The file of a slide's page: its name tells all that the page depends on, as it is now."""
    conditions = {
        "format": FORMAT,
        "source": source_digest(slide.build.__module__),
        "python": sys.version,
        "desat": desat.__version__,
        "libraries": [(name, _version(name)) for name in LIBRARIES],
        "data": _data_digest(settings.data) if slide.uses_data else None,
    }
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:20]
    size = "fast" if settings.fast else "full"
    return folder / f"{slide.key}-{size}-seed{settings.seed}-{digest}.json"


def source_digest(module: str) -> str:
    """A digest of a module's source and of that of all modules of desat that it imports, directly or not."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if name in seen or path is None:
            continue
        text = path.read_text(encoding="utf-8")
        seen[name] = hashlib.sha256(text.encode()).hexdigest()
        waiting += _imports(text)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def _path_of(module: str) -> Path | None:
    """Where a module's source is: of one of desat's, or of a slide from elsewhere by what has been imported."""
    top, _, rest = module.partition(".")
    if top != "desat":
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file and "site-packages" not in file and Path(file).suffix == ".py" else None
    place = SOURCE.joinpath(*rest.split(".")) if rest else SOURCE
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


@cache
def _imports(text: str) -> tuple[str, ...]:
    """The modules of desat that code imports, anywhere in it; of `from a import b` both a and a.b."""
    return tuple(name for name in _imported(text) if name.partition(".")[0] == "desat")


def _imported(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _data_digest(folder: Path | None) -> str | None:
    """Names, sizes and times of the files of a data folder."""
    if folder is None:
        return None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    listed = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(folder.resolve()), listed]).encode()).hexdigest()


def _document(page: Page) -> dict[str, Any]:
    document = asdict(page)
    for figure in document["figures"]:
        figure["png"] = base64.b64encode(figure["png"]).decode()
    return document


def _page(document: dict[str, Any]) -> Page:
    figures = [{**figure, "png": base64.b64decode(figure["png"])} for figure in document["figures"]]
    return Page(
        words=tuple(document["words"]),
        figures=tuple(Figure(**figure) for figure in figures),
        statements=tuple(Statement(**statement) for statement in document["statements"]),
        readings=tuple(Reading(**reading) for reading in document["readings"]),
    )
