"""The scene of a sampled forward pass: where it is, how places in it are named, and what to measure them with."""

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import Tensor, nn

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.functional import Call, name_of
from desat.watch.measurements import Measurements
from desat.watch.modules import Member, call_source
from desat.watch.sites import Sites, source_of, user_frame

_CALL_OF_A_MODULE = nn.Module._call_impl.__code__


class Scene:
    """What a probe gets to know.

    measurements: to measure with. producer: the leaf module, or None, that ran last; product: what it returned.
    path: of the innermost watched module that is running, empty outside of one. heads: of the nn.MultiheadAttention
    that is running, None outside of one. samples: sampled steps so far, this one included. memory: what probes remember
    from one sample to the next, each under keys of its own.
    """

    def __init__(self, sites: Sites, measurements: Measurements) -> None:
        self.measurements = measurements
        self.producer: Member | None = None
        self.product: ref[Tensor] | None = None
        self.path = ""
        self.heads: int | None = None
        self.samples = 0
        self.memory: dict[Any, Any] = {}
        self._sites = sites
        self._first_producers: dict[tuple[str, str], str | None] = {}
        self._first_lines: dict[tuple[str, str], str | None] = {}

    def module_site(self, member: Member) -> Site:
        """The site of a leaf module that is running."""
        if member.curve is None:
            return self._sites.meet("module", member.path, member.operation, call_source)
        name = self.told_apart("nonlinearity", member.path)
        return self._sites.meet("nonlinearity", name, member.operation, call_source, member.curve)

    @property
    def position(self) -> int:
        """The place in the order of execution of a site that would be met now."""
        return len(self._sites)

    def site(self, kind: str, name: str, operation: str, position: int | None = None) -> Site:
        """A site of another kind under a name of the probe's choice, such as a gate of an LSTM.

        `position` defaults to the order of meeting.
        """
        return self._sites.meet(kind, name, operation, call_source, position=position)

    def call_site(self, kind: str, function: Call, curve: Curve | None = None) -> Site:
        """The site of a functional call: its file, line and function.

        One line of code may serve several layers, in a loop over them: the layer before it tells them apart.
        """
        source, operation = call_source(), name_of(function)
        name = f"{source or '?'} {operation}{self._after_producer()}"
        return self._sites.meet(kind, name, operation, _always(source), curve)

    def inner_site(self, kind: str, operation: str) -> Site:
        """The site of a functional call that bears the path of the module it happens in, such as `layers.0.attention`.

        Calls at further lines of that module say at which, and those after another layer say after whom.
        """
        line = source_of(user_frame(limit=_CALL_OF_A_MODULE))
        name = self.path
        if line is not None:
            if self._first_lines.setdefault((kind, self.path), line) != line:
                name += f" at {line}"
            name = self.told_apart(kind, name)
        return self._sites.meet(kind, name, operation, lambda: line or call_source())

    def told_apart(self, kind: str, name: str) -> str:
        """A name for what may serve several layers: plain after the layer it was first met after, with another's else.

        One activation object, or one line of code in a loop, may do so.
        """
        producer = self.producer.path if self.producer is not None else None
        first = self._first_producers.setdefault((kind, name), producer)
        return name if first == producer else name + self._after_producer()

    def _after_producer(self) -> str:
        return f" after {self.producer.path}" if self.producer is not None else ""


def _always(source: str | None) -> Callable[[], str | None]:
    return lambda: source
