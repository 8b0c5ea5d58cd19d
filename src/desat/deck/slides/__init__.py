"""The slides, one module each, in the order of the deck.

How to add a slide:

1. Write `slides/<key>.py` with a function `build(settings: Settings) -> Page` and, at its end, `SLIDE = Slide(number,
   key, title, build, rules=(finding codes), remedies=("family=value", ...))`. `saturation.py` is the short example,
   `vanishing.py` the one that trains.
2. Compute everything. Curves: desat.nonlinearity. Formulas: desat.reference. Trainings: desat.deck.training (`digits`,
   `batches`, `stack`, `trained`), with what was measured read from the Record; remedies by desat.api.apply. Use
   `settings.fast` for a size that takes about three seconds on one slow core, and `settings.progress(what, share)` as
   you go on. The seed and one thread are set by desat.deck.build.build_page.
3. Draw with desat.deck.drawing.picture, one set of axes a picture where you can (several flow side by side, and stay
   legible on a telephone), in the colours of SERIES and INK, with `shade` for saturated intervals. Text that is not
   ours goes through `literal`. The alt text says what is to be seen, with its numbers.
4. Say it in two or three sentences of your own (`words`; backticks make code), and say each thing that must be true as
   a Statement: a claim, the sentence with the measured numbers, whether it holds, and the values.
5. What may be absent is asked for with `require(module, how to get it)`; for files, raise MissingNeedError with one
   line, and set `uses_data=True` where the page depends on `settings.data`.
6. Add SLIDE to SLIDES below, its test `tests/deck/test_<key>.py` (the fixture `fast_page` makes it; hold `values`
   against an oracle, not `holds` alone), and write docs/deck.md anew: `python -m desat.deck.table > docs/deck.md`.
"""

from desat.deck.slide import Slide
from desat.deck.slides import (
    activations,
    attention,
    batch_normalization,
    clipping,
    exploding,
    improved_network,
    initialization,
    keras_digits,
    mnist,
    optimizers,
    rectifiers,
    residual,
    resources,
    saturation,
    sentiment,
    techniques,
    vanishing,
)

SLIDES: tuple[Slide, ...] = (
    saturation.SLIDE,
    activations.SLIDE,
    vanishing.SLIDE,
    exploding.SLIDE,
    rectifiers.SLIDE,
    batch_normalization.SLIDE,
    initialization.SLIDE,
    clipping.SLIDE,
    optimizers.SLIDE,
    residual.SLIDE,
    attention.SLIDE,
    keras_digits.SLIDE,
    mnist.SLIDE,
    sentiment.SLIDE,
    techniques.SLIDE,
    improved_network.SLIDE,
    resources.SLIDE,
)
