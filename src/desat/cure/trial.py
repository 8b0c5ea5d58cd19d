"""One trial: the user's script in a process of its own, for some steps, with some remedies and a seed.

The process leads a session and a process group of its own. However a trial ends, the whole group is ended with it, so
that neither the script nor what it has started is left behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError
from desat.record.reader import Record
from desat.watch.script import Script

Ending = Literal["finished", "stopped", "pruned", "failed", "timed out", "no steps", "interrupted"]
"""finished: the script ended by itself; stopped: at its limit of steps; pruned: others did better; failed: with an exit
code; no steps: it ended well, and trained nothing; interrupted: by the user."""

SAMPLING_BUDGET = 0.05
"""Share of the time for watching: a trial is short, and is to be diagnosed from its samples."""

POLL = 0.1
"""Seconds between two looks at a trial."""

PATIENCE = ((signal.SIGINT, 2.0), (signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0))
"""How a process group is ended: each signal, and the seconds that it is given."""

LAST_LINES = 5
"""Lines of a failed script's output that are kept: the end of a traceback."""

_LAST_BYTES = 8192


@dataclass(frozen=True)
class Plan:
    """What a trial is to run. time_limit: seconds. one_thread: several trials share the cores."""

    script: Script
    remedies: tuple[str, ...]
    seed: int
    steps: int
    time_limit: float
    one_thread: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    directory: its record; output: the file of what it printed. losses: by step, nan where there was none or it was nan.
    said: the last lines of its output. notes: what the record says of the run, with the changes that were `applied` and
    the `edits` that write them into the script.
    """

    plan: Plan
    directory: Path
    output: Path
    ending: Ending
    exit_code: int | None
    losses: NDArray[np.float64]
    seconds: float
    said: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def applied(self) -> tuple[str, ...]:
        return tuple(map(str, self.notes.get("applied") or ()))


Watch = Callable[[NDArray[np.float64]], bool]
"""Is shown the losses so far, again and again; True ends the trial."""


class Executor(Protocol):
    """Runs a plan to its end, in whatever place; a set `stop` ends it before that."""

    def __call__(self, plan: Plan, place: Path, watch: Watch, stop: threading.Event) -> Outcome: ...


def run_here(plan: Plan, place: Path, watch: Watch, stop: threading.Event) -> Outcome:
    """Run a trial as a process of this machine; its record goes to `place`/record, its output to `place`/output.txt.

    Never raises for what the script does. No process is left, whatever is raised in here.
    """
    place.mkdir(parents=True)
    directory, output = place / "record", place / "output.txt"
    began = time.monotonic()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            _command(plan, directory), stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True, env=_environment(plan),
        )  # fmt: skip
    cut: Ending | None = None
    try:
        cut = _supervise(process, plan, directory, watch, stop)
    finally:
        end_group(process)
    losses, notes = losses_and_notes(directory)
    ending = cut or _ending(process.returncode, len(losses), plan)
    return Outcome(
        plan, directory, output, ending, process.returncode, losses, time.monotonic() - began, last_lines(output), notes
    )


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and all that is in the group: by Ctrl-C first, by force at last."""
    for number, seconds in PATIENCE:
        if not _is_alive(process):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        until = time.monotonic() + seconds
        while _is_alive(process) and time.monotonic() < until:
            time.sleep(0.02)


def last_lines(output: Path, number: int = LAST_LINES) -> tuple[str, ...]:
    """The last lines of a file that say something."""
    try:
        with output.open("rb") as file:
            file.seek(max(output.stat().st_size - _LAST_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple([line.rstrip() for line in text.splitlines() if line.strip()][-number:])


def _command(plan: Plan, directory: Path) -> list[str]:
    options = [
        "--quiet", "--run-dir", str(directory), "--budget", str(SAMPLING_BUDGET), "--stop-after", str(plan.steps),
        "--seed", str(plan.seed),
    ]  # fmt: skip
    for remedy in plan.remedies:
        options += ["--apply", remedy]
    module = ["-m"] if plan.script.is_module else []
    return [
        sys.executable, "-m", "desat", "run", *options, *module, plan.script.target, *plan.script.arguments
    ]  # fmt: skip


def _environment(plan: Plan) -> dict[str, str]:
    """As inherited. Sets and dictionaries of text keep one order in all trials; what is printed is there at once."""
    settings = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": "1"} if plan.one_thread else {})
    return settings | os.environ


def _supervise(
    process: subprocess.Popen[Any], plan: Plan, directory: Path, watch: Watch, stop: threading.Event
) -> Ending | None:
    """Wait for the end of a process; how it was cut short, None if it ended by itself."""
    limit = time.monotonic() + plan.time_limit
    while process.poll() is None:
        if stop.wait(POLL):
            return "interrupted"
        if time.monotonic() > limit:
            return "timed out"
        if watch(losses_and_notes(directory)[0]):
            return "pruned"
    return None


def _is_alive(process: subprocess.Popen[Any]) -> bool:
    """Whether a process or another one of its group still runs."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def losses_and_notes(directory: Path) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Losses and notes as they are now; none where the record is not there yet.

    It is opened each time: one that is opened before its write-ahead log is there does not see what is written later.
    """
    try:
        with Record(directory) as record:
            return _losses(record), record.information
    except DesatError:
        return np.empty(0), {}


def _losses(record: Record) -> NDArray[np.float64]:
    return record.steps()["loss"]


def _ending(exit_code: int, steps: int, plan: Plan) -> Ending:
    if exit_code:
        return "failed"
    if not steps:
        return "no steps"
    return "stopped" if steps >= plan.steps else "finished"


def why_failed(outcome: Outcome) -> str:
    """In a phrase, why a trial has no result."""
    return _REASONS[outcome.ending](outcome)


def _exited(outcome: Outcome) -> str:
    code = outcome.exit_code or 0
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
    return f"it {how} {_when(outcome)}{_last_words(outcome.said)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _when(outcome: Outcome) -> str:
    return f"after {outcome.steps} steps" if outcome.steps else "before its first step"


def _last_words(said: Sequence[str]) -> str:
    if not said:
        return ", without a word"
    if said[-1].startswith("EOFError"):
        return "; it asks for input, and a trial has no keyboard: give its answers as arguments"
    return f": {said[-1]}"


_REASONS: dict[Ending, Callable[[Outcome], str]] = {
    "finished": lambda outcome: "it ended by itself",
    "stopped": lambda outcome: "it was stopped at its limit of steps",
    "pruned": lambda outcome: f"it was stopped {_when(outcome)}: others did better",
    "failed": _exited,
    "timed out": lambda outcome: f"it was stopped after {outcome.plan.time_limit:.0f} s, {_when(outcome)}",
    "no steps": lambda outcome: "it ended without a training step of a torch.nn.Module",
    "interrupted": lambda outcome: "it was interrupted",
}
