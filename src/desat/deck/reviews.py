"""Reviews and whether they are favourable: read from a folder in the formats that such data comes in, or generated.

Read are, in this order, from the folder, then from its part called `train`, then from each folder in it:
`pos` and `neg` with a text file for each review (IMDb: Maas et al. 2011); `NAME.pos` and `NAME.neg` with a review in
each line (sentence polarity: Pang and Lee 2005); and tables `NAME.tsv` with a text and a label in each line, in either
order, with or without a heading (SST-2: Socher et al. 2013, as GLUE hands it on).
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from desat.errors import DesatError

POSITIVE = ("1", "pos", "positive", "+1", "true")
NEGATIVE = ("0", "neg", "negative", "-1", "false")

LARGEST = 2**28
"""Bytes of a file that is read."""

PADDING, UNKNOWN = 0, 1
"""Numbers that stand for no word, and for one that is not in the vocabulary."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[!?]")

PRAISE = ("a moving", "a funny", "a clever", "a graceful", "a gripping", "a warm", "a bright", "a tender")
BLAME = ("a dull", "a clumsy", "a tired", "a hollow", "a noisy", "a shallow", "a bland", "a tedious")
THINGS = ("story", "comedy", "thriller", "portrait", "sequel", "drama", "romance", "debut")
FILLERS = (
    "by its director",
    "about a family",
    "with songs",
    "set in winter",
    "in two hours",
    "from a novel",
    "on a farm",
)


@dataclass(frozen=True)
class Reviews:
    """Texts, and for each 1 if it is favourable, else 0. origin: the file or folder; "" if they are generated."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    origin: str = ""


def find_reviews(folder: Path) -> Reviews | None:
    """The reviews in a folder, see above; None where there are none.

    Raises DesatError where a file cannot be read, a line of a table is not understood, or one of the classes is empty.
    """
    for place in (folder, folder / "train", *sorted(path for path in folder.glob("*/") if path.name != "train")):
        for read in (_from_folders, _from_pair, _from_table):
            found = read(place)
            if found is not None:
                return _checked(found)
    return None


def generated_reviews(number: int, seed: int) -> Reviews:
    """Sentences put together from a few words, half of them favourable; every one can be told by one adjective."""
    rng = np.random.default_rng(seed)
    labels = tuple(int(label) for label in rng.permutation(np.arange(number) % 2))
    texts = []
    for label in labels:
        parts = [f"{rng.choice(PRAISE if label else BLAME)} {rng.choice(THINGS)}"]
        parts += [str(rng.choice(FILLERS)) for _ in range(rng.integers(1, 5))]
        texts.append(" ".join(parts))
    return Reviews(tuple(texts), labels)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, with exclamation and question marks; markup's line breaks are none."""
    return _WORD.findall(text.replace("<br />", " ").lower())


@dataclass(frozen=True)
class Vocabulary:
    """The number of each word, from 2 on; see PADDING and UNKNOWN."""

    numbers: dict[str, int]

    def __len__(self) -> int:
        return len(self.numbers) + 2

    def encode(self, text: str, longest: int) -> list[int]:
        """The numbers of the first `longest` words; of a text without words the one unknown word."""
        return [self.numbers.get(word, UNKNOWN) for word in words_of(text)[:longest]] or [UNKNOWN]


def make_vocabulary(texts: Iterable[str], fewest: int, most: int) -> Vocabulary:
    """The words that occur `fewest` times at least, the `most` frequent ones at most; those first, then by alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    kept = sorted((word for word, count in counts.items() if count >= fewest), key=lambda word: (-counts[word], word))
    return Vocabulary({word: number for number, word in enumerate(kept[:most], 2)})


def _from_folders(place: Path) -> Reviews | None:
    folders = (place / "neg", place / "pos")
    if not all(folder.is_dir() for folder in folders):
        return None
    texts = [[_text(path) for path in sorted(folder.glob("*.txt"))] for folder in folders]
    return _joined(texts, str(place))


def _from_pair(place: Path) -> Reviews | None:
    for favourable in sorted(place.glob("*.pos")):
        other = favourable.with_suffix(".neg")
        if other.is_file() and favourable.is_file():
            texts = [[line.strip() for line in _text(path).split("\n") if line.strip()] for path in (other, favourable)]
            return _joined(texts, str(favourable.with_suffix("")))
    return None


def _from_table(place: Path) -> Reviews | None:
    tables = sorted(place.glob("*.tsv"), key=lambda path: (path.stem != "train", path.name))
    if not tables:
        return None
    texts: list[list[str]] = [[], []]
    for text, label in _rows(tables[0]):
        texts[label].append(text)
    return _joined(texts, str(tables[0]))


def _rows(path: Path) -> Iterator[tuple[str, int]]:
    lines = csv.reader(_text(path).split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    place = None
    for number, row in enumerate(lines, 1):
        if not row:
            continue
        labels = [column for column, value in enumerate(row) if _label(value) is not None]
        if place is None and not labels and number == 1:
            continue  # the heading
        if len(row) != 2 or not labels:
            raise DesatError(f"{path}, line {number}: expected a text and a label, 0 or 1, with a tab between them")
        place = labels[-1] if place is None else place
        label = _label(row[place])
        if label is None:
            raise DesatError(f"{path}, line {number}: expected 0 or 1 in column {place + 1}, got {row[place][:40]!r}")
        yield row[1 - place], label


def _label(value: str) -> int | None:
    value = value.strip().lower()
    return 1 if value in POSITIVE else 0 if value in NEGATIVE else None


def _joined(texts: Sequence[Sequence[str]], origin: str) -> Reviews:
    labels = [label for label, of_class in enumerate(texts) for _ in of_class]
    return Reviews(tuple(text for of_class in texts for text in of_class), tuple(labels), origin)


def _checked(found: Reviews) -> Reviews:
    for label, name in enumerate(("unfavourable", "favourable")):
        if label not in found.labels:
            raise DesatError(f"{found.origin}: expected reviews of both kinds, got no {name} one")
    return found


def _text(path: Path) -> str:
    """A file's text: UTF-8, or else Latin-1, in which every byte is a letter."""
    try:
        if path.stat().st_size > LARGEST:
            raise DesatError(f"{path}: larger than {LARGEST:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DesatError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n")
