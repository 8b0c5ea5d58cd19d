"""Labels of logarithmic axes in plain characters, 10⁻³.

matplotlib's own are formulas: their parser takes longer than all else in a small picture.
"""

import re

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatterSciNotation

_FORMULA = re.compile(r"\$\\mathdefault\{(.*)\}\$")
_POWER = re.compile(r"\^\{([^}]*)\}")
_RAISED = str.maketrans("0123456789-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")


class PlainPowers(LogFormatterSciNotation):
    """matplotlib's choice of which ticks of a logarithmic axis have a label, and another way to write it."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain(super().__call__(x, pos))


def plain(formula: str) -> str:
    """A power of ten, or a multiple of one, as matplotlib's formula, in plain characters; other text as it is."""
    match = _FORMULA.fullmatch(formula)
    if match is None:
        return formula
    written = match[1].replace(r"\times", "×")
    return _POWER.sub(lambda power: power[1].translate(_RAISED), written)


def write_powers(canvas: Canvas) -> None:
    """Give the logarithmic axes of a picture such labels where they have matplotlib's own."""
    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() != "log":
                continue
            if type(axis.get_major_formatter()) is LogFormatterSciNotation:
                axis.set_major_formatter(PlainPowers())
            if type(axis.get_minor_formatter()) is LogFormatterSciNotation:
                axis.set_minor_formatter(PlainPowers())
