"""How often the cure cures: `python -m benchmarks.cure` runs it on the zoo's scripts and writes benchmarks/cure.md.

It needs the zoo's results (`make bench-zoo`). For each script, in an order that is fixed and mixes all kinds, `desat
cure` searches within a number of steps; then the script is trained in full with what was chosen. Resumable: what is
done is kept in the zoo's folder.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.tables import table
from benchmarks.zoo.cases import Case, all_cases
from benchmarks.zoo.parts import DATA_SETS
from benchmarks.zoo.results import RESULTS, Result, harm_of, learns, read_results, siblings_of, standard_error
from benchmarks.zoo.runner import VALIDATION

TABLE = Path(__file__).parent / "cure.md"
CURES = "cures.jsonl"
FOLDER, DATA = Path("desat-runs/zoo"), Path("../shared/data")

POINTS = 0.02
"""A fault is cured if the validation result is within so much of the healthy twin's."""
SEARCH_SHARE = 0.5
"""Steps of the search, all trials together, by those of one full training: the goal, and the limit it is given."""
TRIAL_SHARE = 1 / 10
"""Steps of one trial, by those of a full training."""
FEWEST_STEPS = 12
SEEDS = 1
"""More would not fit in the steps: with one, an effect has to be larger, see desat.cure.judgement."""
TIME_LIMIT = 240.0
"""Seconds that one search, or one full training, may take."""


@dataclass(frozen=True)
class Cured:
    """What became of one script. before, after, twin: validation results, what guessing gives where there is none.

    steps, seconds: of the search; full_steps, full_seconds: of a full training. chosen: None where the cure chose
    nothing. error: what went wrong in the search, or in the training with what was chosen.
    """

    name: str
    truth: str
    verdict: str
    chosen: list[str] | None
    before: float
    after: float
    twin: float
    spread: float
    steps: int
    seconds: float
    full_steps: int
    full_seconds: float
    error: str = ""

    @property
    def is_cured(self) -> bool:
        return self.after >= self.twin - POINTS

    @property
    def gain(self) -> float:
        """In points."""
        return 100 * (self.after - self.before)

    @property
    def is_harmed(self) -> bool:
        """Clearly worse than without: by the points, and by what two seeds differ in."""
        return self.before - self.after > max(POINTS, 2.0 * self.spread)


@dataclass(frozen=True)
class Work:
    """A script that is to be cured, with what is known of it."""

    case: Case
    result: Result
    twin: Result
    truth: str
    spread: float


def due(results: Mapping[str, Result], split: str) -> list[Work]:
    """The harmful faults and healthy runs of a split, in an order that any beginning of is a fair sample of."""
    works = []
    for case in all_cases():
        result, twin = results.get(case.name), results.get(case.twin)
        if result is None or twin is None or case.split != split:
            continue
        siblings = siblings_of(twin, results)
        of_healthy = "healthy" if learns(result) else ""
        truth = of_healthy if case.code is None else harm_of(result, twin, siblings)
        if truth in ("healthy", "harmful"):
            spread = standard_error(twin, twin, siblings)
            works.append(Work(case, result, twin, truth, spread))
    return sorted(works, key=lambda work: hashlib.sha256(work.case.name.encode()).digest())


def chosen_from(works: Sequence[Work], harmful: int, healthy: int) -> list[Work]:
    """So many of each kind, taken in turn, so that a run that is broken off has both."""
    kinds = [[work for work in works if work.truth == truth] for truth in ("harmful", "healthy")]
    kept = [kinds[0][:harmful], kinds[1][:healthy]]
    placed = [(place / max(1, len(kind)), work) for kind in kept for place, work in enumerate(kind)]
    return [work for _, work in sorted(placed, key=lambda one: one[0])]


def attempt(work: Work, folder: Path, data: Path) -> Cured:
    """Search a cure for one script, and train it in full with what was chosen."""
    script = (folder / "scripts" / f"{work.case.name}.py").resolve()
    full = work.case.recipe.steps
    arguments = [script.name, str(data.resolve())]
    with tempfile.TemporaryDirectory(prefix="desat-bench-cure-") as place:
        options = [
            "--json", "--quiet", "--jobs", "1", "--seeds", str(SEEDS),
            "--record", str((folder / work.result.run).resolve()),
            "--steps", str(max(FEWEST_STEPS, round(TRIAL_SHARE * full))),
            "--max-steps", str(max(5 * FEWEST_STEPS, round(SEARCH_SHARE * full))), "--time", str(TIME_LIMIT),
        ]  # fmt: skip
        said, problem, seconds = _desat(["cure", *options, *arguments], script.parent)
        found: dict[str, Any] = {}
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(said)
        chosen = found.get("chosen")
        before = _score(work.result.validation, work.case)
        after, full_seconds = before, work.result.seconds
        if chosen:
            apply = [word for remedy in chosen for word in ("--apply", remedy)]
            words = ["run", "--quiet", "--run-dir", f"{place}/run", *apply, *arguments]
            printed, problem, full_seconds = _desat(words, script.parent)
            values = VALIDATION.findall(printed)
            after = _score(float(values[-1]) if values else None, work.case)
    return Cured(
        work.case.name, work.truth, found.get("baseline", {}).get("verdict", "?"), chosen, before, after,
        _score(work.twin.validation, work.case), work.spread, int(found.get("steps", 0)), seconds, full, full_seconds,
        "" if found and (not chosen or not problem) else problem[-300:],
    )  # fmt: skip


def _score(validation: float | None, case: Case) -> float:
    """A validation result; what guessing gives, where a training ended without one or with none that is finite."""
    if validation is None or not math.isfinite(validation):
        return 0.0 if case.recipe.is_autoencoder else 1.0 / DATA_SETS[case.recipe.data].classes
    return max(validation, 0.0)


def _desat(words: Sequence[str], folder: Path) -> tuple[str, str, float]:
    """What a command prints, what went wrong (empty if nothing), and the seconds it took."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "desat", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=2 * TIME_LIMIT)
    except BaseException as ending:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        if not isinstance(ending, subprocess.TimeoutExpired):
            raise
        output, errors = "", "it took too long"
    failed = errors.strip() if process.returncode not in (0, 1) or "Traceback" in errors else ""
    return output, failed, time.monotonic() - began


def read_cures(path: Path) -> dict[str, Cured]:
    """What is done, by name; a line that a killed run left half written is skipped."""
    done = {}
    known = {field.name for field in fields(Cured)}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            values = json.loads(line)
            done[values["name"]] = Cured(**{key: value for key, value in values.items() if key in known})
    return done


def run(works: Sequence[Work], folder: Path, data: Path, path: Path, jobs: int) -> None:
    """Attempt what is not done yet, so many at a time; each result is kept at once."""
    done = read_cures(path)
    waiting = [work for work in works if work.case.name not in done]
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(attempt, work, folder, data) for work in waiting]
        for future in track(as_completed(futures), "curing", total=len(waiting)):
            with path.open("a") as file:
                file.write(json.dumps(asdict(future.result())) + "\n")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def page(cures: Sequence[Cured], split: str) -> str:
    """The table, of one split's results."""
    harmful = [one for one in cures if one.truth == "harmful"]
    healthy = [one for one in cures if one.truth == "healthy"]
    uncured = [one for one in harmful if not one.is_cured]
    lines = [
        "# How often the cure cures",
        "",
        f"Written by `python -m benchmarks.cure` from {len(harmful)} harmful faults and {len(healthy)} healthy "
        f"scripts of the zoo's part `{split}`. Each script was given to `desat cure` as it is, with the record of its "
        f"training, one seed, and a search of at most {SEARCH_SHARE:.0%} of the steps of its full training; then it "
        "was trained in full with what was chosen. Cured: the validation result is within "
        f"{100 * POINTS:.0f} points of the healthy twin's, the same script without the fault. A script "
        "of which nothing was chosen counts with its own result.",
        "",
        *_summary(harmful, healthy),
        "",
        "Wall time counts a new interpreter, and the import of torch, for each trial; these scripts train for seconds.",
        "",
        "## By code",
        "",
        *_by_code(harmful),
        "",
        "## What was chosen",
        "",
        *_choices(harmful),
        "",
        *_by_name("Harmful, and what was chosen does not cure", [one for one in uncured if one.chosen]),
        *_by_name("Harmful, and nothing was chosen", [one for one in uncured if not one.chosen]),
        *_by_name("Healthy, and changed", [one for one in healthy if one.chosen]),
        *_by_name("Where the search or the training failed", [one for one in cures if one.error]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _summary(harmful: Sequence[Cured], healthy: Sequence[Cured]) -> list[str]:
    treated, touched = ([one for one in ones if one.chosen] for ones in (harmful, healthy))
    shares = [one.steps / one.full_steps for one in (*harmful, *healthy)]
    times = [one.seconds / one.full_seconds for one in harmful]
    return table(
        [
            ["", "measured", "goal"],
            ["harmful faults cured", _share(harmful, lambda one: one.is_cured), "98.5%"],
            ["a remedy was chosen", _share(harmful, lambda one: bool(one.chosen)), "–"],
            ["cured, of those with a remedy", _share(treated, lambda one: one.is_cured), "–"],
            ["mean gain in points", _mean([one.gain for one in harmful]), "above 36.42"],
            ["mean points that the faults cost", _mean([100 * (one.twin - one.before) for one in harmful]), "–"],
            ["made clearly worse", _share(harmful, lambda one: one.is_harmed), "–"],
            ["healthy, left alone", _share(healthy, lambda one: not one.chosen), "–"],
            ["healthy, harmed", _share(healthy, lambda one: one.is_harmed), "0%"],
            ["healthy, changed: mean gain in points", _mean([one.gain for one in touched]), "–"],
            ["steps of the search by those of a full training, median", _median(shares), "0.5"],
            ["the same of harmful faults", _median([one.steps / one.full_steps for one in harmful]), "–"],
            ["wall time of the search by that of a full training, median", _median(times), "–"],
        ]
    )


def _by_code(harmful: Sequence[Cured]) -> list[str]:
    codes = {case.name: case.code or "" for case in all_cases()}
    rows = [["code", "faults", "cured", "remedy chosen", "mean gain in points"]]
    for code in sorted({codes[one.name] for one in harmful}):
        ones = [one for one in harmful if codes[one.name] == code]
        shares = _share(ones, lambda one: one.is_cured), _share(ones, lambda one: bool(one.chosen))
        rows.append([code, str(len(ones)), *shares, _mean([one.gain for one in ones])])
    return table(rows)


def _choices(cures: Sequence[Cured]) -> list[str]:
    rows = [["remedy", "chosen", "of these cured"]]
    by_choice: dict[str, list[Cured]] = {}
    for one in cures:
        if one.chosen and one.truth == "harmful":
            by_choice.setdefault(" ".join(one.chosen), []).append(one)
    for choice, ones in sorted(by_choice.items(), key=lambda item: -len(item[1])):
        rows.append([f"`{choice}`", str(len(ones)), _share(ones, lambda one: one.is_cured)])
    return table(rows)


def _by_name(title: str, ones: Sequence[Cured]) -> list[str]:
    lines = [f"{title} ({len(ones)}){':' if ones else '.'}", ""]
    for one in sorted(ones, key=lambda one: one.name):
        choice = f" by {' '.join(one.chosen)}" if one.chosen else f", said to be {one.verdict}"
        failure = f" ({one.error.splitlines()[-1]})" if one.error else ""
        lines.append(f"- {one.name}: {one.before:.3f} to {one.after:.3f}{choice}; twin {one.twin:.3f}{failure}")
    return [*lines, ""] if ones else lines


def _share(ones: Sequence[Cured], holds: Any) -> str:
    return f"{sum(map(holds, ones)) / len(ones):.1%}" if ones else "–"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" if values else "–"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "–"


@contextlib.contextmanager
def _said_when_broken_off() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the zoo's results lie")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of real data")
    parser.add_argument("--split", choices=("tune", "held-out"), default="held-out")
    parser.add_argument("--harmful", type=int, default=120, help="harmful faults to cure (default: %(default)s)")
    parser.add_argument("--healthy", type=int, default=60, help="healthy scripts beside them (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="scripts at a time (default: the cores)")
    parser.add_argument("--output", type=Path, default=TABLE, help="the page to write (default: %(default)s)")
    options = parser.parse_args()
    results = read_results(options.folder / RESULTS)
    if not results:
        parser.error(f"no results in {options.folder}: `make bench-zoo` makes them")
    works = chosen_from(due(results, options.split), options.harmful, options.healthy)
    path = options.folder / CURES
    with _said_when_broken_off():
        run(works, options.folder, options.data, path, max(1, options.jobs))
    done = read_cures(path)
    options.output.write_text(page([done[w.case.name] for w in works if w.case.name in done], options.split))
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
