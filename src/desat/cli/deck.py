"""`desat deck`: the slides, measured, as a page and pictures."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from desat.errors import DesatError

if TYPE_CHECKING:
    from desat.deck.build import Deck, Outcome
    from desat.deck.slide import Slide

PORT = 8123

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended."""


def deck(
    number: Annotated[
        int | None, typer.Argument(metavar="[N]", help="The number of one slide; all without it.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the page and the pictures.")
    ] = Path("desat-deck"),
    fast: Annotated[bool, typer.Option("--fast", help="Smaller networks, fewer steps: all in under a minute.")] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of data sets of your own.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is drawn at random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Make again what is there already.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to a folder that holds something else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Slides at a time.", show_default="the cores, at most 4")] = min(
        os.cpu_count() or 1, 4
    ),
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Instead of the deck a page with sliders, measured anew; Ctrl-C ends it."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of --serve, on this machine alone; 0 for any that is free.")
    ] = PORT,
) -> None:
    """Make the slides on saturation: one self-contained page and a PNG of each picture, all of it computed.

    A slide that is there already, with the same code, settings and versions, is taken as it is. Ctrl-C keeps what is
    done. A claim that does not hold is a result, and told. Exit code 0: all well, or a slide lacks what it needs; 1: a
    slide failed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DesatError("the deck is drawn with matplotlib: install it with `pip install 'desat[deck]'`")
    if data is not None and not data.is_dir():
        raise DesatError(f"--data {data}: expected a folder")
    if serve:
        _serve(seed, port)
        return
    from desat.deck.build import build_deck
    from desat.deck.files import prepare
    from desat.deck.page import write_deck
    from desat.deck.slide import Settings
    from desat.deck.slides import SLIDES

    numbers = [slide.number for slide in SLIDES]
    if number is not None and number not in numbers:
        raise DesatError(f"no slide {number}: there are {', '.join(map(str, numbers))}")
    wanted = numbers if number is None else [number]
    cache = prepare(output, overwrite=overwrite)
    settings = Settings(fast, seed, data)
    with _Progress(Console(stderr=True), len(wanted), wanted=not quiet) as progress:
        made = build_deck(SLIDES, settings, cache, progress, wanted=wanted, force=force, jobs=jobs)
    page = write_deck(made, output)
    failed = _tell(made, wanted)
    typer.echo(page)
    raise typer.Exit(INTERRUPTED if made.interrupted else 1 if failed else 0)


def _serve(seed: int, port: int) -> None:
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise DesatError("--serve needs Starlette and uvicorn: install them with `pip install 'desat[deck]'`")
    from desat.deck.server import laboratory
    from desat.deck.slide import Settings
    from desat.show.guard import listening, serve

    with listening(port) as place:
        serve(laboratory(Settings(fast=True, seed=seed)), place, lambda address: typer.echo(address))


def _tell(made: "Deck", wanted: list[int]) -> bool:
    """Say in a line each what is not in the page, and which claim does not hold; whether a slide failed."""
    failed = False
    for outcome in made.outcomes:
        if outcome.slide.number not in wanted:
            continue
        if outcome.page is None:
            print(f"desat: slide {outcome.slide.number}, {outcome.slide.title}: {outcome.reason}", file=sys.stderr)
            failed |= outcome.state == "failed"
            continue
        for statement in outcome.page.statements:
            if not statement.holds:
                print(f"desat: slide {outcome.slide.number}: does not hold: {statement.sentence}", file=sys.stderr)
    return failed


class _Progress:
    """A bar on a terminal, a line a slide elsewhere; see desat.deck.build.Watcher."""

    def __init__(self, console: Console, slides: int, *, wanted: bool) -> None:
        self._console = console
        self._is_wanted = wanted
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f} of {task.total}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not wanted or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=slides)
        self._done = 0
        self._begun: dict[int, float] = {}
        self._shares: dict[int, float] = {}

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def begin(self, slide: "Slide") -> None:
        self._begun[slide.number] = time.monotonic()
        self._bar.update(self._task, description=escape(f"{slide.number}  {slide.title}"))

    def tell(self, slide: "Slide", what: str, share: float) -> None:
        self._shares[slide.number] = min(max(share, 0.0), 0.99)
        self._bar.update(
            self._task,
            description=escape(f"{slide.number}  {slide.title}: {what}"),
            completed=self._done + sum(self._shares.values()),
        )

    def end(self, outcome: "Outcome") -> None:
        self._done += 1
        self._shares.pop(outcome.slide.number, None)
        self._bar.update(self._task, completed=self._done + sum(self._shares.values()))
        if self._is_wanted and outcome.page is not None:
            seconds = time.monotonic() - self._begun[outcome.slide.number]
            took = "as it was" if outcome.state == "cached" else f"{seconds:.1f} s"
            line = f"{outcome.slide.number:2d}  {outcome.slide.title}  ({took})"
            self._console.print(line, highlight=False, markup=False)
