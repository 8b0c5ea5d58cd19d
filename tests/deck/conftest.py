from collections.abc import Callable
from functools import cache

import pytest

from desat.deck.build import build_page
from desat.deck.slide import Page, Settings, Slide


@cache
def _fast_page(slide: Slide) -> Page:
    return build_page(slide, Settings(fast=True))


@pytest.fixture
def fast_page() -> Callable[[Slide], Page]:
    """Makes a slide at its fast size, once for all tests of a file."""
    return _fast_page
