import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.browser import chromium

# One thread: on two cores, two workers with two threads each wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says something of the machine, which others use too, and nothing of a property.
settings.register_profile("desat", deadline=None)
settings.load_profile("desat")


LONGEST = "tests/watch/test_cases.py"
"""Begun last, as its name would have it, one worker would be at it for a minute when all others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests of a module; none stays, since its event loop would be in the way of others'."""
    with chromium() as found:
        yield found
