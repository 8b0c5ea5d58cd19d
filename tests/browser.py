"""A page as Chromium has it: the DOM after its scripts have run, and what the browser complained of."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")


def opened(page: Path, profile: Path) -> "subprocess.CompletedProcess[str]":
    """Open a page from disk without a window. stdout: the DOM; stderr: the log, in which the console has its lines."""
    return subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={profile}", "--virtual-time-budget=10000",
            "--dump-dom", page.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
