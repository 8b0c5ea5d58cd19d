"""The deck as a folder: index.html, which opens from disk and asks nobody for anything, and a PNG of each picture."""

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from desat import __version__
from desat.cure.remedies import FAMILIES
from desat.cure.remedy import parse
from desat.deck.build import Deck, Outcome
from desat.deck.drawing import inlined
from desat.deck.files import write_file
from desat.deck.slide import Figure, Slide
from desat.diagnose.rule import Rule
from desat.diagnose.rules import RULES
from desat.show import words
from desat.show.page import templates, with_code

PAGE = "index.html"


@dataclass(frozen=True)
class Cure:
    """A remedy as the page tells of it."""

    text: str
    meaning: str


def write_deck(deck: Deck, directory: Path) -> Path:
    """Write the pictures, then the page. Returns the page's path. Raises DesatError where one cannot be written."""
    for outcome in deck.outcomes:
        for figure in outcome.page.figures if outcome.page else ():
            write_file(directory / picture_name(outcome.slide, figure), figure.png)
    write_file(directory / PAGE, render_deck(deck).encode())
    return directory / PAGE


def picture_name(slide: Slide, figure: Figure) -> str:
    return f"{slide.number:02d}-{slide.key}-{figure.name}.png"


def render_deck(deck: Deck) -> str:
    """The page as text."""
    script = asset("deck.js")
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            outcomes=deck.outcomes,
            settings=deck.settings,
            rules=detecting(deck.outcomes),
            cures=curing(deck.outcomes),
            version=__version__,
            style=Markup(asset("deck.css")),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def environment() -> jinja2.Environment:
    """The templates of the deck's pages, in which all values are escaped but Markup."""
    made = templates(asset)
    made.filters.update(with_code=with_code, number=words.number)
    made.globals.update(drawn=_drawn, picture_name=picture_name)
    return made


def asset(name: str) -> str:
    """The text of a template, a style sheet or a script of the deck's."""
    return (files("desat.deck") / "templates" / name).read_text(encoding="utf-8")


def detecting(outcomes: tuple[Outcome, ...]) -> list[Rule]:
    """The rules that the slides speak of, each once, in the order of the rules."""
    spoken_of = {code for outcome in outcomes for code in outcome.slide.rules}
    return [rule for rule in RULES if rule.code in spoken_of]


def curing(outcomes: tuple[Outcome, ...]) -> list[Cure]:
    """The remedies that the slides speak of, each once, in the order of the slides."""
    spoken_of = dict.fromkeys(text for outcome in outcomes for text in outcome.slide.remedies)
    return [Cure(text, remedy_meaning(text)) for text in spoken_of]


def remedy_meaning(text: str) -> str:
    """What a remedy does, in the words of its family. Raises DesatError where it does not exist."""
    remedy = parse(text)
    choices = next(family.choices for family in FAMILIES if family.name == remedy.family)
    return next(choice.meaning for choice in choices if choice.name == remedy.choice)


def _drawn(slide: Slide, figure: Figure) -> Markup:
    return Markup(inlined(figure, f"{slide.key}-{figure.name}"))
