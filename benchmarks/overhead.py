"""What watching costs: `make bench-overhead` writes benchmarks/overhead.md.

All contenders run in one process with one thread, block by block in turn, so that whatever else the machine does falls
on all alike. A ratio is the median step of a block over the median step of the plain blocks beside it.
"""

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from benchmarks.contenders import CONTENDERS, desat_default
from benchmarks.models import MAKERS, Workload, workload

MINUTE = 60.0
"""Seconds: over a run of this length the budget of 1 % is promised."""

TABLE = Path(__file__).parent / "overhead.md"
STEPS = {"perceptron": 30, "resnet": 3, "transformer": 6}
"""Timed steps of one block, after two to warm up."""


@dataclass
class Result:
    """Of one contender: a ratio per round, kilobytes it kept per step, megabytes of memory it added at its peak."""

    ratios: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    failure: str | None = None

    def row(self, name: str) -> str:
        if self.failure is not None:
            return f"| {name} | – | – | – | {self.failure} |"
        low, high = min(self.ratios), max(self.ratios)
        median = statistics.median(self.ratios)
        kept, memory = statistics.median(self.kept), statistics.median(self.memory)
        return f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {memory:.0f} | {kept:.1f} |"


@dataclass(frozen=True)
class Block:
    seconds: float
    kept: float
    memory: float


def run_block(contender: str, work: Workload, steps: int, device: str) -> Block:
    """Attach, warm up, time some steps, detach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = peak = resident()
        durations = []
        with CONTENDERS[contender](work, folder) as step:
            for number in range(2 + steps):
                synchronize(device)
                began = time.perf_counter()
                step()
                synchronize(device)
                if number >= 2:
                    durations.append(time.perf_counter() - began)
                peak = max(peak, resident())
        kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Block(statistics.median(durations), kept / 1000 / (2 + steps), (peak - before) / 1e6)


def compare(model: str, rounds: int, device: str, progress: Progress) -> dict[str, Result]:
    """Every contender in turn, `rounds` times, each beside a plain block."""
    work = workload(model, device)
    results = {name: Result() for name in CONTENDERS if name != "plain"}
    task = progress.add_task(model, total=rounds * len(results))
    run_block("plain", work, STEPS[model], device)
    for _ in range(rounds):
        for name, result in results.items():
            progress.advance(task)
            if result.failure is not None:
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    base = run_block("plain", work, STEPS[model], device)
                    block = run_block(name, work, STEPS[model], device)
            except Exception as error:
                result.failure = f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
                work = workload(model, device)
                continue
            result.ratios.append(block.seconds / base.seconds)
            result.kept.append(block.kept)
            result.memory.append(block.memory)
    return results


def minute(model: str, device: str, progress: Progress) -> float:
    """Wall time per step of a run of a minute under desat's default budget, over the plain loop before and after."""
    work = workload(model, device)
    task = progress.add_task(f"{model}, a minute", total=3)

    def seconds_per_step(step: Callable[[], object], least: float) -> float:
        began, number = time.perf_counter(), 0
        while time.perf_counter() - began < least:
            step()
            number += 1
        synchronize(device)
        return (time.perf_counter() - began) / number

    seconds_per_step(work.step, 2)
    before = seconds_per_step(work.step, MINUTE / 3)
    progress.advance(task)
    with tempfile.TemporaryDirectory() as name, desat_default(work, Path(name)) as step:
        watched = seconds_per_step(step, MINUTE)
    progress.advance(task)
    after = seconds_per_step(work.step, MINUTE / 3)
    progress.advance(task)
    return watched / ((before + after) / 2)


def resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def page(tables: dict[str, dict[str, Result]], minutes: dict[str, float], rounds: int, device: str) -> str:
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, one thread"
    lines = [
        "# What watching costs",
        "",
        f"Written by `make bench-overhead` on {machine}, torch {torch.__version__}, {rounds} rounds. A ratio of 1.00 "
        "is the plain loop; the spread is over the rounds. Memory is what the process grew by, kept is what was on "
        "disk. Every contender measures at every step.",
        "",
        "## A run of a minute with desat's default budget of 1 %",
        "",
        "| | wall time, ratio |",
        "| --- | --- |",
        *(f"| {model} | {ratio:.3f} |" for model, ratio in minutes.items()),
    ]
    for model, results in tables.items():
        lines += ["", f"## {model}", "", MAKERS[model].__doc__ or "", ""]
        lines += ["| | ratio, median | spread | memory, MB | kept, kB per step |", "| --- | --- | --- | --- | --- |"]
        lines += [result.row(name) for name, result in results.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables: dict[str, dict[str, Result]] = {}
    minutes: dict[str, float] = {}
    with Progress() as progress:
        for model in options.models:
            minutes[model] = minute(model, options.device, progress)
            tables[model] = compare(model, options.rounds, options.device, progress)
            # What is done is kept, should the rest be interrupted.
            TABLE.write_text(page(tables, minutes, options.rounds, options.device), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
