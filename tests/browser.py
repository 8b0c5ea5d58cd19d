"""Pages in Chromium, and what the browser complained of."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page, and what the browser complained of or asked of others."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> None:
        """Open a page and wait until it shows what it has."""
        self.page.goto(self.address + path)
        self.until(lambda: self.page.evaluate("'ready' in document.documentElement.dataset"), f"{path} is not ready")

    def until(self, is_so: Callable[[], Any], why: str = "", seconds: float = 60.0) -> float:
        """Wait until something is so. Returns the seconds that it took. A page that is being left is asked again."""
        from playwright.sync_api import Error

        def holds() -> bool:
            try:
                return bool(is_so())
            except Error as error:
                if "navigation" not in str(error):
                    raise
                return False

        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, f"{why} {self.page.url} {self.complaints}"
            time.sleep(0.03)
        return time.monotonic() - began

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@contextlib.contextmanager
def visit(browser: Any, address: str, width: int = 1440, scheme: str = "light") -> Iterator[Visit]:
    """A fresh page. address: what all that it asks for must begin with, but what lies in the page itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    found = Visit(page, address)
    page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (found.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def asks(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            found.complaints.append(f"asks {request.url}")

    page.on("request", asks)
    try:
        yield found
    finally:
        context.close()
