"""Trials on a Ray cluster: each is an actor with one CPU, beside which the script runs as in a trial of this machine.

The actor holds the trial on a leash (desat.cure.leash), so that it ends with the actor. Its record and its output come
back when it has ended; what judges it while it runs, and afterwards, stays here. Scripts, data and desat are to be
found at the same paths on all nodes.
"""

import contextlib
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.cure.leash import END, ENDING, PLACE, plan_to_line
from desat.cure.trial import (
    PATIENCE,
    POLL,
    Ending,
    Outcome,
    Plan,
    Watch,
    last_lines,
    losses_and_notes,
)
from desat.errors import DesatError

REACHED_SECONDS = 10.0
"""A cluster whose address does not answer within so many is not there; Ray itself would try for minutes."""

PLACED_SECONDS = 60.0
"""A trial waits so long for a free CPU, or as long as it may run if that is more."""

REPLY_SECONDS = 60.0
"""An actor that does not answer within so many is lost; it answers in milliseconds."""

ENDED_SECONDS = sum(seconds for _, seconds in PATIENCE) + 10.0
"""What the end of a process group takes at most, and some more."""

WORKERS_OWN = ("PYTHONBREAKPOINT", "RAY_JOB_ID", "RAY_LD_PRELOAD_ON_WORKERS", "RAY_RAYLET_PID")
"""What Ray sets in the environment of its workers, and a script is not to see."""


class Node:
    """The actor: a trial, as it is on its node. All calls are short, except for `finish`."""

    def begin(self, plan: Plan, directory: str) -> str:
        """Start the trial in the working directory; why that is impossible, empty if it is not."""
        self._folder = Path(tempfile.mkdtemp(prefix="desat-trial-"))
        environment = {name: value for name, value in os.environ.items() if name not in WORKERS_OWN}
        command = [sys.executable, "-P", "-m", "desat.cure.leash", str(self._folder)]
        try:
            self._process = subprocess.Popen(
                command, cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._folder.rmdir()
            return f"{error.strerror}: {directory} on {socket.gethostname()}"
        self._tell(plan_to_line(plan))
        return ""

    def look(self) -> tuple[NDArray[np.float64], bool]:
        """The losses so far, and whether it has ended."""
        return losses_and_notes(self._folder / PLACE / "record")[0], self._has_ended()

    def finish(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """End the trial where it still runs: how it ended, and its files by their names in its place."""
        if not self._has_ended():
            self._tell(END)
        until = time.monotonic() + ENDED_SECONDS
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(0.02)
        ended = {"ending": "failed", "exit_code": -signal.SIGKILL, "seconds": 0.0}
        with contextlib.suppress(OSError):
            ended = json.loads((self._folder / ENDING).read_text())
        place = self._folder / PLACE
        files = [path for path in place.rglob("*") if path.is_file()]
        return ended, {str(path.relative_to(place)): path.read_bytes() for path in files}

    def release(self) -> None:
        """Let the leash go, and wait until the folder is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._is_gone(ENDED_SECONDS)

    def _has_ended(self) -> bool:
        return (self._folder / ENDING).exists() or self._is_gone()

    def _is_gone(self, within: float = 0.0) -> bool:
        """Whether the process at the leash's other end is gone: it says nothing, so there is only an end to be read."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], within)[0])

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen elsewhere
            self._process.stdin.write(line)
            self._process.stdin.flush()


class RayTrials:
    """An executor of trials on the cluster that this process is connected to. jobs: how many run at once."""

    def __init__(self, ray: Any, jobs: int | None) -> None:
        resources = ray.cluster_resources()
        cores = max(1, int(resources.get("CPU", 1)))
        self.jobs = min(jobs or cores, cores)
        gpus = int(resources.get("GPU", 0))
        # A trial has one GPU, or an equal share of one where there are more trials than GPUs.
        share = 1 / math.ceil(self.jobs / gpus) if gpus else 0
        self._ray = ray
        self._actor = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Node)
        self._has_begun = False

    def __call__(self, plan: Plan, place: Path, watch: Watch, stop: threading.Event) -> Outcome:
        """Run a trial on some node. Raises DesatError where not even the first one can begin."""
        place.mkdir(parents=True)
        seen = np.empty(0)

        def watch_and_keep(losses: NDArray[np.float64]) -> bool:
            nonlocal seen
            seen = losses
            return watch(losses)

        began = time.monotonic()
        actor = self._actor.remote()
        try:
            failure = self._begin(actor, plan, stop)
            if failure:
                if not self._has_begun and not stop.is_set():
                    raise DesatError(f"the Ray cluster runs no trial: {failure}")
                return _without_result(plan, place, "interrupted", None, np.empty(0), began, failure)
            self._has_begun = True
            return self._run(actor, plan, place, watch_and_keep, stop)
        except self._ray.exceptions.RayError as error:
            ending: Ending = "interrupted" if stop.is_set() else "failed"
            reason = f"its Ray worker was lost: {_phrase(error)}"
            return _without_result(plan, place, ending, -signal.SIGKILL, seen, began, reason)
        finally:
            self._ray.kill(actor)

    def _begin(self, actor: Any, plan: Plan, stop: threading.Event) -> str:
        """Have an actor placed and started; why it was not, empty if it was."""
        asked = actor.begin.remote(plan, os.getcwd())
        seconds = max(PLACED_SECONDS, plan.time_limit)
        until = time.monotonic() + seconds
        while not self._ray.wait([asked], timeout=POLL)[0]:
            if stop.is_set():
                return "interrupted"
            if time.monotonic() > until:
                return f"no CPU was free within {seconds:.0f} s"
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            return _phrase(error)

    def _run(self, actor: Any, plan: Plan, place: Path, watch: Watch, stop: threading.Event) -> Outcome:
        cut = self._supervise(actor, watch, stop)
        ended, files = self._ray.get(actor.finish.remote(), timeout=ENDED_SECONDS + REPLY_SECONDS)
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._ray.get(actor.release.remote(), timeout=ENDED_SECONDS + REPLY_SECONDS)
        directory, output = place / "record", place / "output.txt"
        losses, notes = losses_and_notes(directory)
        return Outcome(
            plan, directory, output, cut or ended["ending"], ended["exit_code"], losses, ended["seconds"],
            last_lines(output), notes,
        )  # fmt: skip

    def _supervise(self, actor: Any, watch: Watch, stop: threading.Event) -> Ending | None:
        """Wait for the end of a trial; how it was cut short, None if it ended by itself or at its limits."""
        while not stop.wait(POLL):
            losses, has_ended = self._ray.get(actor.look.remote(), timeout=REPLY_SECONDS)
            if has_ended:
                return None
            if watch(losses):
                return "pruned"
        return "interrupted"


@contextlib.contextmanager
def ray_trials(jobs: int | None = None) -> Iterator[RayTrials]:
    """Connect to a cluster as ray.init does: to RAY_ADDRESS, or one of this machine, which is started if there is none.

    jobs: trials at once, None for as many as the cluster has CPUs, and never more. Raises DesatError where Ray is not
    installed or the cluster is not reached.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield RayTrials(ray, jobs)
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except Exception as error:  # Ray raises what it likes: ConnectionError, RuntimeError, ImportError, ValueError
        where = f" at {address}" if address else ""
        raise DesatError(f"no Ray cluster{where}: {_phrase(error)}{_about_token(address)}") from None
    try:
        yield RayTrials(ray, jobs)
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Ray. Raises DesatError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise DesatError("--on ray runs trials with Ray: install it with `pip install 'desat[ray]'`") from None
    return ray


def _reach(address: str) -> None:
    """Raise DesatError where nothing answers at the address HOST:PORT; what is written otherwise is left to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise DesatError(f"no Ray cluster at {address} (RAY_ADDRESS): {error}") from None


def _about_token(address: str) -> str:
    """Ray sends its token to an address that is given only if it is told to, and does not say so when it is refused."""
    if address in ("", "auto") or os.environ.get("RAY_AUTH_MODE"):
        return ""
    return "; one with token authentication needs RAY_AUTH_MODE=token here, too"


def _without_result(
    plan: Plan, place: Path, ending: Ending, exit_code: int | None, losses: NDArray[np.float64], began: float, said: str
) -> Outcome:
    """Of a trial whose record has not come back."""
    seconds = time.monotonic() - began
    return Outcome(plan, place / "record", place / "output.txt", ending, exit_code, losses, seconds, (said,))


def _phrase(error: Exception) -> str:
    """The last line of an error that says something: Ray's have a traceback, or the actor's name, before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
