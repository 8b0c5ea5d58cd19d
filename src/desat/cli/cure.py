"""`desat cure`: try remedies in paired trials, and say what helped and what to write."""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from desat.cli.target import ModuleOption, ScriptArgument, ScriptArguments
from desat.cure.curves import loss_curves
from desat.cure.edit import Edit, edit_from_json, fingerprint, unified_diff, write_edits
from desat.cure.metric import parse_source
from desat.cure.proof import Result, document
from desat.cure.ray_trials import ray_trials
from desat.cure.search import BaselineError, Limits, State, Wish
from desat.cure.search import search as search_cure
from desat.cure.trial import Executor, run_here
from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis
from desat.errors import DesatError
from desat.record.kept_cure import write_kept
from desat.record.reader import Record
from desat.show.cure import SearchProgress, print_cure
from desat.show.words import as_typed
from desat.watch.script import Script


class Where(StrEnum):
    HERE = "here"
    RAY = "ray"


def cure(
    script: ScriptArgument,
    arguments: ScriptArguments = None,
    module: ModuleOption = False,
    steps: Annotated[int, typer.Option(min=4, help="Steps of a trial; fewer if the script ends earlier.")] = 200,
    seconds: Annotated[float, typer.Option("--time", min=1, help="Seconds that the whole search may take.")] = 600.0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of all trials together.", show_default="no limit")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds on which the best remedies are confirmed.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at once.", show_default="one a core")] = None,
    where: Annotated[
        Where, typer.Option("--on", help="Run the trials on this machine or on a Ray cluster, RAY_ADDRESS.")
    ] = Where.HERE,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|REGEX",
            help="Your metric: its name in desat.log, or what finds it in the script's output, by a group.",
            show_default="an accuracy",
        ),
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less of the metric is better.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Take the findings from the record of a longer run.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Try remedies even if nothing is wrong.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the trials' records in this folder, for `desat report`.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with the trials' loss curves.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Change the script, after showing how.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --write: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as a JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Find the change that makes a training script learn, and prove it in short trials.

    The script is run several times, with the same seeds, each time with other remedies. Where it reports an accuracy
    within the steps of a trial, remedies are judged by that, else by the loss. Exit code 0: a remedy was found, or the
    network is healthy; 1: none helped; 2: the script cannot be tried.
    """
    target = Script(script, module, tuple(arguments or ()))
    target.check()
    source = parse_source(metric) if metric is not None else None
    if minimize and source is None:
        raise DesatError("--minimize says how --metric is to be read: give both")
    if write and not yes and not _can_ask():
        raise DesatError("--write asks before it changes a file, and there is no terminal to ask in: add --yes")
    if overwrite and report is None:
        raise DesatError("--overwrite says that --report may replace a page: give both")
    wish = Wish(force, _diagnosis_of(record), source, minimize)
    if report is not None:
        _check_place(report, overwrite)
    with _place(keep) as place, _trials(where, jobs) as (executor, at_once), _signals_noted() as noted:
        limits = Limits(steps, seconds, max_steps, seeds, at_once)
        result = _search(target, place, limits, wish, executor, noted, quiet=quiet)
        diff = _diff(result)
        found = document(result, diff)
        typed = as_typed(target.target, target.is_module, target.arguments)
        _show(found, typed, as_json=as_json)
        _keep(found | {"script": typed, "curves": loss_curves(result)}, keep and place, report)
    if noted.number is not None:
        raise typer.Exit(128 + noted.number)
    if write:
        _write(result, diff, asked=not yes)
    raise typer.Exit(0 if result.chosen is not None or result.diagnosis.verdict == "healthy" else 1)


def _diagnosis_of(path: Path | None) -> Diagnosis | None:
    if path is None:
        return None
    with Record(path) as record:
        return diagnose(record)


class _Noted:
    """The signal that asked for the end, and the event that says that one has."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.stop = threading.Event()

    def take(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.stop.set()


@contextlib.contextmanager
def _signals_noted() -> Iterator[_Noted]:
    """Ctrl-C and the like end the trials first, which have process groups of their own, and then the search."""
    noted = _Noted()
    before = {number: signal.signal(number, noted.take) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    """Where the trials' records go: the user's folder, or one that is gone afterwards."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="desat-cure-", ignore_cleanup_errors=True) as place:
            yield Path(place)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise DesatError(f"{keep} is not empty: choose another folder to --keep the records in")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.absolute()


@contextlib.contextmanager
def _trials(where: Where, jobs: int | None) -> Iterator[tuple[Executor, int]]:
    """What runs the trials, and how many at once."""
    if where is Where.HERE:
        yield run_here, jobs or _cores()
        return
    with ray_trials(jobs) as trials:
        yield trials, trials.jobs


def _search(
    target: Script, place: Path, limits: Limits, wish: Wish, executor: Executor, noted: _Noted, *, quiet: bool
) -> Result:
    with SearchProgress(Console(stderr=True), wanted=not quiet) as progress:

        def tell(state: State) -> None:
            progress.update(state.phase, state.done, state.planned, state.running)

        try:
            return search_cure(target, place, limits=limits, wish=wish, executor=executor, tell=tell, stop=noted.stop)
        except BaselineError as failure:
            for line in failure.said:
                print(f"  {line}", file=sys.stderr)
            raise
        except DesatError:
            if noted.number is not None:
                raise typer.Exit(128 + noted.number) from None
            raise


def _show(found: dict[str, Any], typed: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    print_cure(found, typed, Console())


def _check_place(report: Path, overwrite: bool) -> None:
    """That the page can be written, before minutes are spent on what it is to hold."""
    from desat.show.page import check_place

    check_place(report, "--report", overwrite=overwrite)


def _keep(found: dict[str, Any], folder: Path | None, report: Path | None) -> None:
    """What was found, with the loss curves: as a file for `desat report`, and as a page."""
    if folder is not None:
        write_kept(folder, found)
    if report is not None:
        from desat.show.cure_page import write_cure

        print(f"desat: wrote {write_cure(found, report, '--report')}", file=sys.stderr)


def _diff(result: Result) -> str | None:
    """The chosen change as a diff of the user's files; None where it cannot be written as one."""
    try:
        if any(fingerprint(file) != known for file, known in result.sources.items()):
            print("desat: the script has changed since it was tried, so no diff is made of it", file=sys.stderr)
            return None
        return unified_diff(map(edit_from_json, result.edits)) or None
    except (OSError, KeyError, ValueError, SyntaxError):  # a file that is gone or cannot be read by now
        return None


def _write(result: Result, diff: str | None, *, asked: bool) -> None:
    """Make the change that was shown, if the user agrees."""
    if result.chosen is None:
        return
    if diff is None:
        raise DesatError("--write: this change cannot be written as a diff; make it by hand, as told above")
    if asked and not typer.confirm("Write this change?", err=True):
        return
    edits = [edit_from_json(edit) for edit in result.edits]
    if _diff(result) != diff:
        raise DesatError("--write: the script has changed in the meantime; nothing was written")
    by_file: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_file[edit.span.file].append(edit)
    for file, ones in by_file.items():
        try:
            write_edits(file, ones)
        except OSError as error:
            raise DesatError(f"--write: {os.path.relpath(file)} cannot be written: {error.strerror}") from None
        print(f"desat: wrote {os.path.relpath(file)}", file=sys.stderr)
    if result.by_hand:
        print(f"desat: still to be done by hand: {', '.join(result.by_hand)}", file=sys.stderr)


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
