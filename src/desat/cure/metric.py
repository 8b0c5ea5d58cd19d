"""The user's own metric: the numbers that a script reports of itself, in the order in which it does.

It logs them with `desat.log`, or prints them; what is logged counts before what is printed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from desat.cure.metric_names import most_telling
from desat.errors import DesatError
from desat.record.reader import Columns, Record

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)"
_NAME = r"acc(?:uracy)?(?:[ _@-]?\d+(?=\s*[:=]))?[\"']?\s*(?:is|of|[:=])?\s*"
HELD_OUT = re.compile(rf"(?:val(?:id(?:ation)?)?|test|eval(?:uation)?|dev)[ _/.-]*{_NAME}{_NUMBER}", re.IGNORECASE)
"""An accuracy on data that was not trained on: `validation accuracy: 0.93`, `val_acc=0.9`, `test accuracy 93.1%`."""

ANY = re.compile(rf"(?<![a-z0-9])(?<!train )(?<!training )(?<!train[_/.-]){_NAME}{_NUMBER}", re.IGNORECASE)
"""An accuracy that does not say of what, and is not called one of the training: `accuracy: 0.9`."""

_OF_PATTERNS = re.compile(r"[\\^$*+?{}\[\]|]")
"""What no name has that is meant as one: a text with it is a pattern whose group was forgotten."""


@dataclass(frozen=True)
class Logged:
    """The metric that the script logs under this name."""

    name: str


Source = Logged | re.Pattern[str]
"""Where a metric is read: in the record, or in the output by a pattern, whose first group is the number."""


def parse_source(text: str) -> Source:
    """What the user asks for: a regular expression with one group, that of the number, or the name of a logged metric.

    Raises DesatError for what can be neither.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DesatError(f"--metric {text!r} is no regular expression: {error}") from None
    if not pattern.groups and text and not _OF_PATTERNS.search(text):
        return Logged(text)
    if pattern.groups != 1:
        raise DesatError(
            f"--metric {text!r} has {pattern.groups} groups: put one around the number, as in 'score: ([0-9.]+)'"
        )
    return pattern


def settle_source(directory: Path, output: Path, asked: Source | None) -> Source | None:
    """Where the metric is to be read in all trials, from what the first one reported; None if it reported none.

    asked: the user's, which is taken as it is; None for the most telling accuracy that is logged
    (desat.cure.metric_names), or if there is none, for those that are printed: on held-out data, or else any but those
    of the training.
    """
    if asked is not None:
        return asked
    if (name := most_telling(_logged(directory))) is not None:
        return Logged(name)
    text = _text(output)
    return next((pattern for pattern in (HELD_OUT, ANY) if _numbers(text, pattern)), None)


def metric_series(directory: Path, output: Path, source: Source | None) -> tuple[float, ...]:
    """What a trial reported of its metric, the newest last; empty if it reported none.

    directory: the trial's record. output: what the script printed, where a percentage becomes a share. source: of all
    trials, see `settle_source`.
    """
    if source is None:
        return ()
    if isinstance(source, re.Pattern):
        return _numbers(_text(output), source)
    series = _logged(directory).get(source.name)
    return () if series is None else tuple(value for value in series["value"].tolist() if np.isfinite(value))


def check_logged(directory: Path, asked: Source | None) -> None:
    """Raises DesatError where the user asks for a logged metric by its name, and the trial has logged none of it."""
    if not isinstance(asked, Logged):
        return
    names = list(_logged(directory))
    if asked.name not in names:
        known = f"it logs {', '.join(map(repr, names))}" if names else "it logs none"
        raise DesatError(
            f"--metric {asked.name!r}: the script logs no such metric within the steps of a trial, {known}; "
            "for one that it prints give a pattern, as in 'score: ([0-9.]+)'"
        )


def _logged(directory: Path) -> dict[str, Columns]:
    try:
        with Record(directory) as record:
            return record.metrics()
    except DesatError:
        return {}


def _text(output: Path) -> str:
    try:
        return output.read_text(errors="replace")
    except OSError:
        return ""


def _numbers(text: str, pattern: re.Pattern[str]) -> tuple[float, ...]:
    found = []
    for match in pattern.finditer(text):
        try:
            value = float(match.group(1))
        except (TypeError, ValueError):
            continue
        is_percentage = pattern.groups > 1 and match.group(2) == "%"
        found.append(value / 100.0 if is_percentage else value)
    return tuple(value for value in found if np.isfinite(value))
