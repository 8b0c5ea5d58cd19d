"""The result of a search for a cure as a file, cure.json, which `desat cure --keep` leaves beside its trials.

What is read back may be anybody's: it is checked to the last number before it is shown.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from desat.errors import DesatError

FILE_NAME = "cure.json"

SCHEMA = 1

LARGEST_FILE = 64 * 2**20
"""Bytes; a search of a hundred trials, each of 500 points, takes about one million."""

LARGEST_WHOLE = 2**53
"""Counts beyond it are no longer told apart by a float."""

_SHOWN = 40
"""Characters of a wrong value that an error shows."""

Check = Callable[[Any, str], None]
"""Raises ValueError where a value, found at a place in the file, is not as it should be."""


def write_kept(directory: Path, document: dict[str, Any]) -> Path:
    """Write the document, as JSON, into the folder of the trials. Raises DesatError where it cannot be written."""
    path = directory / FILE_NAME
    try:
        path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise DesatError(f"cannot write {path}: {error.strerror}") from error
    return path


def find_kept(path: Path) -> Path | None:
    """The file in the folder of a kept search, or the file itself; None where there is none."""
    return next((one for one in (path, path / FILE_NAME) if one.name == FILE_NAME and one.is_file()), None)


def read_kept(path: Path) -> dict[str, Any]:
    """The document in a file. Raises DesatError, in one line, where it cannot be read or is not what is written here.

    It holds what `desat cure --json` prints, the `script` as it is called, and `curves`: for the baseline (of no
    remedies) and for each candidate the runs by seed, with `steps` and `losses`, null where there was no finite loss.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DesatError(f"{path} is too large for the result of a search: more than {LARGEST_FILE:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _document(found, "")
    except OSError as error:
        raise DesatError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise DesatError(f"{path} is not the result of a search as `desat cure --keep` writes it: {text}") from error
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is no number of JSON")


def _wrong(value: Any, place: str, expected: str) -> NoReturn:
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise ValueError(f"{place.lstrip('.') or 'it'} should be {expected}, and is {shown}")


def _text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        _wrong(value, place, "text")


def _truth(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        _wrong(value, place, "true or false")


def _number(value: Any, place: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_WHOLE):
        _wrong(value, place, "a finite number")


def _whole(value: Any, place: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_WHOLE:
        _wrong(value, place, "a whole number from 0")


def _one_of(*words: Any) -> Check:
    def check(value: Any, place: str) -> None:
        if value not in words or isinstance(value, bool):
            _wrong(value, place, " or ".join(map(str, words)))

    return check


def _or_null(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def _list(item: Check, length: int | None = None) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or length not in (None, len(value)):
            _wrong(value, place, "a list" if length is None else f"a list of {length}")
        for index, one in enumerate(value):
            item(one, f"{place}[{index}]")

    return check


def _fields(**fields: Check) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            _wrong(value, place, "an object")
        for name, one in fields.items():
            if name not in value:
                raise ValueError(f"{place}.{name} is missing".lstrip("."))
            one(value[name], f"{place}.{name}")

    return check


_texts = _list(_text)
_finding = _fields(code=_text, severity=_one_of("error", "warning", "note"), site=_or_null(_text), cause=_text)
_baseline = _fields(
    verdict=_one_of("error", "warning", "healthy"), findings=_list(_finding), metric=_or_null(_number),
    measure=_or_null(_text), steps=_whole, seconds=_number, seeds=_list(_whole), ending=_text,
)  # fmt: skip
_trial = _fields(
    apply=_texts, metric=_or_null(_number), effect=_or_null(_number), interval=_or_null(_list(_number, length=2)),
    accepted=_truth, measure=_or_null(_text), without=_or_null(_number), reason=_or_null(_text), findings_gone=_texts,
    findings_new=_texts, seeds=_list(_whole), steps=_whole, seconds=_number, ending=_text,
)  # fmt: skip
_run_fields = _fields(seed=_whole, steps=_list(_whole), losses=_list(_or_null(_number)))


def _run(value: Any, place: str) -> None:
    _run_fields(value, place)
    steps = value["steps"]
    if len(steps) != len(value["losses"]):
        raise ValueError(f"{place} should have as many losses as steps, and has {len(value['losses'])} of {len(steps)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{place}.steps should rise")


_document_fields = _fields(
    schema=_one_of(SCHEMA), script=_text, baseline=_baseline, trials=_list(_trial), chosen=_or_null(_texts),
    diff=_or_null(_text), by_hand=_texts, applied=_texts, interrupted=_truth, seconds=_number, steps=_whole,
    curves=_list(_fields(apply=_texts, runs=_list(_run))),
)  # fmt: skip


def _document(value: Any, place: str) -> None:
    _document_fields(value, place)
    if value["chosen"] is not None and value["chosen"] not in [trial["apply"] for trial in value["trials"]]:
        raise ValueError("chosen should be one of the trials")
