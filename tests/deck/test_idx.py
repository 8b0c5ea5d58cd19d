import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from desat.deck.idx import find_images, read_idx
from desat.errors import DesatError


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def put(folder: Path, which: str = "t10k", number: int = 3, packed: bool = True) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (number, 4, 5))
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(number))):
        content = idx(array)
        path = folder / f"{which}-{name}{'.gz' * packed}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_read(tmp_path: Path, packed: bool) -> None:
    images = put(tmp_path, packed=packed)
    found = find_images(tmp_path, "t10k")
    assert found is not None
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == [0, 1, 2]
    assert find_images(tmp_path, "train") is None


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw"])
def test_files_are_found_in_folders_below(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, which="train", number=2)
    found = find_images(tmp_path, "train")
    assert found is not None
    assert len(found.labels) == 2


def test_a_file_is_packed_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(gzip.compress(idx(np.array([7, 8]))))
    assert read_idx(path).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file"),
        (b"PNG!1234", "not an IDX file"),
        (idx(np.arange(3), kind=0x0D), "type 0x0d"),
        (idx(np.arange(3))[:6], "ends within its header"),
        (idx(np.arange(3))[:-1], "expected 3 numbers"),
        (idx(np.arange(3)) + b"!", "expected 3 numbers"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31), "expected 9903520314283042199192993792 numbers"),
        (gzip.compress(idx(np.arange(3)))[:-4], "cannot be read"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
    ids=["empty", "other", "floats", "header", "short", "long", "huge", "cut", "no gzip"],
)
def test_what_is_no_whole_idx_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DesatError, match=said):
        read_idx(path)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("desat.deck.idx.LARGEST", 1000)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(np.zeros(2000))))
    with pytest.raises(DesatError, match="larger than 1,000 bytes"):
        read_idx(path)


def test_as_many_labels_as_images_are_needed(tmp_path: Path) -> None:
    put(tmp_path, packed=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(2)))
    with pytest.raises(DesatError, match="as many labels"):
        find_images(tmp_path, "t10k")
