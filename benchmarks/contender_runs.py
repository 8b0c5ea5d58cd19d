"""What other tools say of the zoo's scripts: `python -m benchmarks.contender_runs` writes contenders.jsonl.

Each script of the zoo is run unmodified, once for each tool, in a process of its own; contender_tools.py says how a
tool is attached and what its findings mean. What is there already is kept: the same command goes on where it stopped.
"""

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.contender_tools import MODULES, Bystander, Said, as_json, codes_of, is_installed, version_of
from benchmarks.zoo import forks
from benchmarks.zoo.__main__ import DATA, FOLDER, select
from benchmarks.zoo.cases import Case
from benchmarks.zoo.catalogue import CODES
from benchmarks.zoo.parts import ARCHITECTURES
from benchmarks.zoo.render import render
from benchmarks.zoo.runner import TIME_LIMIT, WAIT
from benchmarks.zoo.versions import digest

CONTENDERS = "contenders.jsonl"
FAILURE_LENGTH = 300
"""Characters kept of what went wrong."""


@dataclass(frozen=True, eq=False)
class Run:
    """A script to be run with a tool. work: the folder that it writes to."""

    case: Case
    tool: str
    work: Path

    def file(self, ending: str) -> Path:
        """`py`: the script; `txt`: what it printed; `json`: what the tool said, until it is in the results."""
        return self.work / f"{self.case.name}.{self.tool}.{ending}"

    @functools.cached_property
    def key(self) -> tuple[str, str, str, str]:
        """What has to be the same for a line to be of this run."""
        return self.case.name, self.tool, version_of(self.tool), digest(render(self.case.recipe))


def read_contenders(path: Path) -> dict[str, dict[str, set[str]]]:
    """The finding codes by the case's name and the tool. Of several lines of one run the last holds.

    A case or a tool that was not run is not there; a run that failed has the codes that were found until then. No file
    is read as an empty one, and a line that is no result is skipped.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for line in _lines(path):
        found.setdefault(line["name"], {})[line["tool"]] = {code for code in line["codes"] if code in CODES}
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, console = parser.parse_args(words), Console(stderr=True)
    tools = options.tool or list(MODULES)
    for tool in tools:
        if not is_installed(tool):
            parser.error(f"{tool} is not installed: `make bench-contenders` installs it; --tool picks another")
    cases = select(options)
    there = tuple(case for case in cases if not case.folder or (options.data / case.folder).is_dir())
    missing = Counter(case.folder for case in cases if case not in there)
    work = (options.folder / "contenders").resolve()
    runs = [Run(case, tool, work) for case in there for tool in tools]
    results = options.folder / CONTENDERS
    done = {tuple(line.get(key) for key in ("name", "tool", "version", "script")) for line in _lines(results)}
    due = [run for run in runs if run.key not in done]
    console.print(f"{len(due)} runs to do, {len(runs) - len(due)} done before", highlight=False)
    for folder, number in missing.items():
        console.print(f"{number} cases skipped: no {folder} in {options.data}, see --data", highlight=False)
    work.mkdir(parents=True, exist_ok=True)
    try:
        if due:
            _run_all(due, options, results, console)
    except KeyboardInterrupt:
        console.print("interrupted: what is done is kept, and the same command goes on")
        return 130
    console.print(str(results), highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contender_runs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the zoo lies (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZOO_DATA", DATA)), help="folder of real data")
    parser.add_argument("--tool", action="append", choices=tuple(MODULES), help="this tool alone; may be repeated")
    parser.add_argument("--split", choices=("tune", "held-out"))
    parser.add_argument("--fault", metavar="CODE", choices=(*CODES, "none"), help="a finding code; none: healthy ones")
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES))
    parser.add_argument("--case", action="append", metavar="NAME", help="this case, and its twin; may be repeated")
    parser.add_argument("--sample", type=int, metavar="N", help="the zoo's fixed sample, and its twins")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="scripts at a time (default: the cores)")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="for one script")
    return parser


def _run_all(due: Sequence[Run], options: argparse.Namespace, results: Path, console: Console) -> None:
    """Run what is due, several at a time; Ctrl-C, or any other exception, ends what runs."""
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    for tool in {run.tool for run in due}:
        importlib.import_module(MODULES[tool])
    forks.warm_up()
    waiting, running = list(reversed(due)), dict[Run, tuple[BaseProcess, float]]()
    # Without a thread that refreshes: none may run when the scripts are forked.
    progress = Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with _interrupts() as interrupted, progress:
        task, refreshed = progress.add_task("runs", total=len(due)), 0.0
        try:
            while waiting or running:
                while waiting and len(running) < max(1, options.jobs):
                    run = waiting.pop()
                    running[run] = _start(run, options.data.resolve()), time.monotonic()
                for run, (process, began) in list(running.items()):
                    seconds = time.monotonic() - began
                    if process.exitcode is None and seconds < options.time_limit:
                        continue
                    line = _line(run, process, seconds)
                    del running[run]
                    _write(results, line)
                    progress.advance(task)
                    if line["failure"]:
                        console.print(f"{run.case.name}, {run.tool}: {line['failure']}", highlight=False, markup=False)
                if time.monotonic() - refreshed > 0.5:
                    progress.refresh()
                    refreshed = time.monotonic()
                if interrupted():
                    raise KeyboardInterrupt
                time.sleep(WAIT)
        finally:
            for process, _ in running.values():
                process.kill()
                process.join()
            progress.refresh()


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came, to be asked: an exception that is raised within a fork would be lost."""
    came = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _start(run: Run, data: Path) -> BaseProcess:
    run.file("py").write_text(render(run.case.recipe))
    run.file("json").unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, data))
    process.start()
    return process


def _child(run: Run, data: Path) -> None:
    """Run the script, and leave what the tool says in the answer's file."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(run.file("txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the old ones may hold what the parent wrote
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(run.work)
    sys.argv = [str(run.file("py")), str(data)]
    bystander, failures, said = Bystander(run.tool), list[str](), list[Said]()
    bystander.stand_by()
    with _told(failures):
        runpy.run_path(str(run.file("py")), run_name="__main__")
    with _told(failures):
        said = bystander.finish(not failures)
    run.file("json").write_text(
        json.dumps({"raw": as_json(said), "codes": codes_of(run.tool, said), "failures": failures})
    )


@contextlib.contextmanager
def _told(failures: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        failures.append(textwrap.shorten(f"{type(error).__name__}: {error}", FAILURE_LENGTH))


def _line(run: Run, process: BaseProcess, seconds: float) -> dict[str, Any]:
    """The result of a run that has ended, or has had its time."""
    failure = None
    if process.exitcode is None:
        process.kill()
        failure = "over the time limit"
    process.join()
    try:
        answer = json.loads(run.file("json").read_text())
    except (OSError, ValueError):
        answer = {"raw": [], "codes": [], "failures": [failure or f"ended with exit code {process.exitcode}"]}
    run.file("json").unlink(missing_ok=True)
    name, tool, version, script = run.key
    return {
        "name": name, "tool": tool, "codes": answer["codes"], "raw": answer["raw"], "seconds": round(seconds, 2),
        "failure": failure or next(iter(answer["failures"]), None), "version": version, "script": script,
    }  # fmt: skip


def _write(path: Path, line: dict[str, Any]) -> None:
    """Append a line; what a killed run left half written stays a line of its own."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"name", "tool", "codes"} <= line.keys():
            yield line


if __name__ == "__main__":
    sys.exit(main())
