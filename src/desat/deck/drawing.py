"""Pictures by matplotlib: one style, without pyplot's global state, as an SVG for the page and a PNG for anywhere.

Colours are roles. In the inlined SVG the ink becomes `currentColor` and each colour of the palette a variable of the
page's style sheet, so that one picture reads well on a light and on a dark page.
"""

import io
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from desat.deck.slide import Figure, require
from desat.show.plot import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK = "#010203"
"""Text, axes and what is drawn in the page's own colour; no other colour of a picture may be this one."""

PALETTE = {
    "blue": BLUE, "orange": ORANGE, "green": GREEN, "vermilion": VERMILION, "purple": PURPLE, "grey": GREY,
}  # fmt: skip
"""Names of the page's colour variables, --blue and so on, by the colour as it is in the PNG."""

SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
"""Colours of several curves in one picture, in this order."""

SIZE = (6.0, 3.7)
"""Inches of one picture: its text stays legible on a telephone. Several pictures flow side by side on wide screens."""

DOTS_PER_INCH = 160
FONT_SIZE = 10.5

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "desat",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE - 0.5,
    "axes.unicode_minus": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
}

_WRAPPING = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.S)
_FAMILIES = re.compile(r"'DejaVu Sans'[^\";]*")
_IDENTIFIER = re.compile(r'(\bid="|href="#|url\(#)')


def picture(
    name: str,
    draw: "Callable[[Canvas], None]",
    *,
    alt: str,
    caption: str = "",
    size: tuple[float, float] = SIZE,
) -> Figure:
    """A figure: `draw` is handed an empty matplotlib Figure with desat's style in force, and draws on it.

    size: inches. Raises MissingNeedError where matplotlib is not installed.
    """
    require("matplotlib", "pip install 'desat[deck]'")
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    from desat.deck.powers import write_powers

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own matplotlibrc is not the deck's style
        matplotlib.rcParams.update({**STYLE, "axes.prop_cycle": cycler(color=SERIES)})
        canvas = Canvas(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas)
        write_powers(canvas)
        _lay_out(canvas)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        canvas.savefig(png, format="png", dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return Figure(name, alt, caption, _page_colours(svg.getvalue()), png.getvalue())


def _lay_out(canvas: "Canvas") -> None:
    """Find the places of all axes once for both files; each of them would do it anew, and draw twice for that."""
    engine = canvas.get_layout_engine()
    if engine is not None:
        engine.execute(canvas)
    canvas.set_layout_engine(None)  # "none" would leave a placeholder, for which savefig draws twice as well


def inlined(figure: Figure, prefix: str) -> str:
    """The SVG as it can stand in a page beside others: every identifier in it begins with `prefix`."""
    return _IDENTIFIER.sub(rf"\g<1>{prefix}-", figure.svg)


def literal(text: str) -> str:
    """Text that is not ours, to the letter: matplotlib takes what stands between dollars for a formula."""
    return text.replace("$", r"\$")


def shade(axes: "Axes", intervals: Iterable[tuple[float, float]], label: str = "saturated") -> None:
    """Mark intervals of the horizontal axis, as far as they are in view; infinite ends reach its edge."""
    left, right = axes.get_xlim()
    for low, high in intervals:
        low, high = max(low, left), min(high, right)
        if low < high:
            axes.axvspan(low, high, color=VERMILION, alpha=0.16, linewidth=0, label=label)
            label = "_again"  # a leading underscore keeps it out of the legend
    axes.set_xlim(left, right)


def _page_colours(svg: str) -> str:
    """The svg element alone, in the page's colours and font; its style sheet would reach the whole page."""
    svg = _WRAPPING.sub("", svg).strip()
    svg = re.sub(INK, "currentColor", svg, flags=re.I)
    for name, colour in PALETTE.items():
        svg = re.sub(colour, f"var(--{name})", svg, flags=re.I)
    svg = _FAMILIES.sub("system-ui, sans-serif", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)  # the page says how large it is
    return f'{opening} style="stroke-linejoin: round; stroke-linecap: butt" aria-hidden="true">{rest}'
