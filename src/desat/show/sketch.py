"""The loss as a small drawing, without a library: coordinates for an inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from desat.diagnose.finding import SEVERITIES, Finding, Severity
from desat.show.loss_curve import LOG_SPREAD
from desat.show.words import count, number


@dataclass(frozen=True)
class Frame:
    """The drawing and the frame of the curve in it, in units of the SVG's view box."""

    width: int = 720
    height: int = 168
    left: int = 62
    right: int = 712
    top: int = 24
    bottom: int = 144


FRAME = Frame()

MOST_POINTS = 300
"""Points of the curve: about two units for each. Of a longer series the lowest and highest of each stretch are kept."""

MOST_MARKS = 16
"""Steps at which findings are marked, the first ones; beyond that the marks hide the curve."""

LOST_SHARE = 0.05
"""Share of the steps that have no finite loss, in a row, from which on the curve is broken there."""


@dataclass(frozen=True)
class Mark:
    """Findings that begin at one step: where, the gravest severity, and what they are."""

    x: float
    severity: Severity
    words: str


@dataclass(frozen=True)
class Band:
    """Steps in a row without a finite loss."""

    x: float
    width: float
    words: str


@dataclass(frozen=True)
class Sketch:
    """lines: `x,y x,y` of each unbroken stretch. name: what is seen, in words. ticks: (x or y, label) of the ends."""

    name: str
    lines: tuple[str, ...]
    points: tuple[tuple[float, float], ...]
    bands: tuple[Band, ...]
    marks: tuple[Mark, ...]
    losses: tuple[tuple[float, str], ...]
    steps: tuple[tuple[float, str], ...]
    is_logarithmic: bool


def sketch(steps: NDArray[np.float64], losses: NDArray[np.float64], findings: Sequence[Finding]) -> Sketch | None:
    """Loss over steps with the first step of each finding marked; None where no loss is finite.

    steps, losses: of one length, by step; a loss may be nan or infinite, and nan is also one that was not recorded.
    """
    finite = np.isfinite(losses)
    if not finite.any():
        return None
    first, last = float(steps[0]), float(steps[-1])
    across = _scale(first, last, FRAME.left, FRAME.right)
    low, high = float(losses[finite].min()), float(losses[finite].max())
    is_logarithmic = low > 0.0 and high / LOG_SPREAD > low
    bent = np.log10 if is_logarithmic else np.asarray
    up = _scale(float(bent(low)), float(bent(high)), FRAME.bottom, FRAME.top)
    lost = _lost(steps, finite)
    kept = _kept(losses)
    stretches = _stretches(steps[kept], lost)
    drawn = [(across(steps[kept][part]), up(bent(losses[kept][part]))) for part in stretches]
    marks = _marks(findings, first, last, across)
    return Sketch(
        name=_name(first, last, losses, marks),
        lines=tuple(_line(xs, ys) for xs, ys in drawn if len(xs) > 1),
        points=tuple((round(float(xs[0]), 1), round(float(ys[0]), 1)) for xs, ys in drawn if len(xs) == 1),
        bands=tuple(_band(begin, end, across) for begin, end in lost),
        marks=marks,
        losses=_ends(float(up(bent(low))), number(low), float(up(bent(high))), number(high)),
        steps=_ends(float(across(first)), f"{first:,.0f}", float(across(last)), f"{last:,.0f}"),
        is_logarithmic=is_logarithmic,
    )  # fmt: skip


Scale = Callable[[ArrayLike], NDArray[np.float64]]
"""From steps or losses to coordinates."""


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """A linear map from [low, high] to [start, end]; to the middle where there is one value only."""
    half = high / 2 - low / 2  # halved, so that the span of the largest floats is finite

    def scaled(values: ArrayLike) -> NDArray[np.float64]:
        share = (np.asarray(values, np.float64) / 2 - low / 2) / half if half > 0.0 else np.full(np.shape(values), 0.5)
        return start + (end - start) * share

    return scaled


def _kept(losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """The indices of the finite losses; of too many, the lowest and the highest of each stretch, in order."""
    known = np.flatnonzero(np.isfinite(losses))
    if len(known) <= MOST_POINTS:
        return known
    kept = set()
    for part in np.array_split(known, MOST_POINTS // 2):
        kept |= {part[losses[part].argmin()], part[losses[part].argmax()]}
    return np.array(sorted(kept))


def _lost(steps: NDArray[np.float64], finite: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Long stretches without a finite loss: the first and last step of each."""
    padded = np.concatenate([[True], finite, [True]])
    begins = np.flatnonzero(padded[:-1] & ~padded[1:])
    ends = np.flatnonzero(~padded[:-1] & padded[1:]) - 1
    least = max(1.0, LOST_SHARE * len(steps))
    return [(float(steps[a]), float(steps[b])) for a, b in zip(begins, ends, strict=True) if b - a + 1 >= least]


def _stretches(steps: NDArray[np.float64], lost: Sequence[tuple[float, float]]) -> list[NDArray[np.int64]]:
    """Indices of the points between the gaps."""
    edges = np.searchsorted(steps, [begin for begin, _ in lost])
    return [part for part in np.split(np.arange(len(steps)), np.unique(edges)) if len(part)]


def _line(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _band(begin: float, end: float, across: Scale) -> Band:
    left, right = float(across(begin)), float(across(end))
    words = f"no finite loss from step {begin:,.0f} to step {end:,.0f}"
    return Band(round(left, 1), round(max(right - left, 1.0), 1), words)


def _marks(findings: Sequence[Finding], first: float, last: float, across: Scale) -> tuple[Mark, ...]:
    found: dict[int, list[Finding]] = {}
    for finding in findings:
        if first <= finding.first_step <= last:
            found.setdefault(finding.first_step, []).append(finding)
    marks = []
    for step in sorted(found)[:MOST_MARKS]:
        codes = ", ".join(dict.fromkeys(finding.code for finding in found[step]))
        gravest = SEVERITIES[min(SEVERITIES.index(finding.severity) for finding in found[step])]
        marks.append(Mark(round(float(across(step)), 1), gravest, f"since step {step:,}: {codes}"))
    return tuple(marks)


def _name(first: float, last: float, losses: NDArray[np.float64], marks: Sequence[Mark]) -> str:
    """What the drawing shows, for who cannot see it."""
    known = losses[np.isfinite(losses)]
    start, low, end = (number(float(loss)) for loss in (known[0], known.min(), known[-1]))
    told = f"Loss over the steps {first:,.0f} to {last:,.0f}: from {start} to {end}, at the lowest {low}"
    without = len(losses) - len(known)
    if without:
        told += f"; {count(without, 'step')} without a finite loss"
    return told + (f"; findings marked at {count(len(marks), 'step')}" if marks else "")


def _ends(low: float, low_label: str, high: float, high_label: str) -> tuple[tuple[float, str], ...]:
    ends = ((round(low, 1), low_label), (round(high, 1), high_label))
    return ends[:1] if low_label == high_label else ends
