from pathlib import Path

import pytest

from desat.deck.reviews import (
    BLAME,
    PADDING,
    PRAISE,
    UNKNOWN,
    find_reviews,
    generated_reviews,
    make_vocabulary,
    words_of,
)
from desat.errors import DesatError


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def pair(folder: Path) -> None:
    write(folder / "rt.pos", "good one\n\ngood two\n")
    write(folder / "rt.neg", "bad one\r\n")


def folders(folder: Path) -> None:
    write(folder / "pos" / "1_9.txt", "good one")
    write(folder / "pos" / "2_8.txt", "good two")
    write(folder / "neg" / "3_1.txt", "bad one")
    write(folder / "unsup" / "4_0.txt", "neither")


def table(folder: Path) -> None:
    write(folder / "train.tsv", "sentence\tlabel\ngood one\t1\nbad one\t0\n\ngood two\tpositive\n")


def table_label_first(folder: Path) -> None:
    write(folder / "any.tsv", 'neg\tbad one\npos\tgood one\npos\t"good two\n')


@pytest.mark.parametrize("put", [pair, folders, table, table_label_first])
@pytest.mark.parametrize("place", ["", "train", "below"])
def test_each_format_is_read(tmp_path: Path, put, place: str) -> None:
    put(tmp_path / place)
    found = find_reviews(tmp_path)
    assert found is not None
    read = {(text.replace('"', ""), label) for text, label in zip(found.texts, found.labels, strict=True)}
    assert read == {("bad one", 0), ("good one", 1), ("good two", 1)}
    assert found.origin.startswith(str(tmp_path))


def test_training_texts_come_before_those_of_the_test(tmp_path: Path) -> None:
    folders(tmp_path / "train")
    write(tmp_path / "test" / "pos" / "1.txt", "not this")
    write(tmp_path / "test" / "neg" / "1.txt", "not this")
    found = find_reviews(tmp_path)
    assert found is not None
    assert "not this" not in found.texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_both_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "a.pos", "a touché\n", encoding)
    write(tmp_path / "a.neg", "a cliché\n", encoding)
    found = find_reviews(tmp_path)
    assert found is not None
    assert found.texts == ("a cliché", "a touché")


def test_where_there_are_none_there_are_none(tmp_path: Path) -> None:
    write(tmp_path / "pos" / "1.txt", "without neg")
    write(tmp_path / "a.pos", "without neg")
    assert find_reviews(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good\t1\nbad\t2\n", "line 2: expected a text and a label"),
        ("good\t1\nbad\n", "line 2: expected a text and a label"),
        ("good\t1\tmore\n", "line 1: expected a text and a label"),
        ("good\t1\n0\tbad\n", "line 2: expected 0 or 1 in column 2, got 'bad'"),
        ("good\t1\n", "no unfavourable one"),
        ("", "no unfavourable one"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "a.tsv", text)
    with pytest.raises(DesatError, match=said):
        find_reviews(tmp_path)


def test_an_empty_class_and_a_file_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.pos", "good\n")
    write(tmp_path / "a.neg", "\n")
    with pytest.raises(DesatError, match="no unfavourable one"):
        find_reviews(tmp_path)
    monkeypatch.setattr("desat.deck.reviews.LARGEST", 3)
    with pytest.raises(DesatError, match="larger than 3 bytes"):
        find_reviews(tmp_path)


def test_generated_reviews_are_told_by_one_adjective_and_by_the_seed() -> None:
    made = generated_reviews(50, seed=3)
    assert made == generated_reviews(50, seed=3)
    assert made != generated_reviews(50, seed=4)
    assert made.origin == ""
    assert sum(made.labels) == 25
    for text, label in zip(made.texts, made.labels, strict=True):
        assert text.startswith(PRAISE if label else BLAME)
        assert not text.startswith(BLAME if label else PRAISE)


def test_words_and_their_numbers() -> None:
    assert words_of("It's GOOD!<br />Very good, über-good?") == [
        "it's",
        "good",
        "!",
        "very",
        "good",
        "über",
        "good",
        "?",
    ]
    vocabulary = make_vocabulary(["b a", "a b c", "b"], fewest=2, most=10)
    assert vocabulary.numbers == {"b": 2, "a": 3}
    assert len(vocabulary) == 4
    assert vocabulary.encode("a b c", longest=9) == [3, 2, UNKNOWN]
    assert vocabulary.encode("a b c", longest=1) == [3]
    assert vocabulary.encode("...", longest=9) == [UNKNOWN]
    assert PADDING not in vocabulary.numbers.values()
    assert make_vocabulary(["b a", "a b c", "b"], fewest=1, most=2).numbers == {"b": 2, "a": 3}
