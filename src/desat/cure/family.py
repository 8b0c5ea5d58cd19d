"""A family of remedies, and what one of them reports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Change:
    """What a remedy did at one site, or why it did nothing there.

    site: module path, empty for the model itself. before, after: what stood there and what stands
    there now. refused: the reason, if it was left.
    """

    remedy: str
    site: str
    before: str
    after: str
    refused: str | None = None

    def __str__(self) -> str:
        site = self.site or "the model"
        if self.refused is not None:
            return f"{site}: {self.before} left as it is: {self.refused}"
        return f"{site}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Family:
    """One kind of change. values: what can be asked for; apply: changes the model in place and reports."""

    name: str
    values: tuple[str, ...]
    apply: "Callable[[nn.Module, str], list[Change]]"
