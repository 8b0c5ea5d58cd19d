"""Runs scripts under desat, each in a process forked from this one, which has imported what all of them import.

A fork saves the two to three seconds of importing torch. It must behave as a fresh interpreter: so nothing but imports
has happened here, and no thread has been started, before the first fork.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORTED = (
    "torch", "torch._dynamo", "torch.utils.data", "numpy", "sklearn.datasets", "sklearn.model_selection",
    "desat.cli", "desat.watch.session",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A running script. log: the file that its output goes to; began: on the monotonic clock."""

    name: str
    process: int
    log: Path
    began: float


@dataclass(frozen=True)
class Ending:
    """How a job ended. exit_code: negative for the signal that ended it."""

    exit_code: int
    seconds: float
    cpu_seconds: float


def warm_up() -> None:
    """Import what the scripts import, with one thread. Raises RuntimeError where that started another."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    tasks = Path("/proc/self/task")
    if tasks.exists() and len(list(tasks.iterdir())) > 1:
        raise RuntimeError(f"{len(list(tasks.iterdir()))} threads run before the first fork; one was expected")
    gc.collect()
    gc.freeze()


def start(name: str, words: Sequence[str], folder: Path, log: Path, *, fresh: bool = False) -> Job:
    """Run `desat WORDS` in `folder`. fresh: in an interpreter of its own, as a user does, and not in a fork."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _run(words, folder, log, fresh)
    return Job(name, process, log, time.monotonic())


def poll(job: Job) -> Ending | None:
    """How a job ended; None while it runs."""
    process, status, usage = os.wait4(job.process, os.WNOHANG)
    if process == 0:
        return None
    seconds = time.monotonic() - job.began
    return Ending(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime)


def kill(job: Job) -> Ending:
    """End a job, and what it started, at once."""
    for group in (True, False):  # a child that has only just been forked has no group of its own yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process, signal.SIGKILL) if group else os.kill(job.process, signal.SIGKILL)
    while (ending := poll(job)) is None:
        time.sleep(0.005)
    return ending


def _run(words: Sequence[str], folder: Path, log: Path, fresh: bool) -> None:
    """The child's whole life; it never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "desat", *words])
        code = _desat(words)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _desat(words: Sequence[str]) -> int:
    from desat.cli import main

    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the old ones may hold what the parent wrote
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["desat", *words]
    try:
        main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
