"""`python -m benchmarks.zoo`: make and run the training scripts of the proving ground; see README.md."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.zoo.cases import Case, all_cases, sample_of, with_twins
from benchmarks.zoo.catalogue import CODES
from benchmarks.zoo.parts import ARCHITECTURES
from benchmarks.zoo.results import Result, harm_of, learns, siblings_of
from benchmarks.zoo.runner import TIME_LIMIT, Plan, Zoo, plan, run_cases

FOLDER = Path("desat-runs/zoo")
DATA = Path("../shared/data")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="scripts, records and results (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZOO_DATA", DATA)), help="folder of real data")
    parser.add_argument("--split", choices=("tune", "held-out"))
    parser.add_argument("--fault", metavar="CODE", choices=(*CODES, "none"), help="a finding code; none: healthy ones")
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES))
    parser.add_argument("--case", action="append", metavar="NAME", help="this case, and its twin; may be repeated")
    parser.add_argument("--sample", type=int, metavar="N", help="a fixed pseudo-random sample, and its twins")
    parser.add_argument("--list", action="store_true", help="print the cases, and run none")
    parser.add_argument("--again", action="store_true", help="run those again whose script or desat has changed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="scripts at a time (default: the cores)")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="for one script")
    parser.add_argument("--no-curvature", action="store_true", help="do not measure the sharpness of the loss")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for each script instead of a fork")
    return parser.parse_args(words)


def select(options: argparse.Namespace) -> tuple[Case, ...]:
    """The cases that the options ask for; those with a fault come with their twins."""
    wanted = options.fault and (None if options.fault == "none" else options.fault)
    chosen = tuple(
        case
        for case in all_cases()
        if (options.split is None or case.split == options.split)
        and (options.fault is None or case.code == wanted)
        and (options.architecture is None or case.recipe.architecture == options.architecture)
        and (not options.case or case.name in options.case)
    )
    return sample_of(chosen, options.sample) if options.sample is not None else with_twins(chosen)


def main(words: Sequence[str] | None = None) -> int:
    options, console = parse(words), Console(stderr=True)
    cases = select(options)
    if not cases:
        console.print("no case is like that: see --list")
        return 2
    if options.list:
        for case in cases:
            print(f"{case.split:9} {case.code or '-':22} {case.name}")
        return 0
    zoo = Zoo(
        options.folder, options.data, max(1, options.jobs), options.time_limit, not options.no_curvature, options.fresh
    )
    work = plan(zoo, cases, again=options.again)
    _tell_plan(work, console)
    began = time.monotonic()
    try:
        with _interruptible() as interrupted:
            _run(zoo, work, console, interrupted)
    except KeyboardInterrupt:
        console.print("interrupted: what is done is kept, and the same command goes on")
        return 130
    _tell_results(zoo, cases, time.monotonic() - began, len(work.due), console)
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt, and whether it came can be asked.

    Python drops one that is raised in a fork's hooks, and ignores the signal where the shell that started it does.
    """
    came = threading.Event()

    def note(number: int, frame: object) -> None:
        came.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _run(zoo: Zoo, work: Plan, console: Console, interrupted: Callable[[], bool]) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Without a thread that refreshes: none may run when the scripts are forked.
    with Progress(
        *columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        task = progress.add_task("scripts", total=len(work.due))
        last = 0.0

        def told(result: Result | None) -> None:
            nonlocal last
            if interrupted():
                raise KeyboardInterrupt
            if result is not None:
                progress.advance(task)
                if result.timed_out:
                    console.print(f"{result.name}: over the time limit", highlight=False)
            if time.monotonic() - last > 0.5:
                progress.refresh()
                last = time.monotonic()

        run_cases(zoo, work.due, told)
        progress.refresh()


def _tell_plan(work: Plan, console: Console) -> None:
    console.print(f"{len(work.due)} cases to run, {len(work.done) + len(work.stale)} done before", highlight=False)
    if work.stale:
        console.print(f"{len(work.stale)} of them with another script or another desat: --again runs them again")
    for reason, number in work.skipped.items():
        console.print(f"{number} cases skipped: {reason}", highlight=False)


def _tell_results(zoo: Zoo, cases: tuple[Case, ...], took: float, ran: int, console: Console) -> None:
    results = zoo.results()
    there = [results[case.name] for case in cases if case.name in results]
    healthy = [result for result in there if result.description["code"] is None]
    harm: dict[str, Counter[str]] = {}
    for result in there:
        twin = results.get(result.description["twin"])
        if result.description["code"] is not None and twin is not None:
            counts = harm.setdefault(result.description["code"], Counter())
            counts[harm_of(result, twin, siblings_of(twin, results))] += 1
    table = Table("code", "harmful", "harmless", "twin fails")
    for code in CODES:
        if counts := harm.get(code):
            table.add_row(code, *(str(counts[kind]) for kind in ("harmful", "harmless", "unknown")))
    if harm:
        console.print(table)
    if healthy:
        console.print(f"healthy: {sum(map(learns, healthy))} of {len(healthy)} learn", highlight=False)
    for result in healthy:
        if not learns(result):
            console.print(f"  does not learn: {result.name} ({result.validation})", highlight=False)
    seconds = f", {sum(r.seconds for r in there) / len(there):.1f} s a case" if there else ""
    console.print(
        f"{ran} cases in {took / 60:.1f} minutes on {zoo.jobs} cores{seconds}: {zoo.results_path}", highlight=False
    )


if __name__ == "__main__":
    sys.exit(main())
