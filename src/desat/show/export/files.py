"""Files of an export: where they may be written, and how they are there whole or not at all."""

from collections.abc import Iterable
from pathlib import Path

from desat.errors import DesatError
from desat.show.export.exporter import Order
from desat.show.whole_file import write_whole


def prepare(order: Order, names: Iterable[str]) -> None:
    """Make the folder of an export. Raises DesatError where it holds one of the files already, or cannot be made."""
    there = [name for name in names if (order.place / name).exists()]
    if there and not order.overwrite:
        raise DesatError(f"{order.place / there[0]} exists: choose another place with -o, or pass --overwrite")
    try:
        order.place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(order.place, error) from error


def write_file(path: Path, content: bytes) -> None:
    """Raises DesatError where the file cannot be written."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DesatError:
    return DesatError(f"cannot write {path}: {error.strerror}; choose another place with -o")
