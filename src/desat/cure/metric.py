"""The user's own metric: the numbers that a script reports of itself, in the order in which it does."""

import re
from pathlib import Path

import numpy as np

from desat.errors import DesatError

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)"
_NAME = r"acc(?:uracy)?(?:[ _@-]?\d+(?=\s*[:=]))?[\"']?\s*(?:is|of|[:=])?\s*"
HELD_OUT = re.compile(rf"(?:val(?:id(?:ation)?)?|test|eval(?:uation)?|dev)[ _/.-]*{_NAME}{_NUMBER}", re.IGNORECASE)
"""An accuracy on data that was not trained on: `validation accuracy: 0.93`, `val_acc=0.9`, `test accuracy 93.1%`."""

ANY = re.compile(rf"(?<![a-z0-9])(?<!train )(?<!training )(?<!train[_/.-]){_NAME}{_NUMBER}", re.IGNORECASE)
"""An accuracy that does not say of what, and is not called one of the training: `accuracy: 0.9`."""


def compile_pattern(text: str) -> re.Pattern[str]:
    """The user's pattern. Raises DesatError unless it is a regular expression with one group, that of the number."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DesatError(f"--metric {text!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise DesatError(
            f"--metric {text!r} has {pattern.groups} groups: put one around the number, as in 'score: ([0-9.]+)'"
        )
    return pattern


def metric_series(directory: Path, output: Path, pattern: re.Pattern[str] | None = None) -> tuple[float, ...]:
    """What a trial reported of its metric, the newest last; empty if it reported none.

    directory: the trial's record, where metrics that are logged will be read from. output: what the script printed.
    pattern: the user's; None for accuracies on held-out data, or if there are none, for any but those of the training.
    A percentage becomes a share.
    """
    del directory  # nothing is logged to the record yet
    try:
        text = output.read_text(errors="replace")
    except OSError:
        return ()
    if pattern is not None:
        return _numbers(text, pattern)
    return _numbers(text, HELD_OUT) or _numbers(text, ANY)


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
