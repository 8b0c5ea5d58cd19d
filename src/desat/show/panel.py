"""The live panel of `desat run`: a process of its own that reads the record and draws below the script's output.

It keeps the last lines of the terminal to itself by a scroll region (DECSTBM), as apt does for its progress bar, so
that the script's prints and progress bars scroll above it, untouched. It costs the training nothing but its core.
"""

import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.words import number, place, plain

REFRESH = 0.5
"""Seconds between two drawings."""

HEIGHT = 8
LEAST_LINES, LEAST_COLUMNS = 16, 50
"""A smaller terminal is left to the script."""

WORST_SITES = 4
SPARKS = "▁▂▃▄▅▆▇█"
MOST_SPARKS = 24

FRAME_WIDTH = 4
"""Columns that the panel's border and its padding take."""


@contextlib.contextmanager
def live_panel(directory: Path, wanted: bool = True) -> Iterator[None]:
    """Show the panel for the run in `directory` while the context is open, if standard error is a capable terminal."""
    process = _start(directory) if wanted and _is_capable() else None
    try:
        yield
    finally:
        if process is not None:
            _stop(process)


def main(directory: Path) -> None:
    """Draw until standard input ends, which it does when the training ends, in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    screen = _Screen(sys.stderr.fileno())
    try:
        while not select.select([sys.stdin], [], [], REFRESH)[0]:
            # No record yet, or one that is being replaced: there is nothing to show for now.
            with contextlib.suppress(DesatError), Record(directory) as record:
                screen.draw(_lines(record, screen.columns))
    finally:
        screen.clear()


class _Screen:
    """The last lines of a terminal, kept free for the panel."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = (0, 0)

    @property
    def columns(self) -> int:
        return os.get_terminal_size(self._descriptor).columns

    def draw(self, lines: list[str]) -> None:
        columns, rows = size = os.get_terminal_size(self._descriptor)
        if rows < LEAST_LINES or columns < LEAST_COLUMNS:
            self.clear()
            return
        parts = []
        if size != self._size:
            # Scroll what stands in the way up, then keep the script's output above the panel.
            parts.append("\n" * HEIGHT + f"\x1b[{HEIGHT}A\x1b7\x1b[1;{rows - HEIGHT}r\x1b8")
            self._size = size
        drawn = "".join(
            f"\x1b[{rows - HEIGHT + 1 + index};1H\x1b[2K{line}" for index, line in enumerate(lines[:HEIGHT])
        )
        parts.append(f"\x1b7{drawn}\x1b8")
        self._write("".join(parts))

    def clear(self) -> None:
        """Give the lines back; the cursor stays where the script left it."""
        if self._size != (0, 0):
            rows = self._size[1]
            wiped = "".join(f"\x1b[{rows - HEIGHT + 1 + index};1H\x1b[2K" for index in range(HEIGHT))
            self._write(f"\x1b7{wiped}\x1b[r\x1b8")
            self._size = (0, 0)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode())


@dataclass(frozen=True)
class _Site:
    place: str
    saturated: float
    gradient: float | None


def _lines(record: Record, columns: int) -> list[str]:
    """The panel as ready lines of `columns` characters with their colours."""
    information = record.information
    steps = record.last_steps(columns)
    losses = [float(loss) for loss in steps["loss"] if loss == loss]
    step = int(steps["step"][-1]) if len(steps["step"]) else None
    elapsed = float(steps["time"][-1]) if len(steps["step"]) else 0.0
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("step ", style="dim").append("–" if step is None else f"{step:,}", style="bold")
    head.append("   loss ", style="dim").append(number(losses[-1] if losses else None), style="bold")
    tail = Text(f"   {_speed(steps['time'])}   {elapsed:.0f} s", style="dim")
    tail.append("   watching adds ", style="dim").append(f"{_overhead(information):.1%}", style="not dim")
    room = columns - FRAME_WIDTH - len(head) - len(tail) - 3
    head.append("   ").append(_sparkline(losses[-min(room, MOST_SPARKS) :] if room > 0 else []), style="cyan")
    head.append(tail)
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row(Text("worst sites", style="dim"), Text("saturated", style="dim"), Text("gradient", style="dim"))
    for site in _worst(record):
        style = "red" if site.saturated > 0.5 else ""
        table.add_row(Text(site.place), Text(f"{site.saturated:.0%}", style=style), number(site.gradient))
    panel = Panel(
        Group(head, table), title=f"desat · {plain(information.get('script', ''))}", title_align="left",
        border_style="dim", height=HEIGHT, width=columns,
    )  # fmt: skip
    return _rendered(panel, columns)


def _worst(record: Record) -> list[_Site]:
    """The nonlinearities with the largest saturated share, then those with the smallest gradient."""
    inputs, gradients = record.last_sample("input"), record.last_sample("gradient")
    sites = []
    for site in record.sites("nonlinearity"):
        if site.id in inputs:
            bounded = site.curve is not None and '"bounded"' in site.curve
            row = inputs[site.id]
            share = (row.saturated_low or 0.0) + (row.saturated_high or 0.0) if bounded else 0.0
            gradient = gradients[site.id].rms if site.id in gradients else None
            sites.append(_Site(place(site.name, {site.name: site.operation}), share, gradient))
    sites.sort(key=lambda site: (-round(site.saturated, 2), site.gradient if site.gradient is not None else 0.0))
    return sites[:WORST_SITES]


def _overhead(information: dict[str, Any]) -> float:
    """The share that watching adds; 0 where it is not known yet, or is no number."""
    overhead = information.get("overhead")
    return float(overhead) if isinstance(overhead, (int, float)) and overhead - overhead == 0.0 else 0.0


def _sparkline(values: list[float]) -> str:
    finite = [value for value in values if abs(value) != float("inf")]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in finite)


def _speed(times: "object") -> str:
    moments = [float(moment) for moment in times]  # pyright: ignore[reportGeneralTypeIssues]
    if len(moments) < 2 or moments[-1] <= moments[0]:
        return ""
    return f"{(len(moments) - 1) / (moments[-1] - moments[0]):.0f} steps/s"


def _rendered(panel: Panel, columns: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=columns, legacy_windows=False).print(panel, end="")
    return file.getvalue().split("\n")


def _is_capable() -> bool:
    environment = os.environ
    return sys.stderr.isatty() and environment.get("TERM", "dumb") != "dumb" and "CI" not in environment


def _start(directory: Path) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "desat.show.panel", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
    except OSError:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    time.sleep(REFRESH)
    main(Path(sys.argv[1]))
