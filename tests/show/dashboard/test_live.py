"""The dashboard beside a real training: what the page shows while it trains, and after it was killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desat.record.reader import Record
from tests.browser import Visit, chromium, needs_chromium, visit
from tests.show.dashboard.serving import served

pytestmark = needs_chromium

TRAINING = """
import time
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
inputs, labels = torch.randn(64, 8), torch.randint(0, 4, (64,))
model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    time.sleep(0.05)
"""

LONGEST_DELAY = 2.0
"""Seconds from a step's being in the record until the page shows it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAINING)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def visited(folder: Path) -> Iterator[Visit]:
    with served(folder) as (address, _), chromium() as browser, visit(browser, address, 1024) as found:
        yield found


def train(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "desat", "run", "--quiet", "--run-dir", str(folder / name)]
    return subprocess.Popen(
        [*command, str(folder.parent / "train.py")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def told_step(visited: Visit) -> int:
    text = visited.text("#step").replace(",", "")
    return int(text) if text.isdigit() else -1


def drawn_step(visited: Visit) -> int:
    return int(visited.page.evaluate("document.documentElement.dataset.shown ?? '-1'"))


def loss_step(visited: Visit) -> int:
    return int(visited.page.evaluate("document.documentElement.dataset.drawn ?? '-1'"))


def delay(visited: Visit, folder: Path, name: str, shown: Any) -> float:
    """Seconds from now, when a step is in the record, until the page shows it or a later one."""
    with Record(folder / name) as record:
        newest = int(record.last_steps(1)["step"][-1])
    return visited.until(lambda: shown(visited) >= newest, f"step {newest} is not shown")


def test_the_page_follows_a_training_until_it_is_killed(visited: Visit, folder: Path) -> None:
    page = visited.page
    visited.open("/latest")
    assert visited.text("h1") == "No run yet"
    training = train(folder, "first")
    following = None
    try:
        visited.until(lambda: page.query_selector("#run[data-name='first']") is not None, "the run does not come")
        visited.until(lambda: drawn_step(visited) > 10, "nothing is drawn")
        assert "running" in visited.text("#state")
        told, drawn = [], []
        for _ in range(5):
            told.append(delay(visited, folder, "first", told_step))
            drawn.append(delay(visited, folder, "first", loss_step))
            time.sleep(0.4)
        # The machine of a test is busy with others: it is given three delays of five.
        assert sorted(told)[1] < LONGEST_DELAY
        assert sorted(drawn)[1] < LONGEST_DELAY
        assert page.evaluate("document.querySelector('.plot[data-view=loss]').figure.data[0].x.bdata.length") > 20

        page.click("#freeze")
        frozen = drawn_step(visited)
        visited.until(lambda: told_step(visited) > frozen + 10, "the line of the state has stopped as well")
        assert drawn_step(visited) == frozen
        page.click("#freeze")
        visited.until(lambda: drawn_step(visited) > frozen, "it stays frozen")

        training.send_signal(signal.SIGKILL)
        training.wait()
        visited.until(lambda: "killed" in visited.text("#state"), "the end is not told", 10)
        with Record(folder / "first") as record:
            last = int(record.last_steps(1)["step"][-1])
        visited.until(lambda: drawn_step(visited) == last, "the last step is not drawn", 20)

        following = train(folder, "second")
        visited.until(
            lambda: page.query_selector("#run[data-name='second']") is not None, "the newer run does not come"
        )
        visited.open("/")
        rows = "[...document.querySelectorAll('#rows tr')].map((row) => [row.dataset.name, row.dataset.state])"
        assert page.evaluate(rows) == [["second", "running"], ["first", "killed"]]
        following.send_signal(signal.SIGINT)
        following.wait(60)
        visited.until(lambda: page.evaluate(rows)[0] == ["second", "interrupted"], "the list does not follow", 10)
    finally:
        for process in (training, following):
            if process is not None:
                process.kill()
                process.wait()
    assert visited.complaints == []
