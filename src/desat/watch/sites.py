"""Sites: what is measured where, and how it is named."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch.overrides

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.frames import is_desats

_LIBRARIES = (
    str(Path(torch.overrides.__file__).resolve().parent) + os.sep,
    str(Path(os.__file__).resolve().parent) + os.sep,
    "<frozen",
)


class Sites:
    """The sites of a run, each with one number, in the order in which they were first met."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Site] = {}
        self._unrecorded: list[Site] = []

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

        `position` defaults to the order of meeting.
        """
        site = self._known.get((kind, name))
        if site is None:
            number = len(self._known)
            place = number if position is None else position
            site = Site(number, name, kind, operation, source(), place, _curve_as_json(curve))
            self._known[kind, name] = site
            self._unrecorded.append(site)
        return site

    def position(self, path: str) -> int | None:
        """Where the module at `path` came in the order of execution; None if it was not met."""
        return next((site.position for site in self._known.values() if site.name == path), None)

    def take_unrecorded(self) -> list[Site]:
        """The sites met since the last call."""
        taken, self._unrecorded = self._unrecorded, []
        return taken


def user_frame() -> FrameType | None:
    """The innermost frame on the stack that is the user's own code: not torch's, not desat's, not Python's library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


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
    owner = frame.f_locals.get("self")
    for names in (frame.f_locals, getattr(owner, "__dict__", {}), frame.f_globals):
        for name, candidate in names.items():
            if candidate is value and name != "self":
                return name
    return None


def _is_users(filename: str) -> bool:
    # What is installed beside torch lies below Python's library, too, and is not the user's either.
    return not filename.startswith(_LIBRARIES) and not is_desats(filename)


def _curve_as_json(curve: Curve | None) -> str | None:
    if curve is None:
        return None
    low, high = (None if math.isinf(end) else end for end in (curve.low, curve.high))
    return json.dumps({"shape": curve.shape, "low": low, "high": high, "peak_gain": curve.peak_gain})
