"""Frames of the stack: which belong to the user's own code."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_ROOMS = tuple(str(path) + os.sep for path in _PACKAGE.iterdir() if path.is_dir() and path.name != "examples")
_FILES = tuple(str(path) for path in _PACKAGE.glob("*.py"))


def is_desats(filename: str) -> bool:
    """Whether a file is part of desat; the examples that come with it are scripts like any user's."""
    return filename.startswith(_ROOMS) or filename in _FILES
