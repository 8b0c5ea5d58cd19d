"""A family of remedies, what can be asked of it, and what one of them reports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from desat.cure.edit import Edit

if TYPE_CHECKING:
    from desat.cure.patient import Patient


@dataclass(frozen=True)
class Change:
    """What a remedy did at one site, or why it did nothing there.

    site: module path, empty for the model itself. before, after: what stood there and what stands
    there now. refused: the reason, if it was left. edits: how the user's source would say it; none where that is not
    local. redefines_loss: the loss is another function after it, so that losses before and after do not compare.
    """

    remedy: str
    site: str
    before: str
    after: str
    refused: str | None = None
    edits: tuple[Edit, ...] = ()
    redefines_loss: bool = False

    def __str__(self) -> str:
        site = self.site or "the model"
        if self.refused is not None:
            return f"{site}: {self.before} left as it is: {self.refused}"
        return f"{site}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Choice:
    """One thing that can be asked of a family: `name`, or `name:number` where it takes a number.

    meaning: in words, for the help. number: whether it takes one; default: what it is where it may be left out. low,
    high: the range of the number, ends excluded.
    """

    name: str
    meaning: str
    number: Literal["none", "optional", "needed"] = "none"
    default: float | None = None
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Family:
    """One kind of change.

    apply(patient, choice, number): changes the model or its optimizers in place and reports; the number is the choice's
    default where none was asked for. bare: the choice that a number alone means, as in clipping=1.0. on: what has to be
    there: the model before its first forward pass, or the optimizer before its first step.
    """

    name: str
    choices: tuple[Choice, ...]
    apply: "Callable[[Patient, str, float | None], list[Change]]"
    bare: str | None = None
    on: Literal["model", "optimizer"] = "model"
