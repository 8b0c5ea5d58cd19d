"""What watching costs: `make bench-overhead` writes benchmarks/overhead.md.

All contenders run in one process with one thread, block by block in turn, so that whatever else the machine does falls
on all alike. A ratio is the median step of a block over the median step of the plain blocks beside it.
"""

import argparse
import contextlib
import io
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from rich.progress import Progress
from torch import nn

import desat
from benchmarks.contenders import CONTENDERS
from benchmarks.models import MAKERS, Workload, workload
from desat.record.writer import RecordWriter
from desat.watch import watcher as watcher_module
from desat.watch.session import Session

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


@dataclass(frozen=True)
class Minute:
    """A run of a minute under the default budget: what it added, as a share, with its standard error; its samples.

    writer: processor time of the thread that writes the record, in the same share.
    """

    added: float
    error: float
    writer: float
    samples: int
    steps: int

    def row(self, name: str) -> str:
        added = f"{self.added:.2%} | {self.error:.2%}"
        return f"| {name} | {added} | {self.writer:.2%} | {self.samples} of {self.steps} |"


class StoppingClock:
    """A clock for the watcher that stands still while the plain loop has its turn."""

    def __init__(self) -> None:
        self._hidden = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() - self._hidden

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._hidden += time.perf_counter() - began


def minute(model: str, device: str, progress: Progress) -> Minute:
    """A watched minute of steps, with a step of a second network's plain loop after each, outside of that minute.

    They alternate so closely that what else the machine does falls on both. Sampled steps in a row make one turn. The
    record's writer works beside both loops; what it took is shown beside.
    """
    watched, other = workload(model, device), workload(model, device)
    task, clock = progress.add_task(f"{model}, a minute", total=MINUTE), StoppingClock()

    def timed(step: Callable[[], object]) -> float:
        began = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - began

    for _ in range(5):
        timed(watched.step)
        timed(other.step)
    turns, spent = list[tuple[float, float]](), 0.0
    with tempfile.TemporaryDirectory() as name, mock.patch.object(watcher_module, "time", clock):
        writer = RecordWriter(Path(name) / "run")
        session = Session(writer, model=watched.model, optimizer=watched.optimizer)
        watcher = session.watcher
        while spent < MINUTE:
            durations = [timed(watched.step)]
            while watcher.is_armed:
                durations.append(timed(watched.step))
            with clock.stopped():
                plain = statistics.mean(timed(other.step) for _ in durations)
            turns.append((sum(durations), plain * len(durations)))
            spent += turns[-1][0]
            progress.update(task, completed=spent)
        session.finish()
        writer.close()
    base = sum(plain for _, plain in turns)
    error = statistics.stdev(mine - plain for mine, plain in turns) * len(turns) ** 0.5 / base
    return Minute(spent / base - 1, error, writer.seconds / spent, watcher.sampled_steps, watcher.steps)


class NoOptimizer(torch.optim.Optimizer):
    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(()))], {"lr": 0.1})

    def step(self, closure: object = None) -> None:
        pass


def unsampled_step(progress: Progress) -> float:
    """Microseconds that watching adds to a step that is not sampled: the best of many turns.

    The backward pass and the update do nothing, so that what is left is torch's and desat's own Python.
    """
    optimizer, loss, best = NoOptimizer(), torch.ones(()), {"plain": math.inf, "watched": math.inf}

    def turn(kind: str) -> None:
        began = time.perf_counter()
        for _ in range(2000):
            loss.backward()
            optimizer.step()
        best[kind] = min(best[kind], (time.perf_counter() - began) / 2000)

    def backward(tensor: torch.Tensor) -> None:
        pass

    with mock.patch.object(torch.Tensor, "backward", backward), tempfile.TemporaryDirectory() as name:
        for number in progress.track(range(20), description="an unsampled step"):
            turn("plain")
            with desat.watch(nn.Linear(1, 1), optimizer, every=10**9, run_dir=Path(name) / str(number)):
                for _ in range(5):
                    turn("watched")
            turn("plain")
    return 1e6 * (best["watched"] - best["plain"])


def resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def page(
    tables: dict[str, dict[str, Result]], minutes: dict[str, Minute], unsampled: float, rounds: int, device: str
) -> str:
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
        "Watched and plain steps alternate; the standard error is over the turns.",
        "",
        "| | wall time added | standard error | processor time of the record's thread | sampled steps |",
        "| --- | --- | --- | --- | --- |",
        *(result.row(model) for model, result in minutes.items()),
        "",
        f"A step that is not sampled takes {unsampled:.1f} microseconds longer (Python alone, best of many turns).",
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
    minutes: dict[str, Minute] = {}
    with Progress() as progress:
        unsampled = unsampled_step(progress)
        for model in options.models:
            minutes[model] = minute(model, options.device, progress)
            tables[model] = compare(model, options.rounds, options.device, progress)
            # What is done is kept, should the rest be interrupted.
            TABLE.write_text(page(tables, minutes, unsampled, options.rounds, options.device), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
