"""Make the README's pictures from a run of the code that stands here: `make pictures` (needs Chromium)."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.record.reader import Record
from desat.show.terminal import print_diagnosis

IMAGES = Path(__file__).parent / "images"
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=8000",
]  # fmt: skip


def draw_diagnosis(run: Path) -> None:
    with Record(run) as record:
        console = Console(record=True, width=100, file=io.StringIO())
        print_diagnosis(record, diagnose(record), measure_link_budget(record), console)
    console.save_svg(str(IMAGES / "diagnosis.svg"), title=f"desat diagnose {run.name}")


def draw_report(page: Path, width: int, height: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={IMAGES / name}"]
        subprocess.run([*CHROMIUM, *options, page.resolve().as_uri()], check=True, capture_output=True)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        demo = Path(place) / "demo"
        subprocess.run([sys.executable, "-m", "desat", "demo", "--run-dir", demo], check=True, cwd=IMAGES.parent.parent)
        draw_report(demo / "report.html", 1100, 2600, "report.png")
        draw_diagnosis(demo / "sick")


if __name__ == "__main__":
    main()
