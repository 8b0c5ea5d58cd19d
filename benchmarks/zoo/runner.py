"""Writes the scripts, runs them under desat, several at a time, and keeps what became of each."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.zoo import forks
from benchmarks.zoo.cases import Case
from benchmarks.zoo.render import render
from benchmarks.zoo.results import RESULTS, Result, is_stale, read_results, write_result
from benchmarks.zoo.versions import commit, digest, measured_by

TIME_LIMIT = 120.0
"""Seconds that a script may take."""
WAIT = 0.02
"""Seconds between two looks at the running scripts."""

VALIDATION = re.compile(r"^validation (?:accuracy|score): (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Zoo:
    """Where everything lies.

    folder: of scripts/, runs/, output/ and the results. data: the folder of real data. jobs: scripts at a time.
    curvature: whether desat measures the loss's sharpness too. fresh: each script in an interpreter of its own.
    """

    folder: Path
    data: Path
    jobs: int = 1
    time_limit: float = TIME_LIMIT
    curvature: bool = True
    fresh: bool = False

    @property
    def results_path(self) -> Path:
        return self.folder / RESULTS

    def results(self) -> dict[str, Result]:
        return read_results(self.results_path)

    def script_path(self, case: Case) -> Path:
        return self.folder / "scripts" / f"{case.name}.py"


@dataclass(frozen=True)
class Plan:
    """What is to be done. stale: those done with another script or another desat, which are kept unless asked for."""

    due: tuple[Case, ...]
    done: tuple[Case, ...]
    stale: tuple[Case, ...]
    skipped: dict[str, int]
    """Cases that cannot run here, by the reason."""


def plan(zoo: Zoo, cases: Iterable[Case], *, again: bool = False) -> Plan:
    """Sort the cases by what is to be done with them; again: those that are stale are due."""
    results = zoo.results()
    due, done, stale = [], [], []
    skipped: dict[str, int] = {}
    for case in cases:
        result = results.get(case.name)
        if result is None or not (zoo.folder / result.run).exists():
            place = due
        elif is_stale(result, digest(render(case.recipe)), measured_by()):
            place = due if again else stale
        else:
            place = done
        if place is due and (reason := _missing(zoo, case)):
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            place.append(case)
    return Plan(tuple(due), tuple(done), tuple(stale), skipped)


def run_cases(zoo: Zoo, cases: Iterable[Case], told: Callable[[Result | None], None] = lambda result: None) -> None:
    """Run the cases, `zoo.jobs` at a time; `told` hears of each result, and between them of None, for a progress bar.

    Ctrl-C, or any other exception, ends the running scripts; results until then are kept.
    """
    for name in ("scripts", "runs", "output"):
        (zoo.folder / name).mkdir(parents=True, exist_ok=True)
    if not zoo.fresh:
        forks.warm_up()
    waiting = list(reversed(list(cases)))
    running: dict[forks.Job, Case] = {}
    try:
        while waiting or running:
            while waiting and len(running) < zoo.jobs:
                case = waiting.pop()
                running[_start(zoo, case)] = case
            for job in list(running):
                if (ended := _end(zoo, job)) is not None:
                    result = _result(zoo, running.pop(job), *ended)
                    write_result(zoo.results_path, result)
                    told(result)
            told(None)
            time.sleep(WAIT)
    finally:
        for job in running:
            forks.kill(job)


def _start(zoo: Zoo, case: Case) -> forks.Job:
    script, record = zoo.script_path(case), zoo.folder / "runs" / case.name
    script.write_text(render(case.recipe))
    shutil.rmtree(record, ignore_errors=True)
    words = ["run", "--quiet", "--run-dir", str(record.resolve())]
    words += ["--curvature"] if zoo.curvature else []
    words += [script.name, str(zoo.data.resolve())]
    log = (zoo.folder / "output" / f"{case.name}.txt").resolve()
    return forks.start(case.name, words, script.parent.resolve(), log, fresh=zoo.fresh)


def _end(zoo: Zoo, job: forks.Job) -> tuple[forks.Job, forks.Ending, bool] | None:
    """A job, how it ended and whether it took too long; None while it may go on."""
    ending = forks.poll(job)
    if ending is not None:
        return job, ending, False
    if time.monotonic() - job.began > zoo.time_limit:
        return job, forks.kill(job), True
    return None


def _result(zoo: Zoo, case: Case, job: forks.Job, ending: forks.Ending, timed_out: bool) -> Result:
    output = job.log.read_text(errors="replace") if job.log.exists() else ""
    found = VALIDATION.findall(output)
    return Result(
        name=case.name,
        description=case.describe(),
        exit_code=ending.exit_code,
        seconds=round(ending.seconds, 2),
        cpu_seconds=round(ending.cpu_seconds, 2),
        validation=float(found[-1]) if found else None,
        timed_out=timed_out,
        run=os.path.join("runs", case.name),
        script=digest(zoo.script_path(case).read_text()),
        measured_by=measured_by(),
        commit=commit(),
    )


def _missing(zoo: Zoo, case: Case) -> str | None:
    """Why a case cannot run here; None if it can."""
    if case.folder and not (zoo.data / case.folder).is_dir():
        return f"no {case.folder} in {zoo.data}: name the folder of real data with --data"
    return None
