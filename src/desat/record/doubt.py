"""What is read from a file that may be anybody's is held against what desat writes, before anything is made of it."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from desat.errors import DesatError
from desat.record.rows import Site, TensorStatistics


class HasPath(Protocol):
    @property
    def path(self) -> Any: ...


Reader = TypeVar("Reader", bound=HasPath)
Given = ParamSpec("Given")
Read = TypeVar("Read")

_WRONG = (ValueError, TypeError, OverflowError, IndexError, RecursionError, MemoryError)
"""What NumPy, JSON and Python raise over values of another kind than expected."""


def doubted(method: Callable[Concatenate[Reader, Given], Read]) -> Callable[Concatenate[Reader, Given], Read]:
    """A reading method, which raises DesatError where the file holds something else than desat writes."""

    @functools.wraps(method)
    def read(self: Reader, *given: Given.args, **named: Given.kwargs) -> Read:
        try:
            return method(self, *given, **named)
        except _WRONG as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise DesatError(f"{self.path} holds something else than `desat run` writes: {text}") from error

    return read


def text(value: Any) -> str:
    """The value, where it is text. Raises TypeError otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {_shown(value)}")
    return value


def number(value: Any) -> Any:
    """The value, where it is a number or missing. Raises TypeError otherwise."""
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, not {_shown(value)}")
    return value


def octets(value: Any) -> Any:
    """The value, where it is bytes or missing. Raises TypeError otherwise."""
    if value is not None and not isinstance(value, bytes):
        raise TypeError(f"expected bytes, not {_shown(value)}")
    return value


def site(row: tuple[Any, ...]) -> Site:
    """A row of the table `site`. Raises TypeError where a column is of another kind."""
    found = Site(*row)
    for one in (found.name, found.kind, found.operation):
        text(one)
    for one in (found.source, found.curve):
        if one is not None:
            text(one)
    for one in (found.id, found.position):
        if not isinstance(one, int):
            raise TypeError(f"expected a whole number, not {_shown(one)}")
    return found


_OTHER_KINDS = {"quantity": text, "saturated_units": octets, "histogram": octets, "dtype": lambda value: value}


def statistics(row: tuple[Any, ...]) -> TensorStatistics:
    """A row of the table `tensor`. Raises TypeError where a column is of another kind."""
    found = TensorStatistics(*row)
    for name, value in zip(found._fields, row, strict=True):
        _OTHER_KINDS.get(name, number)(value)
    return found


def packed_units(units: Any, bits: Any) -> tuple[int, bytes]:
    """The number of units and a flag of each, one bit each. Raises ValueError where the two do not fit together."""
    if not isinstance(units, int) or not isinstance(bits, bytes) or (units + 7) // 8 != len(bits):
        raise ValueError(f"{_shown(units)} units cannot have these flags")
    return units, bits


def _shown(value: Any) -> str:
    return repr(value)[:40] if not isinstance(value, (bytes, bytearray)) else "bytes"
