"""Slides made side by side, by processes that live on: each has to import torch, and takes one slide after another."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from desat.deck.slide import Settings, Slide

Make = Callable[[Slide, Settings], Any]
"""Makes one slide and returns what became of it; a function of a module, by whose name the workers find it."""

Tell = Callable[[Slide, str, float], None]


@dataclass
class _Worker:
    """A process, the end of its pipe that is here, and the slide that it makes."""

    process: SpawnProcess
    pipe: Connection
    slide: Slide | None = None


def made_side_by_side(
    slides: Sequence[Slide],
    settings: Settings,
    jobs: int,
    make: Make,
    begin: Callable[[Slide], None],
    tell: Tell,
    lost: Callable[[Slide], Any],
) -> Iterator[Any]:
    """What `make` returns for each slide, in the order in which they are done, by as many processes as `jobs`.

    begin, tell: are told how it goes on. lost: what became of a slide whose process has died. The processes end with
    the iterator, however it ends.
    """
    waiting = list(slides)
    workers = [_started(make, settings) for _ in range(min(jobs, len(waiting)))]
    try:
        while True:
            for worker in workers:
                if worker.slide is None and waiting and worker.process.is_alive():
                    worker.slide = waiting.pop(0)
                    begin(worker.slide)
                    with contextlib.suppress(BrokenPipeError):  # it has died: the pipe says so when it is read
                        worker.pipe.send(worker.slide)
            busy = {worker.pipe: worker for worker in workers if worker.slide is not None}
            if not busy:
                yield from map(lost, waiting)
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                assert worker.slide is not None
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    kind, content = "made", lost(worker.slide)
                if kind == "told":
                    tell(worker.slide, *content)
                else:
                    worker.slide = None
                    yield content
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
            worker.pipe.close()


def _started(make: Make, settings: Settings) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, make, replace(settings, progress=_nothing)), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _nothing(what: str, share: float) -> None:
    pass


def _work(pipe: Connection, make: Make, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; who began the work ends it
    told = replace(settings, progress=lambda what, share: pipe.send(("told", (what, share))))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(("made", make(pipe.recv(), told)))
