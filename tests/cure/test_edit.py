import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.cure.edit import (
    Edit,
    Span,
    call_at,
    edit_from_json,
    edited,
    fingerprint,
    span_of_call,
    text_at,
    unified_diff,
    write_edits,
)  # fmt: skip


def span(line: int, column: int, end_column: int, file: str = "f.py") -> Span:
    return Span(file, line, column, line, end_column)


def test_edits_of_one_line_are_made_at_the_places_they_had() -> None:
    edits = [Edit(span(1, 0, 1), "first"), Edit(span(1, 4, 5), "second")]
    assert edited("a + b\nc\n", edits) == "first + second\nc\n"


def test_one_edit_that_is_asked_for_twice_is_made_once_and_the_wider_of_two_holds() -> None:
    inner, outer = Edit(span(1, 2, 3), "X"), Edit(span(1, 0, 4), "whole")
    assert edited("f(a)\n", [inner, inner]) == "f(X)\n"
    assert edited("f(a)\n", [inner, outer]) == "whole\n"


@given(st.lists(st.text(alphabet="abä€x", min_size=1), min_size=1, max_size=5), st.data())
def test_what_is_not_edited_stays(lines: list[str], data: st.DataObject) -> None:
    source = "\n".join(lines) + "\n"
    number = data.draw(st.integers(1, len(lines)))
    line = lines[number - 1]
    start = data.draw(st.integers(0, len(line) - 1))
    end = data.draw(st.integers(start + 1, len(line)))
    place = span(number, start, end)
    assert text_at(place, source) == line[start:end]
    after = edited(source, [Edit(place, "NEW")]).splitlines()
    assert after[number - 1] == line[:start] + "NEW" + line[end:]
    assert [text for place, text in enumerate(after, 1) if place != number] == [
        text for place, text in enumerate(lines, 1) if place != number
    ]


def test_a_call_is_found_where_its_frame_says_in_a_line_with_other_letters(tmp_path: Path) -> None:
    script = tmp_path / "call.py"
    script.write_text("def outer(seen):\n    größe = 'ä€'; return größe + seen('ü', (1 +\n        2))\n")
    found = []

    def seen(text: str, number: int) -> str:
        found.append(span_of_call(sys._getframe(1)))
        return text

    names: dict[str, object] = {}
    exec(compile(script.read_text(), str(script), "exec"), names)
    names["outer"](seen)  # type: ignore[operator]
    assert found[0] is not None
    assert text_at(found[0]) == "seen('ü', (1 +\n        2))"
    assert call_at(found[0]) is not None


def test_a_diff_is_one_that_patch_understands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.py"
    script.write_text("a = 1\nb = tanh(a)\nc = 0\nlast = 2")
    edits = [Edit(Span(str(script), 2, 4, 2, 11), "relu(a)"), Edit(Span(str(script), 4, 7, 4, 8), "3")]
    diff = unified_diff(edits)
    assert "-b = tanh(a)\n+b = relu(a)\n" in diff
    subprocess.run(["patch", "-p1"], input=diff, text=True, check=True, capture_output=True)
    assert script.read_text() == "a = 1\nb = relu(a)\nc = 0\nlast = 3"


def test_an_edit_survives_json() -> None:
    edit = Edit(Span("f.py", 1, 2, 3, 4), "text")
    assert edit_from_json(edit.as_json()) == edit


@pytest.mark.parametrize("character", ["\f", "\v", "\x1c", "\x85", "\u2028"])
def test_lines_are_those_of_python(character: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"a = '{character}'\nb = tanh(a)\n", encoding="utf-8")
    place = Span(str(script), 2, 4, 2, 11)
    assert text_at(place) == "tanh(a)"
    assert call_at(place) is not None
    assert "-b = tanh(a)\n+b = relu(a)\n" in unified_diff([Edit(place, "relu(a)")])


@pytest.mark.parametrize(
    "before",
    [
        b"x = 1\r\nb = tanh(a)\r\nlast = 2\r\n",
        b"# -*- coding: latin-1 -*-\nb = tanh(a)\nc = '\xe4'\n",
        b"\xef\xbb\xbfx = '\xc3\xa4'\nb = tanh(a)\n",
        b"mixed = 1\r\nb = tanh(a)\nlast = 3\r\nand = 4",
    ],
    ids=["CRLF", "latin-1", "byte order mark", "mixed"],
)
def test_what_is_written_keeps_every_other_byte(before: bytes, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(before)
    known = fingerprint(str(script))
    write_edits(str(script), [Edit(Span(str(script), 2, 4, 2, 11), "relu(a)")])
    assert script.read_bytes() == before.replace(b"tanh", b"relu")
    assert fingerprint(str(script)) != known


def test_a_line_that_is_put_in_ends_as_the_others_do(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(b"a = 1\r\nstep()\r\n")
    write_edits(str(script), [Edit(Span(str(script), 2, 0, 2, 0), "clip()\n")])
    assert script.read_bytes() == b"a = 1\r\nclip()\r\nstep()\r\n"


def test_a_file_that_is_not_there_is_known_by_nothing(tmp_path: Path) -> None:
    assert fingerprint(str(tmp_path / "none.py")) == ""
