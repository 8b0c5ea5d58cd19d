"""`desat serve` as a process: its address, its end, and what it says where it cannot be."""

import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from desat.cli.serve import NICENESS, serve
from desat.errors import DesatError
from tests.records import deep_network, write_record
from tests.show.dashboard.serving import served
from tests.warm import desat

MANY = 200
MOST_SECONDS = 4.0
"""Of the processor's time, until the list of MANY runs is there: 2 on a quiet one, and it may be slower."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_record(tmp_path / "runs" / "run", deep_network(layers=2)).close()
    return tmp_path / "runs"


def read(address: str, path: str = "/", **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ctrl_c_ends_it_at_once_though_a_page_listens(folder: Path) -> None:
    with served(folder) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        assert read(address)[0] == 200
        place = urllib.parse.urlsplit(address)
        listening = http.client.HTTPConnection(str(place.hostname), place.port)
        listening.request("GET", "/runs/run/events")
        with contextlib.closing(listening), listening.getresponse() as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.readline() == b"retry: 1000\n"
            assert os.getpriority(os.PRIO_PROCESS, process.pid) >= NICENESS
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "", "")
        assert time.monotonic() - began < 5


def test_strangers_are_refused(folder: Path) -> None:
    with served(folder) as (address, _):
        assert read(address, Host="evil.example")[0] == 403
        assert read(address, Origin="https://evil.example")[0] == 403
        assert read(address, "/runs/../../etc/passwd")[0] == 404
        assert read(address, "/runs/%2e%2e%2f%2e%2e%2fetc%2fpasswd")[0] == 404
        request = urllib.request.Request(address, data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code == 405
        error.value.close()


def test_elsewhere_it_takes_the_token_that_is_printed(folder: Path) -> None:
    with served(folder, "--host", "0.0.0.0") as (address, _):
        place, _, token = address.partition("/?token=")
        port = place.rpartition(":")[2]
        here = f"http://127.0.0.1:{port}"
        assert len(token) >= 43
        assert read(here)[0] == read(here, "/rows")[0] == read(here, "/?token=wrong")[0] == 403
        status, page = read(here, f"/?token={token}")
        assert status == 200
        assert "run" not in page
        assert read(here, "/rows", Cookie=f"desat-{port}={token}")[0] == 200


def test_two_hundred_runs_are_there_soon(tmp_path: Path) -> None:
    write_record(tmp_path / "run-0", deep_network(layers=3)).close()
    content = (tmp_path / "run-0" / "run.sqlite").read_bytes()
    for number in range(1, MANY):
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}" / "run.sqlite").write_bytes(content)
    with served(tmp_path) as (address, process):
        _, page = read(address)
        taken = processor_seconds(process.pid)
    assert page.count("<tr data-name=") == MANY
    assert taken < MOST_SECONDS


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = desat("serve", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "desat: no folder nowhere: `desat run SCRIPT` makes one\n")


def test_a_port_that_is_taken_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = desat("serve", str(folder), "--port", str(port), cwd=folder)
    assert done.returncode == 2
    assert done.stderr == f"desat: port {port} is taken; choose another with --port, or 0 for any\n"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    found = importlib.util.find_spec
    return lambda missing: monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *given: None if name == missing else found(name, *given)
    )


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_what_is_not_installed_is_said(folder: Path, without: Callable[[str], None], missing: str) -> None:
    without(missing)
    with pytest.raises(DesatError, match=r"pip install 'desat\[serve\]'"):
        serve(folder)
