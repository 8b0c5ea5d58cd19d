"""Where in the user's source the modules and optimizers were made, and which optimizers there are.

Known only of what was made while this was installed, which is for a run that remedies are applied to.
"""

import ast
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim import Optimizer

from desat.cure.edit import Span, call_at, read_source, span_of_call
from desat.watch.sites import user_frame

_spans: "WeakKeyDictionary[object, Span]" = WeakKeyDictionary()
_optimizers: "WeakSet[Optimizer]" = WeakSet()
_originals: dict[type, Callable[..., None]] = {}


def install() -> None:
    """Begin to note what is made."""
    for kind in (nn.Module, Optimizer):
        _originals.setdefault(kind, kind.__init__)
        kind.__init__ = _noting(_originals[kind])


def uninstall() -> None:
    """Leave nothing behind in torch's classes; what was noted stays known."""
    for kind, original in _originals.items():
        kind.__init__ = original  # pyright: ignore[reportAttributeAccessIssue]
    _originals.clear()


def origin(made: object) -> Span | None:
    """Where the call stands that made a module or an optimizer: None where it is not known, or names another class."""
    span = _spans.get(made)
    try:
        call = None if span is None else call_at(span)
    except (OSError, SyntaxError):
        return None
    if call is None:
        return None
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    return span if name == type(made).__name__ else None


def constructor(made: object, treated: Collection[int]) -> tuple[Span, str, ast.Call] | None:
    """The call that made a module or an optimizer: where it stands, the source of its file, and its syntax.

    None where it is not known or cannot be read, and where it also made something that lives and whose id is not among
    the treated: what is written there is said of all that it makes.
    """
    span = origin(made)
    if span is None or not {id(one) for one in made_at(span)} <= set(treated):
        return None
    try:
        source = read_source(span.file)
        call = call_at(span, source)
    except (OSError, SyntaxError):
        return None
    return None if call is None else (span, source, call)


def made_at(span: Span) -> Iterator[object]:
    """All that was made at one place and still lives."""
    return (made for made, place in list(_spans.items()) if place == span)


def living_optimizers() -> list[Optimizer]:
    return list(_optimizers)


def _noting(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        try:
            if isinstance(self, Optimizer):
                _optimizers.add(self)
            frame = user_frame()
            span = None if frame is None else span_of_call(frame)
            if span is not None:
                _spans.setdefault(self, span)
        except Exception:  # an object that cannot be hashed, say: its origin is not known then
            pass

    return __init__
