"""The deck's folder: whether it is ours to write to, and files that are there whole or not at all."""

from pathlib import Path

from desat.errors import DesatError
from desat.show.whole_file import write_whole

CACHE = ".cache"
TAG = "CACHEDIR.TAG"
TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# Slides that `desat deck` has made; it makes them again where this folder is gone.
"""
"""Tells backup programs that the folder is a cache (bford.info/cachedir), and desat that it lies in a deck's folder."""


def prepare(directory: Path, *, overwrite: bool) -> Path:
    """Make the folder of a deck, and return that of its cache.

    Raises DesatError where the folder holds what is not a deck, unless `overwrite`, and where it cannot be written.
    """
    try:
        is_ours = _read(directory / CACHE / TAG) == TAG_TEXT
        if directory.exists() and not directory.is_dir():
            raise DesatError(f"{directory} is not a folder: choose another one with -o")
        if directory.is_dir() and any(directory.iterdir()) and not is_ours and not overwrite:
            raise DesatError(f"{directory} holds something else: choose another folder with -o, or pass --overwrite")
        (directory / CACHE).mkdir(parents=True, exist_ok=True)
        write_file(directory / CACHE / TAG, TAG_TEXT.encode())
    except OSError as error:
        raise _unwritable(directory, error) from error
    return directory / CACHE


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the deck whole or not at all. Raises DesatError where it cannot be written."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _unwritable(path: Path, error: OSError) -> DesatError:
    return DesatError(f"cannot write the deck to {path}: {error.strerror}; choose another place with -o")
