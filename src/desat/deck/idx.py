"""IDX files, the format in which MNIST and its kin are handed on: found in a folder, and read into arrays.

A file is two zero bytes, the type of its numbers, the number of dimensions, each dimension as a big-endian 32-bit
integer, and the numbers in the order of C. Source: LeCun, Cortes and Burges, the MNIST database, "file formats".
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError

UNSIGNED_BYTE = 0x08
"""The type of MNIST's numbers, the only one that is read here."""

LARGEST = 2**30
"""Bytes of a file that is read; MNIST has 47 million."""

IMAGES = ("images-idx3-ubyte", "images.idx3-ubyte")
LABELS = ("labels-idx1-ubyte", "labels.idx1-ubyte")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """images: (samples, height, width), 0 to 255; labels: (samples,)."""

    images: Bytes
    labels: Bytes


def read_idx(path: Path) -> Bytes:
    """The array of an IDX file of bytes, packed by gzip or not, whatever it is called.

    Raises DesatError where it cannot be read, or is no such file, or not a whole one.
    """
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DesatError(f"{path}: not an IDX file: expected it to begin with two zero bytes")
    kind, dimensions = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise DesatError(f"{path}: expected an IDX file of unsigned bytes (type 0x08), got type {kind:#04x}")
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise DesatError(f"{path}: the IDX file ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:begin])
    if len(content) - begin != math.prod(shape):
        raise DesatError(f"{path}: expected {math.prod(shape)} numbers for shape {shape}, got {len(content) - begin}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()


def find_images(folder: Path, which: str) -> Images | None:
    """The images called `which`, "train" or "t10k", with their labels, from a folder; None where they are not there.

    Looked for in the folder, then in each folder in it, then one level further down. Raises DesatError for files that
    cannot be read, or do not fit each other.
    """
    for place in (folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))):
        images, labels = (_named(place, which, names) for names in (IMAGES, LABELS))
        if images is not None and labels is not None:
            return _fitting(images, labels)
    return None


def _fitting(images: Path, labels: Path) -> Images:
    found = Images(read_idx(images), read_idx(labels))
    if found.images.ndim != 3 or found.labels.ndim != 1 or len(found.images) != len(found.labels):
        raise DesatError(
            f"{images}: expected images of shape (samples, height, width) and as many labels, got shapes "
            f"{found.images.shape} and {found.labels.shape}"
        )
    return found


def _named(place: Path, which: str, names: tuple[str, ...]) -> Path | None:
    paths = (place / f"{which}-{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DesatError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if len(content) > LARGEST:
        raise DesatError(f"{path}: larger than {LARGEST:,} bytes")
    return content
