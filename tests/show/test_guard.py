"""The guard of a local server: whom it answers, and what it sends along."""

import asyncio
from typing import Any

import pytest

from desat.errors import DesatError
from desat.show.guard import HEADERS, guarded, is_own, listening


def answer(headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    """The status and the headers that a request gets, without a network."""
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    app = guarded([Route("/", lambda request: PlainTextResponse("here"))])
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    begun = sent[0]
    return begun["status"], {name.decode(): value.decode() for name, value in begun["headers"]}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8123", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert is_own(host)
    status, headers = answer({"host": host, "origin": f"http://{host}"})
    assert status == 200
    assert HEADERS.items() <= headers.items()
    assert "unsafe-inline" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8123"},
        {"host": "evil.example:80#127.0.0.1"},
        {},
        {"host": "127.0.0.1:8123", "origin": "https://evil.example"},
        {"host": "127.0.0.1:8123", "origin": "null"},
    ],
)
def test_foreign_names_are_refused(headers: dict[str, str]) -> None:
    assert answer(headers)[0] == 403


def test_a_port_that_is_taken_is_said() -> None:
    with listening(0) as place:
        port = place.getsockname()[1]
        assert place.getsockname()[0] == "127.0.0.1"
        with pytest.raises(DesatError, match=f"port {port} is taken"), listening(port):
            pass
