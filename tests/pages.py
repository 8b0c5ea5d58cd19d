"""Pages that are one file, taken apart."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from typing import Any

_DATA = re.compile(r'<script type="application/octet-stream" id="(\w+)">(.*?)</script>', flags=re.S)


def views_of(page: str) -> dict[str, Any]:
    """What a page shows, by name: figures and fragments of HTML."""
    packed = dict(_DATA.findall(page))["views"]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def without_data(page: str) -> str:
    """The page without plotly.js and without what it shows, which are compressed."""
    return _DATA.sub("", page)


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Tags and their attributes; also of the fragments of HTML that a page shows."""
    parser = _Elements()
    parser.feed(without_data(page))
    for view in views_of(page).values() if _DATA.search(page) else ():
        if isinstance(view, str):
            parser.feed(view)
    return parser.tags
