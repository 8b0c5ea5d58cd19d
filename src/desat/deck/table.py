"""docs/deck.md: which slide shows what, which rule detects it, which remedy cures it, from the slides themselves."""

from collections.abc import Sequence

from desat.deck.slide import Slide

HEAD = """# The deck

    desat deck [N] [--fast] [-o DIR] [--data FOLDER] [--seed SEED] [--jobs N] [--force] [--overwrite] [--quiet]
    desat deck --serve [--port PORT]

makes slides on why networks stop learning, and what helps: DIR/index.html, one page that opens from disk and needs no
network, and a PNG of each picture. Nothing on them is drawn by hand: curves come from derivatives, numbers from
trainings that desat watched. What a slide says is a statement with its numbers, and the page says so where one does not
hold. It needs matplotlib and scikit-learn: `pip install 'desat[deck]'`.

`desat deck 7` makes slide 7 alone and keeps those that are there. A slide is taken from DIR/.cache where its code, the
settings and all versions are as they were; `--force` makes it again. Ctrl-C keeps what is done. A slide that lacks
something, such as a data set in `--data FOLDER`, is left out with a line on how to get it. Slides are made side by
side, as many as `--jobs`, by default as the cores, at most four.

In `--data FOLDER`, or a folder in it, may lie MNIST's IDX files, and reviews for slide 14: `NAME.pos` and `NAME.neg`
with a sentence in each line (rt-polarity), `NAME.tsv` with a text and a label in each line, or folders `pos` and `neg`
of text files (IMDb). Without reviews a small corpus is generated, and the slide says so.

`desat deck --serve` is the laboratory: a page on this machine with sliders for input scale, depth, alpha and learning
rate, which trains a small network anew at each change and shows what desat measures.

Exit code 0: all well, or slides lack what they need; 1: a slide failed; 2: a wrong call; 130: Ctrl-C. A claim that does
not hold, a paper's at this size for one, is a result: the page and a line say so.

Written by `python -m desat.deck.table`; do not edit. In the page, left and right arrow keys go from slide to slide.

| slide | code | detected by | cured by |
| --- | --- | --- | --- |
"""


def table_page(slides: Sequence[Slide]) -> str:
    """The whole page, as Markdown."""
    return HEAD + "".join(map(_row, slides))


def _row(slide: Slide) -> str:
    module = slide.build.__module__.removeprefix("desat.")
    rules = " ".join(f"[`{code}`](findings.md#{code})" for code in slide.rules)
    remedies = " ".join(f"`{remedy}`" for remedy in slide.remedies)
    source = f"[`{module}`](../src/desat/{module.replace('.', '/')}.py)"
    return f"| {slide.number} {slide.title} | {source} | {rules or '–'} | {remedies or '–'} |\n"


if __name__ == "__main__":
    from desat.deck.slides import SLIDES

    print(table_page(SLIDES), end="")
