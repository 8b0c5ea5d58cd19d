"""A number that a rule goes by, with where it comes from; the docs list these."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

_limits: ContextVar[Mapping[str, float]] = ContextVar("limits", default=MappingProxyType({}))


@dataclass(frozen=True)
class Threshold:
    """A limit: its default, its unit, what it limits, and its source (paper and section, or how it was found)."""

    name: str
    default: float
    unit: str
    meaning: str
    source: str

    @property
    def key(self) -> str:
        """How a user names it: `saturated-share`."""
        return self.name.replace(" ", "-")

    @property
    def value(self) -> float:
        """The limit in force: the user's, inside of `limited`, else the default."""
        return _limits.get().get(self.key, self.default)


@contextlib.contextmanager
def limited(limits: Mapping[str, float]) -> Iterator[None]:
    """Thresholds have the user's values, by their keys, in this context and nowhere else."""
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)
