import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

from desat.show.panel import HEIGHT, _lines, live_panel
from tests.records import deep_network, write_record

ROWS, COLUMNS = 40, 100


def read_until(descriptor: int, pattern: bytes, seconds: float = 20) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while not re.search(pattern, seen):
        assert time.monotonic() < deadline, seen
        if select.select([descriptor], [], [], 0.1)[0]:
            seen += os.read(descriptor, 65536)
    return seen


@pytest.fixture
def panel(tmp_path: Path):
    """A panel in a terminal of its own: the process and the terminal's other end."""
    write_record(tmp_path / "run", deep_network(saturated_high=0.9)).close()
    outer, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "desat.show.panel", str(tmp_path / "run")], stdin=subprocess.PIPE, stderr=inner
    )
    yield process, outer
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    os.close(outer)
    os.close(inner)


def test_the_panel_draws_below_the_scroll_region_and_gives_the_lines_back(panel) -> None:
    process, terminal = panel
    drawn = read_until(terminal, b"watching adds.*\x1b8")
    assert f"\x1b[1;{ROWS - HEIGHT}r".encode() in drawn
    process.send_signal(signal.SIGINT)  # Ctrl-C is for the training
    read_until(terminal, b"watching adds")
    process.stdin.close()
    assert re.search(rb"\x1b\[r\x1b8$", read_until(terminal, rb"\x1b\[r\x1b8"))
    assert process.wait(timeout=5) == 0


def test_the_panel_shows_step_loss_worst_sites_and_overhead(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(saturated_high=0.9))
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in _lines(record, COLUMNS)]
    text = "\n".join(lines)
    assert len(lines) <= HEIGHT + 1
    assert all(len(line) == COLUMNS for line in lines if line)
    for word in ("step 90", "loss", "net.1", "90%", "watching adds 1.0%"):
        assert word in text


def test_nothing_is_started_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a panel was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with live_panel(tmp_path):
        pass
