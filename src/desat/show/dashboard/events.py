"""Server-sent events: what changes on the disk reaches the page within a second, while the page is there.

Three kinds of them. `look` is cheap and tells how far a run is, as often as that changes. `refresh` has the page ask
anew for what it shows, `loss` for the loss alone; that costs something, so that they come at the pace that is allowed.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from desat.show import words
from desat.show.dashboard.diagnoses import Diagnoses
from desat.show.dashboard.folder import Folder, Look, NotThereError
from desat.show.dashboard.pages import STATES
from desat.show.dashboard.workers import Pace, Workers

EVERY = 0.5
"""Seconds between two looks."""

SHARE, LOSS_SHARE, LIST_SHARE = 0.07, 0.02, 0.01
"""Of one core, for what pages ask for anew while runs train: all of a run, its loss alone, the list of runs."""

ALIVE = 15.0
"""Seconds of silence after which a comment is sent: a page that has gone is only noticed by sending."""


def event(kind: str, data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()


def described(look: Look) -> dict[str, Any]:
    """A look, as pages take it."""
    finite = look.loss is not None and math.isfinite(look.loss)
    return {
        "name": words.plain(look.name),
        "state": words.plain(look.state),
        "sign": STATES.get(look.state, "?"),
        "live": look.is_live,
        "step": look.step,
        "sampled": look.sampled,
        "loss": words.number(look.loss) if finite else str(look.loss if look.loss is not None else "–"),
        "problem": look.problem and words.plain(look.problem),
    }


@dataclass(frozen=True)
class Paces:
    """How often everything that is shown, the loss, and the list of runs may be made anew: none waits for another."""

    everything: Pace = field(default_factory=lambda: Pace(SHARE))
    loss: Pace = field(default_factory=lambda: Pace(LOSS_SHARE))
    listed: Pace = field(default_factory=lambda: Pace(LIST_SHARE))


async def of_run(
    name: str, folder: Folder, diagnoses: Diagnoses, paces: Paces, workers: Workers
) -> AsyncIterator[bytes]:
    """Of one run; each tells the newest run of the folder as well."""
    yield b"retry: 1000\n\n"
    known: dict[str, Any] = {}
    shown: tuple[Any, ...] | None = None
    drawn, silent = -1, 0.0
    while True:
        try:
            look = await workers.run(folder.look, name)
            newest = await workers.run(folder.newest)
        except NotThereError as error:
            yield event("gone", {"problem": folder.told(error)})
            return
        now = described(look) | {"newest": newest and words.plain(newest)}
        silent += EVERY
        if now != known:
            yield event("look", now)
            known, silent = now, 0.0
        version = (*look.version, look.started)
        if (version != shown or diagnoses.is_due(look)) and (paces.everything.is_ready() or not look.is_live):
            yield event("refresh", now)
            paces.everything.begin()
            shown, drawn, silent = version, look.step, 0.0
        elif look.step != drawn and paces.loss.is_ready():
            yield event("loss", now)
            paces.loss.begin()
            drawn, silent = look.step, 0.0
        if silent >= ALIVE:
            yield b": here\n\n"
            silent = 0.0
        await asyncio.sleep(EVERY)


async def of_folder(
    describe: Callable[[], dict[str, Any]], idle: Callable[[], None], pace: Pace, workers: Workers
) -> AsyncIterator[bytes]:
    """Of what `describe` tells of a folder: one whenever that has changed, at the pace that is allowed.

    describe: has `live`, whether a run trains; where none does, nobody is disturbed, and the pace does not hold.
    idle: what is done in between.
    """
    yield b"retry: 1000\n\n"
    known: dict[str, Any] | None = None
    silent = 0.0
    while True:
        now = await workers.run(describe)
        silent += EVERY
        if now != known and (known is None or pace.is_ready() or not now["live"]):
            yield event("refresh", now)
            known, silent = now, 0.0
            pace.begin()
        if silent >= ALIVE:
            yield b": here\n\n"
            silent = 0.0
        await workers.run(idle)
        await asyncio.sleep(EVERY)
