"""Slide 17: the papers behind the deck, each with what it claims and what of that was measured here."""

from desat.deck.papers import (
    adam,
    batch_normalization,
    clipping_at_a_cliff,
    normalized_initialization,
    rectifier_initialization,
    residual_learning,
    saturation_by_layer,
    scaled_attention,
    sigmoid_saturation,
)
from desat.deck.papers.experiment import FEWEST_OF_AN_INTERVAL, Outcome, Paper, seeds
from desat.deck.slide import Page, Settings, Slide

PAPERS: tuple[Paper, ...] = (
    sigmoid_saturation.PAPER,
    saturation_by_layer.PAPER,
    normalized_initialization.PAPER,
    rectifier_initialization.PAPER,
    batch_normalization.PAPER,
    adam.PAPER,
    residual_learning.PAPER,
    clipping_at_a_cliff.PAPER,
    scaled_attention.PAPER,
)


def build(settings: Settings) -> Page:
    outcomes: list[Outcome] = []
    for place, paper in enumerate(PAPERS):
        settings.progress(paper.name, place / len(PAPERS))
        outcomes.append(paper.measure(settings))
    return Page(
        words=(
            "What the papers behind this deck claim, measured again on handwritten digits with networks that train in "
            "seconds while desat watched. What does not show at this size is marked as not holding.",
            _how_sure(len(seeds(settings))),
        ),
        figures=tuple(outcome.figure for outcome in outcomes),
        statements=tuple(statement for outcome in outcomes for statement in outcome.statements),
        readings=tuple(dict.fromkeys(paper.reading for paper in PAPERS)),
    )


def _how_sure(number: int) -> str:
    if number < FEWEST_OF_AN_INTERVAL:
        return "In this fast deck each number is of one seed; the whole deck takes three, and gives intervals."
    return (
        f"Numbers are means over {number} seeds, with Student's 95 % interval in brackets; pictures show the first "
        "seed. A difference holds where its interval is on the right side of zero."
    )


SLIDE = Slide(
    17,
    "resources",
    "Resources: what the papers claim, measured",
    build,
    rules=("saturated-activation", "vanishing-gradient", "exploding-gradient", "collapsed-attention"),
    remedies=(
        "initialization=xavier",
        "initialization=he",
        "normalization=batch",
        "optimizer=adam",
        "residual=skip",
        "clipping=norm",
    ),
    uses_data=True,
    length=3,
)
