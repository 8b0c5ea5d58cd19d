"""Edits of a user's source: what a remedy would be, written down."""

import ast
import difflib
import functools
import hashlib
import itertools
import os
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""A line as Python counts them: a form feed, say, ends none, as it would for str.splitlines."""

KEPT = 64
"""Files whose text is kept as it was parsed: the same ones are read for every remedy that is tried."""


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of a file: lines from 1, columns in characters from 0, the end excluded."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, order=True)
class Edit:
    """`text` in the place of what stands at `span`."""

    span: Span
    text: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.span), "text": self.text}


def edit_from_json(values: dict[str, Any]) -> Edit:
    """The inverse of Edit.as_json. Raises KeyError where a part is missing."""
    places = {name: int(values[name]) for name in ("line", "column", "end_line", "end_column")}
    return Edit(Span(str(values["file"]), **places), str(values["text"]))


def read_source(file: str) -> str:
    """The text of a Python file, decoded as Python does. Raises OSError or SyntaxError."""
    with tokenize.open(file) as opened:
        return opened.read()


@functools.lru_cache(KEPT)
def parsed(source: str) -> ast.Module:
    """The tree of a file's text, shared by all who ask for it: it is not to be changed.

    Raises SyntaxError or ValueError where it is none of Python's.
    """
    return ast.parse(source)


def fingerprint(file: str) -> str:
    """By which a file is known again as long as nothing in it changes; empty where it cannot be read."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def write_edits(file: str, edits: Iterable[Edit]) -> None:
    """Make the edits in a Python file, which keeps its encoding and the end of each of its lines.

    Raises OSError where it cannot be written, SyntaxError or ValueError where it is no text of its encoding.
    """
    with open(file, "rb") as opened:
        encoding, _ = tokenize.detect_encoding(opened.readline)
        opened.seek(0)
        source = opened.read().decode(encoding)
    ending = "\r\n" if "\r\n" in source else "\n"
    adapted = [Edit(edit.span, edit.text.replace("\n", ending)) for edit in edits]
    content = edited(source, adapted).encode(encoding)
    with open(file, "wb") as opened:
        opened.write(content)


def span_of_call(frame: FrameType) -> Span | None:
    """Where the call that a frame is making stands; None where Python does not know it, or no file holds it."""
    return _span_of_instruction(frame.f_code.co_filename, frame.f_code, frame.f_lasti)


@functools.cache
def _span_of_instruction(file: str, code: CodeType, instruction: int) -> Span | None:
    """Read once for each place in the code: a line that makes layers is run again and again."""
    line, end_line, column, end_column = next(itertools.islice(code.co_positions(), instruction // 2, None))
    if line is None or end_line is None or column is None or end_column is None or not Path(file).is_file():
        return None
    lines = _lines(read_source(file))
    if end_line > len(lines):
        return None
    start, end = _characters(lines[line - 1], column), _characters(lines[end_line - 1], end_column)
    return Span(os.path.abspath(file), line, start, end_line, end)


def _characters(line: str, column: int | None) -> int:
    """A column in characters, of one in bytes of UTF-8 as Python counts them; None is the end of the line."""
    return len(line.encode()[:column].decode(errors="ignore"))


def call_at(span: Span, source: str | None = None) -> ast.Call | None:
    """The call expression that stands exactly at a span; None if there is none."""
    text = read_source(span.file) if source is None else source
    lines = _lines(text)
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Call) and _is_at(node, span, lines):
            return node
    return None


def span_of(node: ast.expr, file: str, source: str) -> Span:
    """Where an expression of a file's source stands."""
    return _span_of(node, file, _lines(source))


def _span_of(node: ast.expr, file: str, lines: list[str]) -> Span:
    end_line = node.end_lineno or node.lineno
    start = _characters(lines[node.lineno - 1], node.col_offset)
    return Span(file, node.lineno, start, end_line, _characters(lines[end_line - 1], node.end_col_offset))


def _is_at(node: ast.expr, span: Span, lines: list[str]) -> bool:
    return (node.lineno, node.end_lineno) == (span.line, span.end_line) and _span_of(node, span.file, lines) == span


def text_at(span: Span, source: str | None = None) -> str:
    """What stands at a span."""
    text = read_source(span.file) if source is None else source
    start, end = _offsets(span, text)
    return text[start:end]


def edited(source: str, edits: Iterable[Edit]) -> str:
    """The source with its edits made, all of one file, as far as they are `compatible`."""
    for edit in reversed(compatible(edits)):
        start, end = _offsets(edit.span, source)
        source = source[:start] + edit.text + source[end:]
    return source


def compatible(edits: Iterable[Edit]) -> list[Edit]:
    """Those that can be made together, in order; of two that overlap the one that begins first, or is longer, holds."""
    kept: list[Edit] = []
    for edit in sorted(set(edits), key=_outermost_first):
        last = kept[-1].span if kept else None
        if last is None or last.file != edit.span.file or _start(edit.span) >= (last.end_line, last.end_column):
            kept.append(edit)
    return kept


def _outermost_first(edit: Edit) -> tuple[str, int, int, int, int, str]:
    span = edit.span
    return (span.file, span.line, span.column, -span.end_line, -span.end_column, edit.text)


def _start(span: Span) -> tuple[int, int]:
    return span.line, span.column


def edited_files(edits: Iterable[Edit]) -> dict[str, tuple[str, str]]:
    """By file: its text, and its text with the edits made. Raises OSError where a file is not there any more."""
    by_file: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_file[edit.span.file].append(edit)
    texts = {}
    for file, ones in sorted(by_file.items()):
        source = read_source(file)
        texts[file] = (source, edited(source, ones))
    return texts


def unified_diff(edits: Iterable[Edit]) -> str:
    """The edits as `diff -u` writes them, file names relative to the working directory where they lie below it."""
    parts = []
    for file, (before, after) in edited_files(edits).items():
        relative = os.path.relpath(file)
        name = file.lstrip(os.sep) if relative.startswith(os.pardir) else relative
        lines = difflib.unified_diff(_lines(before), _lines(after), f"a/{name}", f"b/{name}")
        parts += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]
    return "".join(parts)


def _offsets(span: Span, source: str) -> tuple[int, int]:
    starts = [0]
    for line in _lines(source):
        starts.append(starts[-1] + len(line))
    return starts[span.line - 1] + span.column, starts[span.end_line - 1] + span.end_column


def _lines(source: str) -> list[str]:
    """The lines of a source, each with its end."""
    return _LINE.findall(source)
