"""The live mirror of `desat run`: a process of its own that hands what comes into the record to TensorBoard or W&B.

Like the live panel it reads the record, ends when its standard input ends, which it does when the training ends in
whatever way, and costs the training nothing but its core. Before it leaves it writes the rest.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.export.exporter import Order, Sink, check_library
from desat.show.export.facts import Facts, facts_of
from desat.show.export.formats import FORMATS, find_format, mirrored
from desat.show.export.moments import Stream
from desat.show.export.tensorboard_events import event_files

REFRESH = 0.5
"""Seconds between two looks at the record."""

FAREWELL = 60.0
"""Seconds that a mirror may take after the training for what is left, such as an upload; then it is ended."""


@dataclass(frozen=True)
class Mirror:
    """format: one of desat.show.export.formats. target: a folder for TensorBoard, a project for W&B; or None."""

    format: str
    target: str | None = None

    def order(self, directory: Path, *, overwrite: bool = False) -> Order:
        """What is to be written where, of the run in `directory`."""
        place = directory / FORMATS[self.format].place
        if self.format == "wandb":
            return Order(place, self.target or "desat")
        if self.target is not None:
            return Order(Path(self.target), is_own=True, overwrite=overwrite)
        # What was mirrored into the run's own folder before belongs to a run that the user has let go.
        return Order(place, overwrite=True)


def parse_mirror(text: str) -> Mirror:
    """A mirror as it is written: `tensorboard`, `tensorboard=DIR`, `wandb`, `wandb=PROJECT`.

    Raises DesatError for another format, or one whose library is not installed.
    """
    name, equals, target = text.partition("=")
    if name not in mirrored():
        raise DesatError(f"--mirror {text}: expected one of {', '.join(mirrored())}")
    if equals and not target:
        raise DesatError(f"--mirror {text}: nothing stands behind the =")
    check_library(name, find_format(name).library)
    return Mirror(name, os.path.abspath(target) if target and name == "tensorboard" else target or None)


def check_mirrors(mirrors: Sequence[Mirror], *, overwrite: bool) -> None:
    """Raise DesatError where a folder of the user's has an export already, which is not to be replaced."""
    for mirror in mirrors:
        taken = mirror.format == "tensorboard" and mirror.target and event_files(Path(mirror.target))
        if taken and not overwrite:
            raise DesatError(f"{mirror.target} holds an export already: choose another folder, or pass --overwrite")


@contextlib.contextmanager
def live_mirrors(
    directory: Path, mirrors: Sequence[Mirror], *, overwrite: bool = False, quiet: bool = False
) -> Iterator[None]:
    """Mirror the run in `directory` while the context is open. What fails is told in a line and ends no training."""
    started = [(mirror, _start(directory, mirror, overwrite, quiet)) for mirror in mirrors]
    running = [(mirror, process) for mirror, process in started if process is not None]
    training = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == training:  # and not a process that the script has forked
            for _, process in running:
                _bid_farewell(process)
            deadline = time.monotonic() + FAREWELL
            for mirror, process in running:
                _wait(mirror, process, deadline)


def main(directory: Path, mirror: Mirror, *, overwrite: bool, quiet: bool) -> None:
    """Mirror until standard input says or has its end, or the training's process is gone; then write the rest."""
    training = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):  # these are for the training
        signal.signal(number, signal.SIG_IGN)
    try:
        with Record(directory) as record:
            beginning = Facts(record.name, record.information, None)
        opener = FORMATS[mirror.format].open
        assert opener is not None
        sink, stream = opener(mirror.order(directory, overwrite=overwrite), beginning), Stream()
        if not quiet:
            _say(f"{mirror.format}: {sink.told}")
        is_over = False
        while not is_over:
            is_over = bool(select.select([sys.stdin], [], [], REFRESH)[0]) or os.getppid() != training
            # The writer may be about to replace the file or to fold its log into it: the next look will do.
            with contextlib.nullcontext() if is_over else contextlib.suppress(DesatError):
                _hand_on(directory, stream, sink)
        with Record(directory) as record:
            facts = facts_of(record)
        sink.finish(facts)
    except Exception as error:  # whatever the library raises
        told = " ".join(str(error).split()) or type(error).__name__
        _say(f"the mirror to {mirror.format} ended, the training is not touched by it: {told}")


def _hand_on(directory: Path, stream: Stream, sink: Sink) -> None:
    is_new = False
    with Record(directory) as record:
        for _, moments in stream.read(record):
            for moment in moments:
                sink.write(moment)
                is_new = True
    if is_new:
        sink.flush()


def _start(directory: Path, mirror: Mirror, overwrite: bool, quiet: bool) -> subprocess.Popen[bytes] | None:
    # -P: no file of the user's folder stands for a module of the library's. A session of its own: Ctrl-C is for the
    # training, and neither is what the library starts to hear of it.
    module = [sys.executable, "-P", "-m", "desat.show.export.mirror"]
    words = [str(directory), mirror.format, mirror.target or "", str(int(overwrite)), str(int(quiet))]
    try:
        return subprocess.Popen(
            [*module, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        _say(f"no mirror to {mirror.format}: {error.strerror}")
        return None


def _bid_farewell(process: subprocess.Popen[bytes]) -> None:
    """By a word, since processes that the script has left behind may hold the pipe open, too."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(b".")
        process.stdin.close()


def _wait(mirror: Mirror, process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        code = process.wait(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        _say(f"the mirror to {mirror.format} was not done {FAREWELL:.0f} s after the training, and was ended")
        code = 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code:
        _say(f"the mirror to {mirror.format} failed (exit code {code}), the training is not touched by it")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"desat: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    folder, form, target, replaces, is_quiet = sys.argv[1:]
    main(Path(folder), Mirror(form, target or None), overwrite=replaces == "1", quiet=is_quiet == "1")
