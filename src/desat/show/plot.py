"""Figures for plotly.js as plain values of JSON: what all pictures share.

They are made without plotly's Python classes, which check every value and take ten times as long; the tests have those
classes check each kind of figure.
"""

import base64
import html
import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.show.words import place, plain

Figure = dict[str, Any]
"""`data` and `layout`, as plotly.js takes them, with NumPy's arrays in them; `as_json` writes it out."""

# Okabe and Ito's palette, which colour-blind eyes tell apart (Okabe and Ito 2008, "Color universal design").
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"
SKY = "#56B4E9"
RUN_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE)

LONGEST_NAME = 28
ROW_HEIGHT = 19
"""Pixels of one site in a heat map."""

SHORTEST_CUT = 8
"""Letters that names begin with alike and that are not worth a sign of omission."""

KEPT_BITS = np.uint32(0xFFFFF000)
"""Of a packed float's mantissa 11 bits are kept, 0.05 %: the rest no eye sees, and zeros take no room in a file."""

Axis = dict[str, Any]


def styled(data: list[dict[str, Any]], height: int, x: Axis, y: Axis, *, top: int = 12, **layout: Any) -> Figure:
    """A figure in the page's look. height, and what is left free at its top: in pixels. layout: more of it.

    There is no legend unless `showlegend` is given.
    """
    top = max(top, 36 if layout.get("showlegend") else 0)
    lines = {"automargin": True, "gridcolor": "rgba(138,143,152,0.2)"}
    look = {
        "height": height, "margin": {"l": 10, "r": 10, "t": top, "b": 10}, "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": GREY}, "dragmode": False,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "xaxis": lines | {"zerolinecolor": "rgba(138,143,152,0.5)"} | x, "yaxis": lines | {"zeroline": False} | y,
    }  # fmt: skip
    return {"data": data, "layout": look | layout}


def decades(values: NDArray[np.float64], most: int = 5) -> Axis:
    """A logarithmic axis for these values; of many decades at most so many have a tick."""
    values = values[np.isfinite(values) & (values > 0.0)]
    spanned = float(np.ptp(np.log10(values))) if len(values) else 0.0
    ticks = {"dtick": max(1, round(spanned / most))} if spanned > 1.5 else {"nticks": most}
    return {"type": "log", "exponentformat": "power"} | ticks


def title(text: str) -> dict[str, str]:
    """Of an axis or a colour bar."""
    return {"text": text}


def as_json(value: Any) -> str:
    """JSON of figures, of fragments of HTML, and of what holds them. Raises ValueError for a lone nan or infinity."""
    return json.dumps(value, default=packed, allow_nan=False, separators=(",", ":"))


def packed(values: NDArray[Any]) -> dict[str, Any]:
    """Numbers as plotly.js unpacks them: float32, rounded to 0.05 %, or the integers as they are.

    values: of one or two dimensions.
    """
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(values, np.float32)
        bits = narrow.view(np.uint32)
        rounded = np.where(np.isfinite(narrow), (bits + np.uint32(0x800)) & KEPT_BITS, bits)
        values = rounded.astype(np.uint32).view(np.float32)
        kind = "f4"
    else:
        values = np.ascontiguousarray(values, np.int32)
        kind = "i4"
    packed = {"dtype": kind, "bdata": base64.b64encode(values.tobytes()).decode()}
    return packed if values.ndim == 1 else packed | {"shape": ", ".join(map(str, values.shape))}


def escaped(text: object) -> str:
    """Text of a record as plotly shows it to the letter: it takes some HTML as markup."""
    return html.escape(plain(text))


def short(name: str) -> str:
    """A name, escaped; a long one loses its middle, the whole of it is in the hover text."""
    name = plain(name)
    if len(name) > LONGEST_NAME:
        half = (LONGEST_NAME - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return html.escape(name)


def labels(sites: Sequence[tuple[str, str]]) -> list[str]:
    """How sites are called beside a figure: without the modules that all of them lie in. sites: name and operation."""
    parts = [name.split(".")[:-1] for name, _ in sites]
    together = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)) if len(sites) > 1 else ()
    shared = sum(len(level[0]) + 1 for level in together)
    cut = shared if shared > SHORTEST_CUT else 0
    return [short(("…" if cut else "") + place(name[cut:], {name[cut:]: operation})) for name, operation in sites]
