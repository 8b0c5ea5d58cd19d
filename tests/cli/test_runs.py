"""`desat runs` and `desat compare` on made-up records."""

import contextlib
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from desat.record.run import list_runs
from tests.records import deep_network, write_record
from tests.warm import desat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sick = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    write_record(tmp_path / "old", deep_network(), started="2026-01-01T00:00:00+00:00").close()
    write_record(tmp_path / "[bold]new", sick, started="2026-02-01T00:00:00+00:00").close()
    write_record(tmp_path / "lost", deep_network(loss=lambda step: math.nan), started="2025-01-01").close()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_runs_are_listed_the_newest_first_and_broken_ones_last(folder: Path) -> None:
    found = list_runs(folder)
    assert [run.name for run in found] == ["[bold]new", "old", "lost", "broken"]
    assert (found[0].steps, found[0].loss, found[0].status) == (91, 2.3, "finished")
    assert found[3].problem is not None


def test_the_command_prints_a_line_a_run_or_json(folder: Path) -> None:
    done = desat("runs", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "[bold]new" in done.stdout
    assert "2.3" in done.stdout
    told = json.loads(desat("runs", "--json", folder, cwd=folder).stdout)
    assert [run["loss"] is None for run in told] == [False, False, True, True]
    nowhere = desat("runs", "nowhere", cwd=folder)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)


def test_runs_that_lie_deeper_are_told_of(folder: Path) -> None:
    write_record(folder / "demo" / "sick", deep_network(layers=1)).close()
    done = desat("runs", "--json", folder, cwd=folder)
    assert "sick" not in [run["name"] for run in json.loads(done.stdout)]
    assert done.stderr == f"desat: more runs lie in {folder / 'demo'}\n"


LONG = "train_resnet_cifar10_with_augmentation-20260101-120000"


def shown_in_a_terminal(command: list[str], folder: Path, columns: int) -> str:
    """What a command prints to a terminal of so many columns, without its colours."""
    outer, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    desat = [sys.executable, "-m", "desat"]
    process = subprocess.Popen(
        [*desat, *command], cwd=folder, stdout=inner, stderr=inner, env=environment | {"TERM": "xterm"}
    )
    os.close(inner)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(outer, 65536):
            seen += part
    os.close(outer)
    assert process.wait() == 0
    assert b"\x1b[" in seen
    return re.sub(r"\x1b\[[0-9;]*m", "", seen.decode().replace("\r\n", "\n"))


def test_in_a_pipe_each_run_is_a_whole_line_without_colours(folder: Path) -> None:
    script = "experiments/vision/" * 9 + "train.py"
    write_record(folder / LONG, deep_network(), started="2026-03-01", script=script).close()
    done = desat("runs", folder, cwd=folder)
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["run", "script", "status", "steps", "loss"]
    assert lines[1].split() == [LONG, script, "finished", "91", "0.1483"]
    assert len(lines) == 1 + 5
    compared = desat("compare", LONG, "old", cwd=folder)
    assert "\x1b" not in compared.stdout
    assert [line.split() for line in compared.stdout.splitlines() if LONG in line] == [[LONG, "old"]]


def test_in_a_narrow_terminal_names_are_whole_and_a_run_takes_a_line(folder: Path) -> None:
    write_record(
        folder / LONG[-41:], deep_network(), started="2026-03-01", script="experiments/vision/train.py"
    ).close()
    lines = shown_in_a_terminal(["runs", "."], folder, columns=80).splitlines()
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[1].split()[0] == LONG[-41:]
    assert lines[1].split()[1].startswith("…")
    assert lines[1].split()[1].endswith("train.py")
    assert len([line for line in lines if "finished" in line]) == 4
    shown = shown_in_a_terminal(["compare", "[bold]new", "old", "lost"], folder, columns=80).splitlines()
    assert all(len(line) <= 80 for line in shown)


def test_the_newest_runs_alone_can_be_asked_for(folder: Path) -> None:
    lines = desat("runs", "-n", 2, folder, cwd=folder).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["[bold]new", "old"]


def test_two_runs_stand_side_by_side(folder: Path) -> None:
    done = desat("compare", "[bold]new", "old", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "[bold]new" in done.stdout
    assert "old" in done.stdout
    alone = desat("compare", "old", cwd=folder)
    assert (alone.returncode, alone.stderr) == (2, "desat: compare takes two to 5 runs, not 1\n")
