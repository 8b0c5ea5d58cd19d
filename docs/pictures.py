"""Make the README's pictures from runs of the code that stands here: `make pictures` (needs Chromium)."""

import atexit
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console

from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.record.reader import Record
from desat.show.terminal import print_diagnosis

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ROOT / "src" / "desat" / "examples"
WIDTH = 1100
"""Pixels."""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def draw(chromium: Any, address: str, name: str, height: int, width: int = WIDTH, ready: str = "[data-ready]") -> None:
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.wait_for_selector(ready)
    page.wait_for_timeout(2000)
    page.screenshot(path=str(IMAGES / name))
    page.close()


def draw_diagnosis(run: Path) -> None:
    with Record(run) as record:
        console = Console(record=True, width=100, file=io.StringIO())
        print_diagnosis(record, diagnose(record), measure_link_budget(record), console)
    console.save_svg(str(IMAGES / "diagnosis.svg"), title=f"desat diagnose {run.name}")


def draw_dashboard(chromium: Any, runs: Path) -> None:
    """The list of runs, one of which trains."""
    desat = [sys.executable, "-m", "desat"]
    place = runs.parent
    shutil.copy(EXAMPLES / "healthy_digits.py", place / "train.py")
    train = [*desat, "run", "-q", "--run-dir", runs / "live", "train.py", "--epochs", "2000"]
    with subprocess.Popen([*desat, "serve", runs.name, "--port", "0"], stdout=subprocess.PIPE, cwd=place) as server:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip()
        page = chromium.new_page()
        page.goto(address)
        for verdict in ("✖ sick", "✓ healthy"):
            page.wait_for_selector(f"text={verdict}", timeout=60_000)
        with subprocess.Popen(train, cwd=place, stdout=subprocess.DEVNULL) as training:
            page.wait_for_selector("text=running", timeout=60_000)
            page.wait_for_timeout(10_000)  # for some steps of the training
            draw(chromium, address, "dashboard.png", 440)
            training.kill()
        server.kill()


def draw_card(chromium: Any, place: Path) -> None:
    """What a notebook shows below a cell."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    os.environ["IPYTHONDIR"] = str(place)
    shell = InteractiveShell()
    atexit.unregister(shell.atexit_operations)  # which would write a history into a folder that is gone by then
    shell.display_pub = CapturingDisplayPublisher()
    before, sys.argv = sys.argv, ["digits"]
    with contextlib.chdir(place):
        shell.run_cell("%load_ext desat")
        shell.run_cell("%%desat digits\n" + (EXAMPLES / "sick_digits.py").read_text(encoding="utf-8"))
    sys.argv = before
    card = shell.display_pub.outputs[-1]["data"]["text/html"]
    page = place / "card.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin: 12px 16px">{card}', encoding="utf-8")
    draw(chromium, page.as_uri(), "notebook.png", 700, width=812, ready="body")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, browser() as chromium:
        demo = Path(place) / "demo"
        subprocess.run([sys.executable, "-m", "desat", "demo", "--run-dir", demo], check=True, cwd=ROOT)
        draw(chromium, (demo / "report.html").resolve().as_uri(), "report.png", 2600)
        draw_diagnosis(demo / "sick")
        draw_dashboard(chromium, demo)
        draw_card(chromium, Path(place))


if __name__ == "__main__":
    main()
