"""What papers on saturation claim, measured again: one module an experiment, assembled by desat.deck.slides.resources.

Each module ends with `PAPER`, see desat.deck.papers.experiment. The networks are as small as the deck's time allows,
and learning rates are ours where a paper gives none; a claim that does not show at this size is said not to.
"""
