"""docs/python.md: each block of code is run, in order, and prints what the block of text after it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "python.md"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Each block of code with what it is said to print."""
    found = BLOCK.findall(page)
    return [
        (text, found[index + 1][1] if found[index + 1 : index + 2] and found[index + 1][0] == "text" else "")
        for index, (language, text) in enumerate(found)
        if language == "python"
    ]


def test_every_block_is_found_with_what_it_prints() -> None:
    page = "```python\na\n```\n\n```text\nb\n```\n\n```python\nc\n```\n```sh\nd\n```\n"
    assert blocks(page) == [("a\n", "b\n"), ("c\n", "")]


def test_the_page_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    told = blocks(PAGE.read_text(encoding="utf-8"))
    assert len(told) > 10
    for code, expected in told:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGE), "exec"), names)
        assert printed.getvalue() == expected, code
