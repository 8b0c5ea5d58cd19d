"""The digits that an experiment trains on: MNIST where the user's data folder has it, else scikit-learn's."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from desat.deck.slide import MissingNeedError
from desat.deck.training import HELD_OUT, Data, digits

FOLDER = "mnist-10k"
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
"""The 10,000 test images of MNIST (LeCun, Cortes and Burges 1998), 28 x 28 pixels, as they are distributed."""

UNSIGNED_BYTES = 8
"""The type that an IDX file of MNIST names in its third byte."""


def has_mnist(folder: Path | None) -> bool:
    """Whether the data folder holds MNIST's files."""
    return folder is not None and all((folder / FOLDER / name).is_file() for name in (IMAGES, LABELS))


def digit_images(folder: Path | None, seed: int) -> Data:
    """MNIST where `has_mnist`, else scikit-learn's digits; prepared alike, a quarter held out.

    Raises MissingNeedError where a file of MNIST cannot be read.
    """
    if folder is None or not has_mnist(folder):
        return digits(seed)
    images = _numbers(folder / FOLDER / IMAGES).astype(np.float32)
    labels = _numbers(folder / FOLDER / LABELS).astype(np.int64)
    if len(images) != len(labels) or not len(images):
        raise MissingNeedError(f"needs as many labels as images in {folder / FOLDER}: download them again")
    order = np.random.default_rng(seed).permutation(len(labels))
    held = int(HELD_OUT * len(labels))
    inputs = torch.tensor(images.reshape(len(images), -1)[order])
    inputs = (inputs - inputs[held:].mean()) / inputs[held:].std()
    targets = torch.tensor(labels[order])
    return Data(inputs[held:], targets[held:], inputs[:held], targets[:held])


def _numbers(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file: two zeros, type, dimensions, the sizes as big-endian 32-bit numbers, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        if content[:3] != bytes([0, 0, UNSIGNED_BYTES]):
            raise ValueError(content[:3])
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape.astype(int))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise MissingNeedError(f"needs a whole {path.name} in {path.parent}: download it again") from error
