"""How often the diagnosis is right on the zoo: `python -m benchmarks.diagnosis` writes benchmarks/diagnosis.md.

It takes the records that `python -m benchmarks.zoo` made, and what other tools said of the same scripts where
`python -m benchmarks.contender_runs` has asked them, and runs nothing again. A harmful fault is found if the diagnosis
has an error; it is named if an error has the fault's code or one that is right as well; see zoo/README.md.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import track

from benchmarks.baselines import BASELINES
from benchmarks.contender_runs import CONTENDERS, read_contenders
from benchmarks.tables import table
from benchmarks.zoo.cases import all_cases
from benchmarks.zoo.causes import cause_is_right
from benchmarks.zoo.results import RESULTS, Result, harm_of, is_at, learns, read_results, siblings_of
from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.errors import DesatError
from desat.record.reader import Record

TABLE = Path(__file__).parent / "diagnosis.md"
SPLITS = ("tune", "held-out")
EARLY = 20
"""Steps within which what is there at initialization should be said."""

Said = tuple[Diagnosis | None, dict[str, set[str]]]
"""The diagnosis of a record, None where there can be none, and the codes that each baseline finds in it."""


@dataclass(frozen=True)
class Judged:
    """A run of the zoo and what was said of it.

    truth: `healthy` or what the fault did. baselines: codes by tool, of those tools that were asked.
    """

    result: Result
    truth: str
    diagnosis: Diagnosis | None
    baselines: Mapping[str, set[str]]

    @property
    def code(self) -> str:
        return self.result.description["code"] or "healthy"

    @property
    def error_findings(self) -> list[Finding]:
        found = self.diagnosis.findings if self.diagnosis is not None else ()
        return [finding for finding in found if finding.severity == "error"]

    @property
    def errors(self) -> set[str]:
        return {finding.code for finding in self.error_findings}

    @property
    def right(self) -> set[str]:
        """The codes that are right."""
        return {self.code, *self.result.description["also"]}

    @property
    def named(self) -> list[Finding]:
        """The errors whose code is right."""
        return [finding for finding in self.error_findings if finding.code in self.right]

    @property
    def site_is_right(self) -> bool | None:
        """Whether a rightly named error is where the fault sits; None where no error is named rightly."""
        patterns = self.result.description["sites"]
        if not self.named:
            return None
        return any(
            not patterns or any(is_at(site, patterns) for site in (*finding.sites, finding.site or ""))
            for finding in self.named
        )

    @property
    def cause_is_right(self) -> bool | None:
        """Whether a rightly named error has the fault's own cause; None where no error is named rightly."""
        if not self.named:
            return None
        return any(cause_is_right(finding, self.result.description) for finding in self.named)

    @property
    def first_step(self) -> int | None:
        return min((finding.first_step for finding in self.error_findings), default=None)


def judge(folder: Path, jobs: int = 1) -> list[Judged]:
    """Every case that was run, whose twin was as well; `jobs` records at a time.

    What a case is, and which codes are right, is as the catalogue says today.
    """
    today = {case.name: case.describe() for case in all_cases()}
    results = {
        name: replace(result, description=today[name])
        for name, result in read_results(folder / RESULTS).items()
        if name in today
    }
    contenders = read_contenders(folder / CONTENDERS)
    due = [result for result in results.values() if result.description["twin"] in results]
    with contextlib.closing(_read_all(folder, due, jobs)) as reading:
        said = dict(track(reading, "diagnosing", total=len(due)))
    judged = []
    for result in due:
        diagnosis, baselines = said[result.name]
        others = contenders.get(result.name, {})
        judged.append(Judged(result, _truth(result, results), diagnosis, {**baselines, **others}))
    return judged


def _truth(result: Result, results: Mapping[str, Result]) -> str:
    if result.description["code"] is None:
        return "healthy" if learns(result) else "does not learn"
    twin = results[result.description["twin"]]
    return harm_of(result, twin, siblings_of(twin, results))


def _read_all(folder: Path, results: Sequence[Result], jobs: int) -> Generator[tuple[str, Said]]:
    """What is said of each result's record, by name, in the order in which they are done."""
    if jobs == 1:
        for result in results:
            yield result.name, _read(folder / result.run, learns(result))
        return
    with _processes(jobs) as pool:
        with _uninterrupted():
            names = {pool.submit(_read, folder / result.run, learns(result)): result.name for result in results}
        for future in as_completed(names):
            yield names[future], future.result()


def _read(run: Path, satisfactory: bool) -> Said:
    try:
        with Record(run) as record:
            said = {name: baseline(record, satisfactory) for name, baseline in BASELINES.items()}
            return diagnose(record), said
    except DesatError:
        return None, {name: set() for name in BASELINES}


@contextlib.contextmanager
def _processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, which end at once where the work is broken off."""
    # A fork would copy the locks of the thread that draws the progress.
    pool = ProcessPoolExecutor(number, multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of this, and the processes that are started within never see it.

    A terminal sends it to all of them. What is blocked stays so in processes that are started; but only in this thread,
    so that another one may get the signal, whose handler then runs in the midst of a start.
    """
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def page(judged: Sequence[Judged]) -> str:
    lines = [
        "# How often the diagnosis is right",
        "",
        f"Written by `python -m benchmarks.diagnosis` from {len(judged)} runs of the zoo. Harm is told by the healthy "
        "twin's validation result. Found: an error of whatever code. Named: an error of the right code. Right site, "
        "cause right: of those named. Harmless faults and healthy runs should have no error. Rules were tuned on the "
        "part `tune`. A tool that was run on some cases alone is judged by these, and their number is given.",
    ]
    tools = _tools(judged)
    for split in SPLITS:
        part = [one for one in judged if one.result.description["split"] == split]
        lines += ["", f"## {split}", "", *_summary(part, tools), "", *_by_code(part, tools), "", *_misses(part)]
    return "\n".join(lines) + "\n"


def _tools(judged: Sequence[Judged]) -> list[str]:
    """The baselines, and after them the tools that were run on any case."""
    return list(dict.fromkeys([*BASELINES, *sorted({name for one in judged for name in one.baselines})]))


def _summary(part: Sequence[Judged], tools: Sequence[str]) -> list[str]:
    harmful, harmless, healthy = (_with_truth(part, truth) for truth in ("harmful", "harmless", "healthy"))
    causes = [one.cause_is_right for one in harmful if one.cause_is_right is not None]
    desat = [
        _share([bool(one.errors) for one in harmful]),
        _share([bool(one.named) for one in harmful]),
        _share(causes),
        _share([bool(one.errors) for one in harmless]),
        _share([bool(one.errors) for one in healthy]),
    ]
    rows = [
        ["", "found", "named", "cause right", "error on a harmless fault", "error on a healthy run"],
        ["runs", *(str(len(ones)) for ones in (harmful, harmful, causes, harmless, healthy))],
        ["desat", *desat],
    ]
    for tool in tools:
        shares = [
            _share_of(tool, harmful, lambda one, codes: bool(codes)),
            _share_of(tool, harmful, lambda one, codes: bool(codes & one.right)),
            "–",
            _share_of(tool, harmless, lambda one, codes: bool(codes)),
            _share_of(tool, healthy, lambda one, codes: bool(codes)),
        ]
        rows.append([tool, *shares])
    return table(rows)


def _by_code(part: Sequence[Judged], tools: Sequence[str]) -> list[str]:
    by_code: dict[str, list[Judged]] = defaultdict(list)
    for one in _with_truth(part, "harmful"):
        by_code[one.code].append(one)
    rows = [["code", "harmful", "found", "named", "cause right", "precision", "right site", f"by step {EARLY}", *tools]]
    for code, ones in sorted(by_code.items()):
        said = [one for one in part if code in one.errors]
        early = [
            one.first_step is not None and one.first_step <= EARLY
            for one in ones
            if one.result.description["starts"] == "birth"
        ]
        cells = [
            code,
            str(len(ones)),
            _share([bool(one.errors) for one in ones]),
            _share([bool(one.named) for one in ones]),
            _share([one.cause_is_right for one in ones if one.cause_is_right is not None]),
            _share([one.truth == "harmful" and code in one.right for one in said]),
            _share([one.site_is_right for one in ones if one.site_is_right is not None]),
            _share(early),
            *(_share_of(tool, ones, lambda one, codes: bool(codes & one.right)) for tool in tools),
        ]
        rows.append(cells)
    return table(rows)


def _misses(part: Sequence[Judged]) -> list[str]:
    """What went wrong, by name."""
    harmful, harmless, healthy = (_with_truth(part, truth) for truth in ("harmful", "harmless", "healthy"))
    lists = {
        "Harmful faults without an error": [one.result.name for one in harmful if not one.errors],
        "Named, but with another cause": [
            f"{one.result.name}: {'; '.join(f'{finding.code}: {finding.cause}' for finding in one.named)}"
            for one in harmful
            if one.cause_is_right is False
        ],
        "Named, but at another site": [
            f"{one.result.name}: {', '.join(finding.site or 'no site' for finding in one.named)}, "
            f"and not {', '.join(one.result.description['sites'])}"
            for one in harmful
            if one.site_is_right is False
        ],
        "Harmless faults with an error": [_with_errors(one) for one in harmless if one.errors],
        "Healthy runs with an error": [_with_errors(one) for one in healthy if one.errors],
    }
    lines: list[str] = []
    for title, entries in lists.items():
        lines += ["", f"{title} ({len(entries)}){':' if entries else '.'}"]
        if entries:
            lines += ["", *(f"- {entry}" for entry in sorted(entries))]
    return lines[1:]


def _with_truth(part: Sequence[Judged], truth: str) -> list[Judged]:
    return [one for one in part if one.truth == truth]


def _with_errors(one: Judged) -> str:
    return f"{one.result.name}: {', '.join(sorted(one.errors))}"


def _share_of(tool: str, ones: Sequence[Judged], holds: Callable[[Judged, set[str]], bool]) -> str:
    """Of those runs that the tool was asked about, with their number where these are not all."""
    asked = [one for one in ones if tool in one.baselines]
    share = _share([holds(one, one.baselines[tool]) for one in asked])
    return share if len(asked) in (0, len(ones)) else f"{share} of {len(asked)}"


def _share(values: Sequence[bool]) -> str:
    return f"{sum(values) / len(values):.0%}" if values else "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("desat-runs/zoo"), help="where the zoo's results lie")
    parser.add_argument("--output", type=Path, default=TABLE, help="the page to write (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="records at a time (default: the cores)")
    options = parser.parse_args()
    if not (options.folder / RESULTS).exists():
        parser.error(f"no results in {options.folder}: `make bench-zoo` makes them")
    try:
        judged = judge(options.folder, max(1, options.jobs))
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    options.output.write_text(page(judged), encoding="utf-8")
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
