"""A local server's guard: it answers pages of this machine alone, and its pages can do nothing but what they must."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from desat.errors import DesatError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "[::1]")
"""What a Host or Origin header may name: a page elsewhere that has its name resolve to this machine is refused."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def guarded(routes: "Sequence[BaseRoute]") -> "Starlette":
    """An application that refuses foreign Host and Origin headers, and sends HEADERS with every answer."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    return Starlette(routes=list(routes), middleware=[Middleware(Guard)])


class Guard:
    """The middleware of `guarded`."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin = given.get("origin")
        if not is_own(given.get("host", "")) or (origin is not None and not _is_own_origin(origin)):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("desat answers pages of this machine alone\n", 403)(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self._app(scope, receive, send_guarded)


def is_own(host: str) -> bool:
    """Whether a Host header, with a port or without, names this machine by one of NAMES."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    return name.lower() in NAMES and port.isdigit()


def _is_own_origin(origin: str) -> bool:
    scheme, _, host = origin.partition("://")
    return scheme in ("http", "https") and is_own(host)


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket on this machine's own address. port: 0 for any that is free. Raises DesatError where it is taken."""
    try:
        place = socket.create_server((HOST, port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken; choose another with --port, or 0 for any" if taken else f"cannot be used: {error.strerror}"
        raise DesatError(f"port {port} {why}") from None
    with place:
        yield place


def serve(app: "Starlette", place: socket.socket, tell: Callable[[str], None]) -> None:
    """Answer until Ctrl-C. tell: is given the address of the first page."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    tell(f"http://{HOST}:{place.getsockname()[1]}/")
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[place])
