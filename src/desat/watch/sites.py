"""Sites: what is measured where, and how it is named."""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch.overrides

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.frames import is_desats

_LIBRARIES = (
    str(Path(torch.overrides.__file__).resolve().parent) + os.sep,
    str(Path(os.__file__).resolve().parent) + os.sep,
    "<frozen",
)

_HOLDERS = 4
"""References to the dictionary of a frame's variables, as long as nobody else has asked for it."""


class Sites:
    """The sites of a run, each with one number, in the order in which they were first met."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Site] = {}
        self._curves: dict[int, Curve | None] = {}
        self._unrecorded: list[Site] = []

    def __len__(self) -> int:
        return len(self._known)

    def meet(
        self,
        kind: str,
        name: str,
        operation: str,
        source: Callable[[], str | None] = lambda: None,
        curve: Curve | None = None,
        position: int | None = None,
    ) -> Site:
        """The site of this kind and name, made at its first meeting, when alone its source is asked for.

        `position` defaults to the order of meeting. What replaces a site in the midst of a run, under its name but with
        another operation or curve, is another site, whose name says so: `body.1 (ReLU)`.
        """
        site = self._known.get((kind, name))
        if site is None:
            number = len(self._known)
            place = number if position is None else position
            site = Site(number, name, kind, operation, source(), place, _curve_as_json(curve))
            self._known[kind, name] = site
            self._curves[site.id] = curve
            self._unrecorded.append(site)
        elif site.operation != operation or self._is_other(site, curve):
            return self.meet(kind, f"{name} ({operation})", operation, source, curve, position)
        return site

    def position(self, path: str) -> int | None:
        """Where the module at `path` came in the order of execution; None if it was not met."""
        return next((site.position for site in self._known.values() if site.name == path), None)

    def _is_other(self, site: Site, curve: Curve | None) -> bool:
        if curve is self._curves[site.id]:
            return False
        self._curves[site.id] = curve
        return _curve_as_json(curve) != site.curve

    def take_unrecorded(self) -> list[Site]:
        """The sites met since the last call."""
        taken, self._unrecorded = self._unrecorded, []
        return taken


def user_frame(limit: CodeType | None = None) -> FrameType | None:
    """The innermost frame on the stack that is the user's own code: not torch's, not desat's, not Python's library.

    None if the code `limit` is met before one is.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        if frame.f_code is limit:
            return None
        frame = frame.f_back
    return frame


def user_frames() -> Iterator[FrameType]:
    """All frames on the stack that are the user's own code, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def source_of(frame: FrameType | None) -> str | None:
    """`file:line` of a frame, the file relative to the working directory where it lies below it."""
    if frame is None:
        return None
    path = frame.f_code.co_filename
    relative = os.path.relpath(path)
    return f"{path if relative.startswith(os.pardir) else relative}:{frame.f_lineno}"


def variable_name(value: object, frame: FrameType | None) -> str | None:
    """The name under which a frame knows an object: a local, a global, or an attribute of its `self`."""
    if frame is None:
        return None
    own = frame.f_locals
    owner = own.get("self")
    name = _name_among(value, own, getattr(owner, "__dict__", {}), frame.f_globals)
    _let_go(own, frame)
    return name


def _name_among(value: object, *scopes: Mapping[str, object]) -> str | None:
    for names in scopes:
        for name, candidate in list(names.items()):
            if candidate is value and name != "self":
                return name
    return None


def _let_go(own: Any, frame: FrameType) -> None:
    """Up to Python 3.12 a function's frame keeps the dictionary of its variables, so a first batch, until it ends."""
    is_copy = frame.f_code.co_flags & inspect.CO_OPTIMIZED and type(own) is dict
    # Held here, by the caller, by the frame, and by the call that counts; one more would be the user's locals().
    if is_copy and sys.getrefcount(own) <= _HOLDERS:
        own.clear()


def _is_users(filename: str) -> bool:
    # What is installed beside torch lies below Python's library, too, and is not the user's either.
    return not filename.startswith(_LIBRARIES) and not is_desats(filename)


def _curve_as_json(curve: Curve | None) -> str | None:
    if curve is None:
        return None
    low, high = (None if math.isinf(end) else end for end in (curve.low, curve.high))
    return json.dumps({"shape": curve.shape, "low": low, "high": high, "peak_gain": curve.peak_gain})
