"""`desat deck --serve`: the laboratory as a page with sliders. Each measurement is made anew, one at a time."""

import threading
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from desat.deck.build import build_page
from desat.deck.drawing import inlined
from desat.deck.laboratory import ACTIVATIONS, KNOBS, Wish, experiment, wish_from
from desat.deck.page import asset, environment
from desat.deck.slide import Page, Settings
from desat.errors import DesatError
from desat.show.guard import guarded

if TYPE_CHECKING:
    from starlette.applications import Starlette

KEPT = 64
"""Measurements that are remembered, so that going back with a slider is at once."""


def laboratory(settings: Settings) -> "Starlette":
    """The application: `/` is the page, `/measure` what stands below the sliders, both of the query's wish."""
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    templates = environment()
    lock = threading.Lock()

    @lru_cache(KEPT)
    def made(wish: Wish) -> Page:
        return build_page(experiment(wish), settings)

    def rendered(name: str, wish: Wish, **words: Any) -> str:
        with lock:
            page = made(wish)
        drawn = [(figure, Markup(inlined(figure, figure.name))) for figure in page.figures]
        return templates.get_template(name).render(page=page, drawn=drawn, wish=asdict(wish), **words)

    def answered(request: Request, name: str) -> Response:
        try:
            wish = wish_from(request.query_params)
        except DesatError as error:
            return PlainTextResponse(f"{error}\n", 400)
        return HTMLResponse(rendered(name, wish, knobs=KNOBS, activations=list(ACTIVATIONS)))

    def index(request: Request) -> Response:
        return answered(request, "laboratory.html.j2")

    def measure(request: Request) -> Response:
        return answered(request, "measured.html.j2")

    def style(request: Request) -> Response:
        return Response(asset("deck.css"), media_type="text/css")

    def script(request: Request) -> Response:
        return Response(asset("laboratory.js"), media_type="text/javascript")

    return guarded(
        [Route("/", index), Route("/measure", measure), Route("/deck.css", style), Route("/laboratory.js", script)]
    )
