"""The application of `desat serve`: its addresses, and what each answers."""

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desat.errors import DesatError
from desat.show.comparison import MOST_COMPARED
from desat.show.dashboard import events, pages
from desat.show.dashboard.diagnoses import Diagnoses
from desat.show.dashboard.folder import Folder, NotThereError, is_addressable
from desat.show.dashboard.views import Views
from desat.show.dashboard.workers import Pace, Workers
from desat.show.guard import guarded

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

READERS = 2
"""Views that are made at once. They have threads of their own: a long one keeps nobody from the list of runs."""

KEPT = {"cache-control": "private, max-age=31536000, immutable"}
"""Of files whose address changes with what they have."""


class Dashboard:
    """The answers to what is asked. Every one is made in a worker: a slow disk keeps nobody else waiting."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.diagnoses = Diagnoses()
        self.paces = events.Paces()
        self.workers, self.readers = Workers(), Workers(READERS)
        self.views = Views(self.folder, self.diagnoses)
        self._rest = Pace(events.SHARE)
        self._examined: set[tuple[Any, ...]] = set()

    # Pages

    async def index(self, request: "Request") -> "Response":
        return await self._page(lambda: pages.render("runs.html.j2", **self._list()))

    async def run(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        return await self._page(lambda: self._run_page(self.folder.look(name).name, follows=False))

    async def latest(self, request: "Request") -> "Response":
        return await self._page(lambda: self._run_page(self.folder.newest(), follows=True))

    async def compare(self, request: "Request") -> "Response":
        names = request.query_params.getlist("run")[:MOST_COMPARED]

        def page() -> str:
            return pages.comparison([self.folder.look(name) for name in dict.fromkeys(names)])

        return await self._page(page)

    async def cure(self, request: "Request") -> "Response":
        from starlette.responses import HTMLResponse

        name = request.path_params["name"]

        def page() -> str:
            from desat.show.cure_page import render_cure

            return render_cure(self.folder.kept_cure(name))

        answer = await self._page(page)
        if isinstance(answer, HTMLResponse) and answer.status_code == 200:
            answer.headers["content-security-policy"] = await self.workers.run(pages.inline_policy)
        return answer

    # What pages ask for

    async def rows(self, request: "Request") -> "Response":
        return await self._json(request, lambda: json.dumps(self._rows()), self.workers)

    async def run_page(self, request: "Request") -> "Response":
        return await self._json(request, lambda: self.views.page(request.path_params["name"]))

    async def parts(self, request: "Request") -> "Response":
        return await self._json(request, lambda: self.views.parts(request.path_params["name"]))

    async def view(self, request: "Request") -> "Response":
        wanted = request.path_params
        return await self._json(request, lambda: self.views.view(wanted["name"], wanted["view"]))

    async def comparison(self, request: "Request") -> "Response":
        names = request.query_params.getlist("run")
        return await self._json(request, lambda: self.views.comparison(names))

    async def compared_view(self, request: "Request") -> "Response":
        names, view = request.query_params.getlist("run"), request.path_params["view"]
        return await self._json(request, lambda: self.views.compared_view(names, view))

    async def run_events(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        return self._stream(events.of_run(name, self.folder, self.diagnoses, self.paces, self.workers))

    async def folder_events(self, request: "Request") -> "Response":
        names = set(request.query_params.getlist("run"))

        def describe() -> dict[str, Any]:
            looks = self.folder.looks()
            known = [
                [pages.words.plain(look.name), *map(str, look.version), self.diagnoses.verdict(look)]
                for look in looks
                if not names or look.name in names
            ]
            return {"runs": known, "newest": self.folder.newest(), "live": any(look.is_live for look in looks)}

        pace = self.paces.everything if names else self.paces.listed
        return self._stream(events.of_folder(describe, self._examine_next, pace, self.workers))

    async def static(self, request: "Request") -> "Response":
        from starlette.responses import Response

        name = request.path_params["file"]
        if name not in pages.STATIC:
            return self._not_there("there is no such file")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(await self.workers.run(pages.static, name), media_type=kind, headers=KEPT)

    async def icon(self, request: "Request") -> "Response":
        from starlette.responses import Response

        return Response(status_code=204)

    # How it is made

    def _examine_next(self) -> None:
        """Diagnose one more of the runs that are listed, where no training is disturbed by it."""
        looks = self.folder.looks()
        if not self._rest.is_ready() or any(look.is_live for look in looks):
            return
        for look in looks:
            known = (look.name, look.started, *look.version)
            if look.problem is None and known not in self._examined and self.diagnoses.verdict(look) is None:
                self._examined.add(known)
                with self._rest.measured(), contextlib.suppress(Exception):  # its page tells what is wrong
                    self.views.examine(look.name)
                return

    def _list(self) -> dict[str, Any]:
        looks = self.folder.looks()
        return {
            "folder": self.folder.path,
            "rows": [pages.Markup(row["html"]) for row in self._rows()],
            "live": sum(look.is_live for look in looks),
            "cures": [name for name in self.folder.kept_cures() if is_addressable(name)],
            "deeper": [self.folder.path / name for name in self.folder.folders() if is_addressable(name)],
            "most": MOST_COMPARED,
        }

    def _rows(self) -> list[dict[str, str]]:
        found = []
        for look in self.folder.looks():
            html = pages.row(look, self.diagnoses.verdict(look))
            found.append({"name": pages.words.plain(look.name), "html": html})
        return found

    def _run_page(self, name: str | None, *, follows: bool) -> str:
        look = self.folder.look(name) if name is not None else None
        return pages.render(
            "shell.html.j2", look=look, seen=events.described(look) if look is not None else None, follows=follows
        )

    async def _page(self, make: Callable[[], str]) -> "Response":
        from starlette.responses import HTMLResponse

        try:
            return HTMLResponse(await self.workers.run(make))
        except NotThereError as error:
            return self._not_there(self.folder.told(error))
        except Exception as error:
            return HTMLResponse(
                pages.render("problem.html.j2", title="It cannot be shown", text=self.folder.told(error)), 500
            )

    async def _json(self, request: "Request", make: Callable[[], str], workers: Workers | None = None) -> "Response":
        from starlette.responses import JSONResponse, Response

        def measured() -> str:
            """What is asked for once is given; what is asked for again and again is counted."""
            paces = {"": self.paces.everything, "loss": self.paces.loss, "list": self.paces.listed}
            pace = paces.get(request.query_params.get("live", "once"))
            with contextlib.nullcontext() if pace is None else pace.measured():
                return make()

        try:
            return Response(await (workers or self.readers).run(measured), media_type="application/json")
        except NotThereError as error:
            return JSONResponse({"problem": self.folder.told(error)}, 404)
        except DesatError as error:
            return JSONResponse({"problem": self.folder.told(error)})

    @staticmethod
    def _stream(made: AsyncIterator[bytes]) -> "Response":
        from starlette.responses import StreamingResponse

        return StreamingResponse(made, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @staticmethod
    def _not_there(text: str) -> "Response":
        from starlette.responses import HTMLResponse

        return HTMLResponse(pages.render("problem.html.j2", title="There is nothing here", text=text), 404)

    async def not_found(self, request: "Request", error: Exception) -> "Response":
        return self._not_there("desat has no page of this address")


def dashboard(path: Path, token: str | None = None) -> "Starlette":
    """The application for the runs of a folder. token: see desat.show.guard.guarded."""
    from starlette.routing import Route

    own = Dashboard(path)
    app = guarded(
        [
            Route("/", own.index),
            Route("/rows", own.rows),
            Route("/events", own.folder_events),
            Route("/latest", own.latest),
            Route("/runs/{name}", own.run),
            Route("/runs/{name}/page", own.run_page),
            Route("/runs/{name}/parts", own.parts),
            Route("/runs/{name}/views/{view:path}", own.view),
            Route("/runs/{name}/events", own.run_events),
            Route("/compare", own.compare),
            Route("/compare/table", own.comparison),
            Route("/compare/views/{view:path}", own.compared_view),
            Route("/cures/{name}", own.cure),
            Route("/static/{file}", own.static),
            Route("/favicon.ico", own.icon),
        ],
        token,
    )
    app.add_exception_handler(404, own.not_found)
    threading.Thread(target=_warm, name="desat-warm", daemon=True).start()
    return app


def _warm() -> None:
    """Load what draws, while nobody waits for it yet."""
    import desat.diagnose.engine
    import desat.show.run_views  # noqa: F401
