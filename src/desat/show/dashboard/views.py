"""What the pages ask for, as JSON: a run's HTML, its figures, runs side by side.

Each is read from the record when it is asked for, over one connection that is closed after. Whatever is wrong with a
record, be it made to do harm, ends at one boundary, `_answered`, as a message.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.comparison import MOST_COMPARED, comparison_table
from desat.show.dashboard.diagnoses import Diagnosed, Diagnoses
from desat.show.dashboard.folder import Folder, Look, NotThereError

if TYPE_CHECKING:
    from desat.show.run_views import RunViews

Answer = dict[str, Any]


class Views:
    """The views of the runs in a folder."""

    def __init__(self, folder: Folder, diagnoses: Diagnoses) -> None:
        self._folder = folder
        self._diagnoses = diagnoses

    def page(self, name: str) -> str:
        """The HTML of a run, with places for its figures, and the `outline`: another one needs another page."""

        def answer() -> Answer:
            with self._run(name) as views:
                return {"html": str(views.page()), "outline": _outline(views)}

        return self._answered(answer)

    def parts(self, name: str) -> str:
        """The parts of that HTML, by their names."""

        def answer() -> Answer:
            with self._run(name) as views:
                parts = {part: str(text) for part, text in views.parts().items()}
                return {"parts": parts, "outline": _outline(views)}

        return self._answered(answer)

    def view(self, name: str, view: str) -> str:
        """One figure, or the HTML of one site, as `view`; nothing where the run has none of that name."""

        def answer() -> Answer:
            with self._run(name) as views, contextlib.suppress(KeyError):
                return {"view": views.get(view)}
            return {}

        return self._answered(answer)

    def comparison(self, names: Sequence[str]) -> str:
        """Two to five runs side by side: a table of facts."""

        def answer() -> Answer:
            with self._runs(names) as runs:
                return {"table": comparison_table([(views.record, views.diagnosis) for views in runs])}

        return self._answered(answer)

    def compared_view(self, names: Sequence[str], view: str) -> str:
        """The losses of all (`loss`), or a figure of one of them: `0/heat/gradient`."""
        from desat.show.figures import loss_figure

        def answer() -> Answer:
            if view == "loss":
                with self._runs(names) as runs:
                    return {"view": loss_figure([(views.record.name, views.record) for views in runs])}
            number, _, rest = view.partition("/")
            if not number.isdecimal() or int(number) >= len(names):
                return {}
            with self._run(names[int(number)]) as views, contextlib.suppress(KeyError):
                return {"view": views.get(rest)}
            return {}

        return self._answered(answer)

    def examine(self, name: str) -> None:
        """Diagnose a run, so that its verdict is known. Raises whatever its record makes of it."""
        with self._run(name):
            pass

    def _answered(self, answer: Callable[[], Answer]) -> str:
        """JSON of what is answered, or of a `problem`: the one boundary for what is wrong with a record.

        Raises NotThereError.
        """
        from desat.show.plot import as_json

        try:
            return as_json(answer())
        except NotThereError:
            raise
        except Exception as error:
            return as_json({"problem": self._folder.told(error)})

    @contextlib.contextmanager
    def _run(self, name: str) -> Iterator["RunViews"]:
        """Raises NotThereError where there is no such run, and whatever its record makes of it."""
        from desat.show.run_views import RunViews

        look = self._folder.look(name)
        if look.problem is not None:
            raise DesatError(look.problem)
        with self._folder.record(name) as record:
            found = self._diagnosed(record, look)
            yield RunViews(record, found.diagnosis, found.link_budget)

    @contextlib.contextmanager
    def _runs(self, names: Sequence[str]) -> Iterator[list["RunViews"]]:
        if not 2 <= len(names) <= MOST_COMPARED:
            raise DesatError(f"two to {MOST_COMPARED} runs are compared, not {len(names)}")
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self._run(name)) for name in names]

    def _diagnosed(self, record: Record, look: Look) -> Diagnosed:
        if look.is_live and look.sampled < 0:
            raise DesatError("Nothing is measured yet: the first step of the training is not in the record.")
        return self._diagnoses.of(record, look)


def _outline(views: "RunViews") -> str:
    """Of what stands fixed in a run's page: its sites."""
    sites = repr([(site.id, site.name, site.kind) for site in views.sites.values()])
    return hashlib.sha256(sites.encode("utf-8", "surrogatepass")).hexdigest()[:16]
