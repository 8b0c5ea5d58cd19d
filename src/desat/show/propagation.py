"""The picture of signal propagation in the terminal: forward and backward gain of each layer."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from desat.diagnose.propagation import LayerGain, Propagation
from desat.show.words import plain

LAYERS_SHOWN = 24
"""Layers that are listed; of a deeper network the first and the last ones."""

HALF_WIDTH = 7
FULL_SCALE = 20.0
"""Decibels at which a bar is full: a factor of ten."""


def propagation_table(propagation: Propagation) -> RenderableType:
    """Each layer's gains with bars around zero, and what the depth says."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", overflow="fold")
    for heading in ("forward", "backward"):
        table.add_column("dB", justify="right", no_wrap=True)
        table.add_column(heading.center(2 * HALF_WIDTH + 1), no_wrap=True)
    for layer in _shown(propagation.layers):
        if layer is None:
            table.add_row(Text("…", style="dim"))
            continue
        table.add_row(
            Text(f"{plain(layer.site)} ({plain(layer.operation)})"), _decibels(layer.forward_db),
            _bar(layer.forward_db), _decibels(layer.backward_db), _bar(layer.backward_db),
        )  # fmt: skip
    title = Text("Signal propagation ", style="bold").append("from input to output, and of the gradient back", "dim")
    return Group(title, Padding(table, (0, 0, 0, 2)), Text(f"  {depth(propagation)}"))


def depth(propagation: Propagation) -> str:
    """What the gain per layer means for the depth, in a sentence."""
    deepest, layers = propagation.trainable_depth, propagation.layers_with_weights
    if deepest is None:
        return f"{layers} layers with weights: too few to tell how deep the network could be."
    if deepest > 1000:
        return f"{layers} layers with weights; at this gain per layer more than 1000 could be trained."
    verdict = "that is deeper than they can be" if propagation.is_too_deep else "that is well within"
    return f"{layers} layers with weights; at this gain per layer about {deepest:.0f} can be trained: {verdict}."


def _shown(layers: tuple[LayerGain, ...]) -> list[LayerGain | None]:
    if len(layers) <= LAYERS_SHOWN:
        return list(layers)
    half = LAYERS_SHOWN // 2
    return [*layers[:half], None, *layers[-half:]]


def _decibels(gain: float | None) -> str:
    return "–" if gain is None else f"{gain:+.1f}"


def _bar(gain: float | None) -> Text:
    """A bar to the left of the middle for a loss, to the right for growth."""
    length = min(HALF_WIDTH, round(HALF_WIDTH * abs(gain or 0.0) / FULL_SCALE))
    left = "█" * length if gain is not None and gain < 0 else ""
    right = "░" * length if gain is not None and gain > 0 else ""
    return Text(left.rjust(HALF_WIDTH), style="red").append("│", "dim").append(right.ljust(HALF_WIDTH), "green")
