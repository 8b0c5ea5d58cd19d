"""A local server's guard: whom it answers, and that its pages can do nothing but what they must."""

import asyncio
import contextlib
import errno
import html
import logging
import secrets
import socket
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from desat.errors import DesatError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "[::1]")
"""What a Host header may name: a page elsewhere that has its name resolve to this machine is refused."""

EVERYWHERE = ("0.0.0.0", "::")
"""All addresses of this machine at once; a page is opened by its name."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer; one that has a header of such a name keeps its own."""

TOKEN_BYTES = 32

_logger = logging.getLogger("uvicorn.error")


def guarded(routes: "Sequence[BaseRoute]", token: str | None = None) -> "Starlette":
    """An application that only reads (GET), for pages of its own, and sends HEADERS with every answer.

    Without a token it answers by the names of this machine alone. With one it answers by any name, and only those who
    have the token: a stranger's name that resolves to this machine gets nobody in.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    return Starlette(routes=list(routes), middleware=[Middleware(Guard, token=token)])


class Guard:
    """The middleware of `guarded`."""

    def __init__(self, app: "ASGIApp", token: str | None = None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent = list(message.get("headers", ()))
                names = {name.lower() for name, _ in sent}
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": sent + [one for one in own if one[0] not in names]}
            await send(message)

        refused = self._refusal(scope, given)
        await (self._app if refused is None else refused)(scope, receive, send_guarded)

    def _refusal(self, scope: "Scope", given: dict[str, str]) -> "Response | None":
        """What is answered instead of the page; None where the page is to be had."""
        from starlette.responses import PlainTextResponse

        host, origin = given.get("host", ""), given.get("origin")
        if self._token is None and not is_own(host):
            return PlainTextResponse("desat answers pages of this machine alone\n", 403)
        if origin is not None and not _is_of(origin, host):
            return PlainTextResponse("desat answers its own pages alone\n", 403)
        if scope["type"] == "http" and scope["method"] != "GET":
            return PlainTextResponse("desat only shows: GET is all that it answers\n", 405, {"allow": "GET"})
        return None if self._token is None else self._without_token(scope, given, self._token)

    @staticmethod
    def _without_token(scope: "Scope", given: dict[str, str], token: str) -> "Response | None":
        from starlette.responses import HTMLResponse, PlainTextResponse

        cookie = f"desat-{(scope.get('server') or ('', 0))[1]}"
        asked = urllib.parse.parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        if asked and _is_same(asked[-1], token):
            # A page that goes on, and no redirection: of one that begins on another site a strict cookie is not sent.
            place = html.escape("/" + urllib.parse.quote(scope["path"].lstrip("/")))
            entered = HTMLResponse(
                f'<!doctype html><title>desat</title><meta http-equiv="refresh" content="0;url={place}">'
                f'<a href="{place}">desat</a>'
            )
            entered.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
            return entered
        if _is_same(_cookies(given.get("cookie", "")).get(cookie, ""), token):
            return None
        return PlainTextResponse("desat: open the address that `desat serve` has printed, with its token\n", 403)


def _is_same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _cookies(header: str) -> dict[str, str]:
    pairs = (one.strip().partition("=") for one in header.split(";"))
    return {name: value for name, _, value in pairs}


def is_own(host: str) -> bool:
    """Whether a Host header, with a port or without, names this machine by one of NAMES."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    return name.lower() in NAMES and port.isdigit()


def _is_of(origin: str, host: str) -> bool:
    """Whether an Origin header is of the server that the Host header names: another port is another's page."""
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and bool(host) and place.lower() == host.lower()


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether what listens at this address is reached from this machine alone, and by one of NAMES."""
    return host.lower() in (HOST, "localhost", "::1")


@contextlib.contextmanager
def listening(port: int, host: str = HOST) -> Iterator[socket.socket]:
    """A socket at an address of this machine. port: 0 for any that is free.

    Raises DesatError where the port is taken or the address is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        place = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            why = f"port {port} is taken; choose another with --port, or 0 for any"
        elif host == HOST:
            why = f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}"
        else:
            why = f"address {host} cannot be used: {getattr(error, 'strerror', None) or error}"
        raise DesatError(why) from None
    with place:
        yield place


def address(place: socket.socket, token: str | None = None) -> str:
    """The address of the first page, with the token that it asks for."""
    host, port = place.getsockname()[:2]
    if host in EVERYWHERE:
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token is not None else "")


def serve(app: "Starlette", place: socket.socket, tell: Callable[[str], None], token: str | None = None) -> None:
    """Answer until Ctrl-C, which ends also what is being answered. tell: is given the address of the first page."""
    import uvicorn

    # What is still being sent is not waited for: a page that follows a run holds its stream open for good.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=0, server_header=False
    )
    _logger.addFilter(_is_worth_telling)
    tell(address(place, token))
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[place])


def _is_worth_telling(message: logging.LogRecord) -> bool:
    """Whether it is more than that the end has cut off what was being sent."""
    error = message.exc_info[1] if message.exc_info else None
    was_cut = isinstance(error, asyncio.CancelledError)
    return not was_cut and "timeout graceful shutdown exceeded" not in message.getMessage()
