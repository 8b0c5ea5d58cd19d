"""Trouble: what goes wrong in watching is said once and kept from the user's code."""

import contextlib
import logging
from collections.abc import Iterator

_logger = logging.getLogger("desat")


class Trouble:
    """Errors of taps, by the place where they happened; a place that failed is measured no more."""

    def __init__(self) -> None:
        self._off: set[str] = set()

    def is_off(self, place: str) -> bool:
        return place in self._off

    def report(self, place: str, error: Exception) -> None:
        """Switch the place off, and say so once."""
        if place not in self._off:
            self._off.add(place)
            say(f"{place} is not measured from here on, the training goes on: {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def kept_from_user(self, place: str) -> Iterator[None]:
        """Swallow and report any error inside."""
        try:
            yield
        except Exception as error:
            self.report(place, error)


def say(message: str) -> None:
    """Tell the user one line on standard error, through logging, which never raises."""
    _logger.warning("desat: %s", message)
