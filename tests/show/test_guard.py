"""The guard of a local server: whom it answers, and what it sends along."""

import socket
from typing import Any

import pytest

from desat.errors import DesatError
from desat.show.guard import HEADERS, address, guarded, is_loopback, is_own, listening, new_token
from tests.show.dashboard.asking import asked


def app(token: str | None = None) -> Any:
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def kept(request: Any) -> PlainTextResponse:
        return PlainTextResponse("kept", headers={"cache-control": "private"})

    return guarded([Route("/", lambda request: PlainTextResponse("here")), Route("/kept", kept)], token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8123", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert is_own(host)
    answer = asked(app(), "/", host=host, origin=f"http://{host}")
    assert (answer.status, answer.text) == (200, "here")
    assert HEADERS.items() <= answer.headers.items()
    scripts = answer.headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert "unsafe" not in scripts


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8123"},
        {"host": "evil.example:80#127.0.0.1"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:8124"},
        {"origin": "file://127.0.0.1:8124"},
    ],
)
def test_foreign_names_are_refused(headers: dict[str, str]) -> None:
    answer = asked(app(), "/", **headers)
    assert answer.status == 403
    assert "here" not in answer.text
    assert HEADERS.items() <= answer.headers.items()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "ODD"])
@pytest.mark.parametrize("path", ["/", "/nothing"])
def test_it_only_shows(method: str, path: str) -> None:
    answer = asked(app(), path, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_an_answer_keeps_its_own_headers() -> None:
    assert asked(app(), "/kept").headers["cache-control"] == "private"
    assert asked(app(), "/").headers["cache-control"] == "no-store"


TOKEN = new_token()


def test_with_a_token_any_name_is_answered_to_who_has_it() -> None:
    entered = asked(app(TOKEN), "/some/place", f"token={TOKEN}", host="machine.example:8124")
    cookie = entered.headers["set-cookie"]
    assert entered.status == 200
    assert cookie.startswith(f"desat-8124={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert 'content="0;url=/some/place"' in entered.text
    assert TOKEN not in entered.text
    shown = asked(app(TOKEN), "/", host="machine.example:8124", cookie=f"other=1; desat-8124={TOKEN}")
    assert (shown.status, shown.text) == (200, "here")


@pytest.mark.parametrize(
    ("query", "cookie"),
    [
        ("", ""),
        ("token=", "desat-8124="),
        ("token=wrong", ""),
        (f"token={TOKEN[:-1]}", f"desat-8124={TOKEN[:-1]}"),
        ("", f"desat-9999={TOKEN}"),
        (f"other={TOKEN}", ""),
        ("token=%ff%fe", "desat-8124=\xff"),
    ],
    ids=["none", "empty", "another", "cut short", "of another port", "under another name", "no text"],
)
@pytest.mark.parametrize("path", ["/", "/kept", "/nothing"])
def test_without_the_token_nothing_is_answered(path: str, query: str, cookie: str) -> None:
    answer = asked(app(TOKEN), path, query, cookie=cookie)
    assert answer.status == 403
    assert "set-cookie" not in answer.headers
    assert TOKEN not in answer.text


def test_with_a_token_foreign_pages_are_refused_all_the_same() -> None:
    cookie = f"desat-8124={TOKEN}"
    assert asked(app(TOKEN), "/", host="here:1", origin="http://here:1", cookie=cookie).status == 200
    assert asked(app(TOKEN), "/", host="here:1", origin="http://evil.example", cookie=cookie).status == 403


@pytest.mark.parametrize("path", ["//evil.example", "///evil.example/", '/"><script>', "/\\evil.example"])
def test_whoever_enters_stays_here(path: str) -> None:
    page = asked(app(TOKEN), path, f"token={TOKEN}").text
    place = page.partition("0;url=")[2].partition('"')[0]
    assert place.startswith("/")
    assert not place.startswith(("//", "/\\"))
    assert "<script>" not in page


def test_tokens_are_long_and_differ() -> None:
    assert len(new_token()) >= 43
    assert new_token() != new_token()


def test_a_port_that_is_taken_is_said() -> None:
    with listening(0) as place:
        port = place.getsockname()[1]
        assert place.getsockname()[0] == "127.0.0.1"
        with pytest.raises(DesatError, match=f"port {port} is taken"), listening(port):
            pass


@pytest.mark.parametrize("host", ["no.such.name.invalid", "203.0.113.7", "a" * 300])
def test_an_address_of_another_machine_is_said(host: str) -> None:
    with pytest.raises(DesatError, match="cannot be used") as error, listening(0, host):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
    ],
)
def test_what_others_can_reach_is_told_from_what_they_cannot(host: str, own: bool) -> None:
    assert is_loopback(host) == own


def test_the_address_names_this_machine_and_has_the_token() -> None:
    with listening(0, "0.0.0.0") as place:
        port = place.getsockname()[1]
        assert address(place, "abc") == f"http://{socket.gethostname()}:{port}/?token=abc"
