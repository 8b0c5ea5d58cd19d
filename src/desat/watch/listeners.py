"""Who hears what a script tells of itself by `desat.log`: the taps of the runs that are watched. Without torch."""

from collections.abc import Callable, Mapping
from typing import SupportsFloat

Listener = Callable[[Mapping[str, SupportsFloat]], None]

listeners: list[Listener] = []
"""Empty where nothing watches; see desat.watch.metric_tap."""


def tell(values: Mapping[str, SupportsFloat]) -> None:
    """Tell all of them."""
    for listener in tuple(listeners):
        listener(values)
