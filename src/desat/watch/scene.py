"""The scene of a sampled forward pass: where it is, how places in it are named, and what to measure them with."""

from collections.abc import Callable

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.functional import Call, name_of
from desat.watch.measurements import Measurements
from desat.watch.modules import Member, call_source
from desat.watch.sites import Sites


class Scene:
    """What a probe gets to know.

    measurements: to measure with. producer: the leaf module, or None, that ran last. path: of the innermost watched
    module that is running, empty outside of one.
    """

    def __init__(self, sites: Sites, measurements: Measurements) -> None:
        self.measurements = measurements
        self.producer: Member | None = None
        self.path = ""
        self._sites = sites
        self._first_producers: dict[str, Member | None] = {}

    def module_site(self, member: Member) -> Site:
        """The site of a leaf module that is running."""
        if member.curve is None:
            return self._sites.meet("module", member.path, member.operation, call_source)
        # One activation object may serve several layers: the first has its plain path, the others say after whom.
        first = self._first_producers.setdefault(member.path, self.producer)
        name = member.path if first is self.producer else member.path + self._after_producer()
        return self._sites.meet("nonlinearity", name, member.operation, call_source, member.curve)

    def site(self, kind: str, name: str, operation: str) -> Site:
        """A site of another kind under a name of the probe's choice, such as a gate of an LSTM."""
        return self._sites.meet(kind, name, operation, call_source)

    def call_site(self, kind: str, function: Call, curve: Curve | None = None) -> Site:
        """The site of a functional call: its file, line and function.

        One line of code may serve several layers, in a loop over them: the layer before it tells them apart.
        """
        source, operation = call_source(), name_of(function)
        name = f"{source or '?'} {operation}{self._after_producer()}"
        return self._sites.meet(kind, name, operation, _always(source), curve)

    def _after_producer(self) -> str:
        return f" after {self.producer.path}" if self.producer is not None else ""


def _always(source: str | None) -> Callable[[], str | None]:
    return lambda: source
