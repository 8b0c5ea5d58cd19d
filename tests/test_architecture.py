"""Holds the direction of imports: watch -> record <- diagnose <- show, cure uses watch, record and diagnose."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "desat"

ALLOWED = {
    "errors": set(),
    "nonlinearity": {"errors"},
    "record": {"errors"},
    "reference": {"errors"},
    "watch": {"record", "nonlinearity", "reference", "errors"},
    "diagnose": {"record", "errors"},
    "cure": {"watch", "record", "diagnose", "nonlinearity", "errors"},
    "show": {"record", "diagnose", "errors"},
    "api": {"watch", "record", "diagnose", "cure", "show", "errors"},
    "notebook": {"api", "watch", "record", "diagnose", "cure", "show", "errors"},
    "deck": {
        "watch",
        "record",
        "diagnose",
        "cure",
        "show",
        "reference",
        "nonlinearity",
        "api",
        "errors",
    },
    "cli": {"watch", "record", "diagnose", "cure", "show", "deck", "api", "nonlinearity", "errors"},
    "__init__": {"api", "errors", "watch", "notebook"},
    "__main__": {"cli"},
    "examples": set(),
}
WITHOUT_TORCH = {"record", "diagnose", "show", "errors", "reference"}
SHAPELESS = {"utils", "helpers", "misc", "manager", "common", "util"}
LONGEST_MODULE = 400

MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(code: str) -> Iterator[str]:
    """Every module that code imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports name their module in full"
            yield from ([f"desat.{alias.name}" for alias in node.names] if node.module == "desat" else [node.module])


def faults(room: str, code: str) -> list[str]:
    found = []
    for name in imported(code):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "desat" and target not in ALLOWED[room] | {room, "__version__", ""}:
            found.append(f"{room} imports {name}")
        if top == "torch" and room in WITHOUT_TORCH:
            found.append(f"{room} imports torch")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    assert faults(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("watch", "from desat.diagnose.engine import diagnose"),
        ("record", "def late():\n    import torch"),
        ("show", "import desat.cure"),
        ("diagnose", "from desat import watch"),
        ("watch", "from desat.cure.remedy import apply"),
        ("show", "from desat.deck.drawing import picture"),
        ("deck", "from desat.cli.deck import deck"),
    ],
)
def test_the_rule_can_be_broken(room: str, code: str) -> None:
    assert faults(room, code)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_are_small_and_named_for_what_they_do(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST_MODULE
    assert path.stem not in SHAPELESS
