import contextlib
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from functools import partial
from pathlib import Path

import pytest

from desat.record.rows import Site
from desat.show.panel import HEIGHT, WORST_SITES, _lines, live_panel
from tests.records import deep_network, write_record

ROWS, COLUMNS = 40, 100

# A process that ends at once, in the place of a panel; bound before a test replaces Popen.
quiet_process = partial(subprocess.Popen, [sys.executable, "-c", ""], stdin=subprocess.PIPE)


def resize(descriptor: int, rows: int, columns: int) -> None:
    ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(descriptor: int, pattern: bytes, seconds: float = 60) -> bytes:
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
    resize(inner, ROWS, COLUMNS)
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


@pytest.mark.parametrize("columns", [50, 64, 80, 200])
def test_the_panel_keeps_to_its_lines_and_columns(columns: int, tmp_path: Path) -> None:
    names = [f"encoder.layers.{number}.feed_forward.activation" for number in range(6)]
    rows = [
        row._replace(name=names[row.id // 3]) if isinstance(row, Site) and row.kind == "nonlinearity" else row
        for row in deep_network(steps=range(0, 4000, 100), saturated_high=0.9)
    ]
    record = write_record(tmp_path / "run", rows, script="a_script_with_a_long_name" * 5)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(_lines(record, columns))).splitlines()
    assert [len(line) for line in lines] == [columns] * HEIGHT
    assert "step 3,900" in lines[1]
    assert sum("activation" in line or "encoder" in line for line in lines) == WORST_SITES


@pytest.mark.parametrize(
    ("is_terminal", "environment", "wanted", "starts"),
    [
        (True, {"TERM": "xterm"}, True, True),
        (False, {"TERM": "xterm"}, True, False),
        (True, {"TERM": "xterm", "CI": "true"}, True, False),
        (True, {"TERM": "dumb"}, True, False),
        (True, {}, True, False),
        (True, {"TERM": "xterm"}, False, False),
    ],
)
def test_a_panel_is_started_only_where_it_can_be_seen_and_is_wanted(
    is_terminal: bool, environment: dict[str, str], wanted: bool, starts: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **_: started.append(command) or quiet_process())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    for name in ("TERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with live_panel(tmp_path, wanted=wanted):
        pass
    assert bool(started) == starts


def test_the_panel_follows_the_size_of_the_terminal(panel) -> None:
    terminal = panel[1]
    read_until(terminal, b"watching adds.*\x1b8")
    resize(terminal, 30, 80)
    assert "╮".encode() in read_until(terminal, f"\x1b\\[1;{30 - HEIGHT}r".encode() + b"(?s:.*)watching adds.*\x1b8")
    resize(terminal, 10, 80)
    read_until(terminal, rb"\x1b\[r\x1b8")  # too small: all of it is the script's
    resize(terminal, ROWS, COLUMNS)
    read_until(terminal, f"\x1b\\[1;{ROWS - HEIGHT}r".encode())


# A script that does not import torch is quick, and the panel is there all the same.
BARS = """
import os, sys, time
for step in range(12):
    print(f"\\rbar {step:3d}/12", end="", file=sys.stderr, flush=True)
    print(f"line {step}", flush=True)
    while step == 5 and not os.path.exists("go_on"):
        time.sleep(0.05)
print("the end")
"""


@dataclass
class Terminal:
    """`desat run` in a terminal that is its controlling one, as in a user's window."""

    process: subprocess.Popen[bytes]
    descriptor: int

    def rest(self) -> bytes:
        """What is written until no process has the terminal open, which is when all have ended."""
        seen, deadline = b"", time.monotonic() + 30
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                assert time.monotonic() < deadline, seen
                if select.select([self.descriptor], [], [], 0.1)[0]:
                    seen += os.read(self.descriptor, 65536)
        return seen


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(script: str, *options: str, beneath_a_shell: bool = False, **environment: str) -> Terminal:
        (tmp_path / "bars.py").write_text(script)
        outer, inner = pty.openpty()
        resize(inner, ROWS, COLUMNS)
        command = ["sh", "-c", '"$@"; read line', "sh"] if beneath_a_shell else []
        command += [sys.executable, "-m", "desat", "run", "--run-dir", "run", *options, "bars.py"]
        here = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"} | environment
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=inner, stdout=inner, stderr=inner, env=here, start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)
        opened.append(Terminal(process, outer))
        return opened[-1]

    yield open_one
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.descriptor)


def without_the_panel(seen: bytes) -> str:
    """What a terminal shows of the script: the panel draws between a saved and a restored cursor."""
    drawn = rf"\x1b7.*?\x1b8|\n{{{HEIGHT}}}\x1b\[{HEIGHT}A"
    return re.sub(drawn, "", seen.decode().replace("\r\n", "\n"), flags=re.DOTALL)


def test_prints_and_progress_bars_are_as_they_are_without_the_panel(terminal, tmp_path: Path) -> None:
    one = terminal(BARS)
    region = f"\\x1b\\[1;{ROWS - HEIGHT}r".encode()
    seen = read_until(one.descriptor, region + b"(?s:.*)bars.py(?s:.*)\x1b8")
    (tmp_path / "go_on").touch()
    seen += one.rest()
    assert one.process.wait() == 0
    expected = "".join(f"\rbar {step:3d}/12line {step}\n" for step in range(12)) + "the end\n"
    shown = without_the_panel(seen)
    assert shown.startswith(expected)
    assert shown.removeprefix(expected).count("\n") == 1  # desat's own line


@pytest.mark.parametrize(("options", "environment"), [(("--quiet",), {}), ((), {"CI": "1"})])
def test_nothing_is_drawn_under_quiet_and_in_ci(
    options: tuple[str, ...], environment: dict[str, str], terminal, tmp_path: Path
) -> None:
    (tmp_path / "go_on").touch()
    one = terminal(BARS, *options, **environment)
    seen = one.rest()
    assert b"\x1b" not in seen
    assert (b"desat: " in seen) == (not options)
    assert seen.count(b"line ") == 12


def test_ctrl_c_ends_the_training_and_gives_the_terminal_back(terminal) -> None:
    one = terminal(BARS)
    seen = read_until(one.descriptor, rb"\x1b\[1;\d+r")
    os.write(one.descriptor, b"\x03")
    seen += one.rest()
    assert one.process.wait() == -signal.SIGINT
    assert b"KeyboardInterrupt" in seen
    assert b"\x1b[r\x1b8" in seen
    assert not re.search(rb"\x1b\[1;\d+r", seen.rpartition(b"\x1b[r\x1b8")[2])


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


def test_a_killed_training_leaves_no_panel_and_a_usable_terminal(terminal) -> None:
    one = terminal(BARS, beneath_a_shell=True)
    before = termios.tcgetattr(one.descriptor)
    read_until(one.descriptor, rb"\x1b\[1;\d+r")
    training = child_of(one.process.pid)
    panel = Path("/proc", str(child_of(training)))
    assert b"desat.show.panel" in (panel / "cmdline").read_bytes()
    os.kill(training, signal.SIGKILL)
    read_until(one.descriptor, rb"\x1b\[r\x1b8")
    deadline = time.monotonic() + 10
    while panel.exists() and "\nState:\tZ" not in (panel / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert termios.tcgetattr(one.descriptor) == before
    os.write(one.descriptor, b"\n")
    assert one.process.wait(timeout=10) == 0
