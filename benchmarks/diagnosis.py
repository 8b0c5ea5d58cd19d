"""How often the diagnosis is right on the zoo: `python -m benchmarks.diagnosis` writes benchmarks/diagnosis.md.

It takes the records that `python -m benchmarks.zoo` made and runs nothing again. A harmful fault is found if the
diagnosis has an error; it is named if an error has the fault's code or one that is right as well; see zoo/README.md.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from benchmarks.baselines import BASELINES
from benchmarks.zoo.results import RESULTS, Result, harm_of, is_at, learns, read_results, siblings_of
from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis
from desat.errors import DesatError
from desat.record.reader import Record

TABLE = Path(__file__).parent / "diagnosis.md"
SPLITS = ("tune", "held-out")
EARLY = 20
"""Steps within which what is there at initialization should be said."""


@dataclass(frozen=True)
class Judged:
    """A run of the zoo and what was said of it. truth: `healthy` or what the fault did. baselines: codes by tool."""

    result: Result
    truth: str
    diagnosis: Diagnosis | None
    baselines: dict[str, set[str]]

    @property
    def code(self) -> str:
        return self.result.description["code"] or "healthy"

    @property
    def errors(self) -> set[str]:
        found = self.diagnosis.findings if self.diagnosis is not None else ()
        return {finding.code for finding in found if finding.severity == "error"}

    @property
    def right(self) -> set[str]:
        """The codes that are right."""
        return {self.code, *self.result.description["also"]}

    @property
    def site_is_right(self) -> bool | None:
        """Whether a rightly named error is where the fault sits; None where no error is named rightly."""
        found = self.diagnosis.findings if self.diagnosis is not None else ()
        named = [finding for finding in found if finding.severity == "error" and finding.code in self.right]
        patterns = self.result.description["sites"]
        if not named:
            return None
        return any(
            not patterns or any(is_at(site, patterns) for site in (*finding.sites, finding.site or ""))
            for finding in named
        )

    @property
    def first_step(self) -> int | None:
        found = self.diagnosis.findings if self.diagnosis is not None else ()
        return min((finding.first_step for finding in found if finding.severity == "error"), default=None)


def judge(folder: Path) -> list[Judged]:
    """Every case that was run, whose twin was as well."""
    results = read_results(folder / RESULTS)
    judged = []
    for result in track(list(results.values()), "diagnosing"):
        twin = results.get(result.description["twin"])
        if twin is None:
            continue
        truth = "healthy" if learns(result) else "does not learn"
        if result.description["code"] is not None:
            truth = harm_of(result, twin, siblings_of(twin, results))
        try:
            with Record(folder / result.run) as record:
                said = {name: baseline(record, learns(result)) for name, baseline in BASELINES.items()}
                judged.append(Judged(result, truth, diagnose(record), said))
        except DesatError:
            judged.append(Judged(result, truth, None, {name: set() for name in BASELINES}))
    return judged


def page(judged: Sequence[Judged]) -> str:
    lines = [
        "# How often the diagnosis is right",
        "",
        f"Written by `python -m benchmarks.diagnosis` from {len(judged)} runs of the zoo. Harm is told by the healthy "
        "twin's validation result. Found: an error of whatever code. Named: an error of the right code. Right site: "
        "of those named. Harmless faults and healthy runs should have no error. Rules were tuned on the part `tune`.",
    ]
    for split in SPLITS:
        part = [one for one in judged if one.result.description["split"] == split]
        lines += ["", f"## {split}", "", *_summary(part), "", *_by_code(part), "", *_misses(part)]
    return "\n".join(lines) + "\n"


def _summary(part: Sequence[Judged]) -> list[str]:
    harmful = [one for one in part if one.truth == "harmful"]
    harmless = [one for one in part if one.truth == "harmless"]
    healthy = [one for one in part if one.truth == "healthy"]
    rows = [
        "| | found | named | error on a harmless fault | error on a healthy run |",
        "| --- | --- | --- | --- | --- |",
        f"| runs | {len(harmful)} | {len(harmful)} | {len(harmless)} | {len(healthy)} |",
        "| desat | "
        + " | ".join(
            [
                _share([bool(one.errors) for one in harmful]),
                _share([bool(one.errors & one.right) for one in harmful]),
                _share([bool(one.errors) for one in harmless]),
                _share([bool(one.errors) for one in healthy]),
            ]
        )
        + " |",
    ]
    for name in BASELINES:
        shares = [
            _share([bool(one.baselines[name]) for one in harmful]),
            _share([bool(one.baselines[name] & one.right) for one in harmful]),
            _share([bool(one.baselines[name]) for one in harmless]),
            _share([bool(one.baselines[name]) for one in healthy]),
        ]
        rows.append(f"| {name} | {' | '.join(shares)} |")
    return rows


def _by_code(part: Sequence[Judged]) -> list[str]:
    by_code: dict[str, list[Judged]] = defaultdict(list)
    for one in part:
        if one.truth == "harmful":
            by_code[one.code].append(one)
    heading = ["code", "harmful", "found", "named", "precision", "right site", f"by step {EARLY}", *BASELINES]
    rows = [f"| {' | '.join(heading)} |", "| " + " | ".join(["---"] * len(heading)) + " |"]
    for code, ones in sorted(by_code.items()):
        said = [one for one in part if code in one.errors]
        sites = [one.site_is_right for one in ones if one.site_is_right is not None]
        early = [
            one.first_step is not None and one.first_step <= EARLY
            for one in ones
            if one.result.description["starts"] == "birth"
        ]
        cells = [
            code,
            str(len(ones)),
            _share([bool(one.errors) for one in ones]),
            _share([bool(one.errors & one.right) for one in ones]),
            _share([one.truth == "harmful" and code in one.right for one in said]),
            _share(sites),
            _share(early),
            *(_share([bool(one.baselines[name] & one.right) for one in ones]) for name in BASELINES),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _misses(part: Sequence[Judged]) -> list[str]:
    """What went wrong, by name."""
    missed = sorted(one.result.name for one in part if one.truth == "harmful" and not one.errors)
    alarms = sorted(
        f"{one.result.name}: {', '.join(sorted(one.errors))}" for one in part if one.truth == "healthy" and one.errors
    )
    lines = [f"Harmful faults without an error ({len(missed)}):", "", *(f"- {name}" for name in missed)]
    return [*lines, "", f"Healthy runs with an error ({len(alarms)}):", "", *(f"- {name}" for name in alarms)]


def _share(values: Sequence[bool]) -> str:
    return f"{sum(values) / len(values):.0%}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("desat-runs/zoo"), help="where the zoo's results lie")
    options = parser.parse_args()
    if not (options.folder / RESULTS).exists():
        parser.error(f"no results in {options.folder}: `make bench-zoo` makes them")
    TABLE.write_text(page(judge(options.folder)), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
