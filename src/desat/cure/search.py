"""The search for a change that helps: the baseline, single remedies, combinations of the best, and the confirmation.

Each trial is one process; several run at once. Optuna stops those that fall behind (desat.cure.halving); the best few
are run again with other seeds, beside the baseline, and judged on all of the seeds (desat.cure.proof).
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from desat.cure.candidates import Candidate, combinations, general_candidates, named_candidates
from desat.cure.halving import Contender, Halving, import_optuna
from desat.cure.judgement import SMALLEST_EFFECT
from desat.cure.learning_rate import asks_for_range_test, range_test, rate_of
from desat.cure.metric import Source, check_logged, metric_series, settle_source
from desat.cure.proof import Result, Run, Tried, choose, confirmed, in_order, look_into, prove
from desat.cure.trial import Executor, Outcome, Plan, Watch, run_here, why_failed
from desat.diagnose.finding import Diagnosis
from desat.errors import DesatError
from desat.watch.script import Script

BASELINE_SHARE = 0.25
"""Share of the time that the first trial may take; a script that has not come to its steps by then is too slow."""

FEWEST_STEPS = 4
"""A baseline of fewer cannot be compared with anything."""

PATIENCE = 3.0
"""A trial may take so many times what the baseline took, and START_SECONDS more."""

START_SECONDS = 10.0

REDEFINE_THE_LOSS = frozenset({"loss=logits", "loss=log-probabilities"})
"""Remedies whose losses are not compared with those of others while they run; judged by what their records say."""

BEST_COMBINED = 4
"""Candidates of the first round of which twos and threes are tried; the cost grows with the cube."""

COMBINATIONS = 6
"""Of those at most so many."""

CONFIRMED = 3
"""Candidates that are run with the other seeds."""

LONGEST_RESERVE = 0.5
"""Share of the time and the steps left after the baseline that is kept for the confirmation, at most."""


@dataclass(frozen=True)
class Limits:
    """steps: of a trial. seconds, all_steps: of the whole search, all_steps counting those of all trials."""

    steps: int = 200
    seconds: float = 600.0
    all_steps: int | None = None
    seeds: int = 3
    jobs: int = 1


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    force: to be tried even if healthy. diagnosis: what the candidates come from, None for that of the baseline.
    metric: where it is to be read, None for the usual places.
    """

    force: bool = False
    diagnosis: Diagnosis | None = None
    metric: Source | None = None
    minimize_metric: bool = False


USUAL_LIMITS = Limits()
USUAL_WISH = Wish()


@dataclass(frozen=True)
class State:
    """How far the search is. running: the remedies of the trials that run now."""

    phase: str
    done: int
    planned: int
    running: tuple[Candidate, ...]


Tell = Callable[[State], None]


def search(
    script: Script,
    place: Path,
    *,
    limits: Limits = USUAL_LIMITS,
    wish: Wish = USUAL_WISH,
    executor: Executor = run_here,
    tell: Tell = lambda state: None,
    stop: threading.Event | None = None,
) -> Result:
    """Search for the change that makes a script learn; the records of the trials stay in `place`.

    stop: once set, the trials are ended and what is known by then is returned. Raises DesatError where the script
    cannot be tried: it fails (a BaselineError), ends or hangs before it has done a few steps.
    """
    import_optuna()
    trials = _Trials(script, place, limits, wish, executor, tell, stop or threading.Event())
    try:
        return _Search(trials, limits, wish).run()
    finally:
        trials.close()


@dataclass(frozen=True)
class Reserve:
    """What is to be left of the time and of the steps of all trials for what comes later."""

    seconds: float = 0.0
    steps: float = 0.0


NOTHING_KEPT = Reserve()


class _Trials:
    """Runs trials side by side, within the limits of time and steps, and keeps what became of them."""

    def __init__(
        self,
        script: Script,
        place: Path,
        limits: Limits,
        wish: Wish,
        executor: Executor,
        tell: Tell,
        stop: threading.Event,
    ) -> None:
        self.runs: dict[Candidate, dict[int, Run]] = {}
        self.steps = limits.steps
        self.time_limit = limits.seconds * BASELINE_SHARE
        self.began = time.monotonic()
        self.deadline = self.began + limits.seconds
        self.all_steps = 0
        self.stop = stop
        self._script, self._place, self._limits, self._wish = script, place, limits, wish
        self._executor, self._tell = executor, tell
        self._pool = ThreadPoolExecutor(limits.jobs)
        self._lock = threading.Lock()
        self._running: list[Candidate] = []
        self._promised = self._started = self._done = self._planned = 0
        self._phase = ""
        self._source: Source | None = None

    def close(self) -> None:
        """End all trials that still run."""
        self.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run_all(self, phase: str, tasks: Sequence[Callable[[], object]]) -> None:
        """Run tasks that each call `run_one`, as many at once as there are jobs."""
        with self._lock:
            self._phase, self._planned = phase, self._done + len(tasks)
        futures: list[Future[object]] = [self._pool.submit(task) for task in tasks]
        try:
            while wait(futures, timeout=0.2).not_done:  # in short waits, so that a signal is seen
                pass
        except BaseException:
            self.stop.set()
            raise
        for future in futures:
            future.result()

    def run_one(
        self, candidate: Candidate, seed: int, kept: Reserve, watch: Watch = lambda losses: False
    ) -> Run | None:
        """Run one trial, if the limits allow one to begin and leave what is to be kept; None if they do not."""
        with self._lock:
            left = self.deadline - time.monotonic()
            limit = self._limits.all_steps
            enough = limit is not None and self.all_steps + self._promised + self.steps + kept.steps > limit
            if self.stop.is_set() or left <= kept.seconds or enough:
                self._done += 1
                return None
            self._promised += self.steps
            self._started += 1
            self._running.append(candidate)
            place = self._place / f"{self._started:03d}"
            several = self._limits.jobs > 1
            plan = Plan(self._script, candidate, seed, self.steps, min(self.time_limit, left), one_thread=several)
            promised = self.steps
            self._show()
        outcome = None
        try:
            outcome = self._executor(plan, place, watch, self.stop)
            if not self.runs:  # the first says for all where the metric is, so that like is compared with like
                self._source = settle_source(outcome.directory, outcome.output, self._wish.metric)
            run = look_into(outcome, metric_series(outcome.directory, outcome.output, self._source))
        finally:
            with self._lock:
                self._promised -= promised
                self.all_steps += outcome.steps if outcome is not None else 0
                self._done += 1
                self._running.remove(candidate)
                self._show()
        with self._lock:
            self.runs.setdefault(candidate, {})[seed] = run
        return run

    def _show(self) -> None:
        self._tell(State(self._phase, self._done, self._planned, tuple(self._running)))


class _Search:
    """The rounds, one after the other."""

    def __init__(self, trials: _Trials, limits: Limits, wish: Wish) -> None:
        self._trials = trials
        self._limits = limits
        self._wish = wish
        self._kept = NOTHING_KEPT

    def run(self) -> Result:
        baseline = self._baseline()
        diagnosis = self._wish.diagnosis or baseline.diagnosis
        assert diagnosis is not None
        if self._wish.force or diagnosis.verdict != "healthy":
            named = named_candidates(diagnosis)
            general = general_candidates(named)
            self._kept = self._reserve()
            halving = Halving(self._trials.steps, general, baseline.outcome.losses)
            halving.enqueue(named)
            self._round("remedies of the findings", halving)
            halving.enqueue(self._with_tested_rate(general, diagnosis, baseline))
            self._round("general remedies", halving)
            ranked = [one.candidate for one in self._ranked()]
            halving.enqueue(combinations(ranked[:BEST_COMBINED], self._trials.runs)[:COMBINATIONS])
            self._round("combinations", halving)
            self._confirm()
        tried = in_order(confirmed(self._proved()))
        return Result(
            diagnosis=diagnosis,
            baseline=dict(self._trials.runs[()]),
            tried=tried,
            chosen=choose(tried),
            interrupted=self._trials.stop.is_set(),
            seconds=time.monotonic() - self._trials.began,
            steps=self._trials.all_steps,
        )

    def _baseline(self) -> Run:
        trials = self._trials
        trials.run_all("baseline", [lambda: trials.run_one((), 0, NOTHING_KEPT)])
        run = trials.runs.get((), {}).get(0)
        if run is None and not trials.stop.is_set():
            raise DesatError(f"--max-steps {self._limits.all_steps} is less than the {trials.steps} steps of one trial")
        if run is None or run.outcome.ending == "interrupted":
            raise DesatError("interrupted before anything was known")
        _check(run, trials.deadline)
        check_logged(run.outcome.directory, self._wish.metric)
        if run.outcome.ending in ("finished", "timed out"):
            trials.steps = run.outcome.steps
        trials.time_limit = PATIENCE * run.outcome.seconds + START_SECONDS
        return run

    def _with_tested_rate(self, general: list[Candidate], diagnosis: Diagnosis, baseline: Run) -> list[Candidate]:
        """The general candidates, and where it may be the cure the rate of a range test; unless a named one heals."""
        trials, asked = self._trials, range_test(self._trials.steps)
        if not asks_for_range_test(diagnosis) or any(one.healed and one.accepted for one in self._proved()):
            return general
        trials.run_all("range test of the learning rate", [lambda: trials.run_one(asked, 0, self._kept)])
        tested = trials.runs.pop(asked, {}).get(0)
        rate = rate_of(tested, baseline) if tested is not None else None
        return general if rate is None or rate in trials.runs else [rate, *(one for one in general if one != rate)]

    def _round(self, phase: str, halving: Halving) -> None:
        self._trials.run_all(phase, [lambda: self._contend(halving)] * halving.waiting)

    def _contend(self, halving: Halving) -> None:
        contender = halving.next()
        if contender is None:
            return
        contender.judged_by_loss = REDEFINE_THE_LOSS.isdisjoint(contender.candidate)
        run = self._trials.run_one(contender.candidate, 0, self._kept, contender.is_beaten)
        _tell(contender, run.outcome if run is not None else None)

    def _reserve(self) -> Reserve:
        """What the confirmation will take, for which the rounds leave time and steps."""
        trials = self._trials
        number = (CONFIRMED + 1) * (self._limits.seeds - 1)
        seconds = math.ceil(number / self._limits.jobs) * trials.runs[()][0].outcome.seconds
        seconds_left = max(trials.deadline - time.monotonic(), 0.0)
        steps_left = math.inf if self._limits.all_steps is None else self._limits.all_steps - trials.all_steps
        return Reserve(
            min(seconds, LONGEST_RESERVE * seconds_left), min(number * trials.steps, LONGEST_RESERVE * steps_left)
        )

    def _confirm(self) -> None:
        best = [one for one in self._ranked() if _is_promising(one)][:CONFIRMED]
        if not best:
            return
        trials = self._trials
        # Seed by seed, the baseline first: whatever is done when time runs out makes pairs.
        asked = [(one, seed) for seed in range(1, self._limits.seeds) for one in ((), *(b.candidate for b in best))]

        def task(candidate: Candidate, seed: int) -> Callable[[], object]:
            return lambda: trials.run_one(candidate, seed, NOTHING_KEPT)

        trials.run_all("confirmation", [task(*one) for one in asked])

    def _proved(self) -> list[Tried]:
        runs = self._trials.runs
        baseline = {seed: run for seed, run in runs[()].items() if run.outcome.ending != "interrupted"}
        return [
            prove(candidate, by_seed, baseline, minimize_metric=self._wish.minimize_metric)
            for candidate, by_seed in runs.items()
            if candidate and any(run.outcome.ending != "interrupted" for run in by_seed.values())
        ]

    def _ranked(self) -> list[Tried]:
        return sorted(
            (one for one in self._proved() if one.effect > -math.inf and one.changes_something),
            key=lambda one: (not _came_to_its_end(one), -one.effect),
        )


def _is_promising(one: Tried) -> bool:
    """Whether other seeds could prove what the first one shows."""
    judged = one.judgement
    if judged is None or one.new or not _came_to_its_end(one) or judged.reason.startswith("not comparable"):
        return False
    if one.healed and one.accepted:
        return True
    return one.effect > 0 and one.effect >= SMALLEST_EFFECT[judged.measure] * abs(judged.without)


def _came_to_its_end(one: Tried) -> bool:
    return all(run.outcome.ending not in ("pruned", "timed out") for run in one.runs.values())


def _tell(contender: Contender, outcome: Outcome | None) -> None:
    if outcome is None:
        contender.tell(np.empty(0))
    else:
        contender.tell(outcome.losses, pruned=outcome.ending == "pruned")


def _check(run: Run, deadline: float) -> None:
    """Raise DesatError where a baseline is none."""
    outcome = run.outcome
    name = outcome.plan.script.target
    if outcome.ending == "no steps":
        raise DesatError(f"{name} cannot be tried: {why_failed(outcome)}")
    if outcome.steps >= FEWEST_STEPS and run.diagnosis is not None:
        return
    if outcome.ending == "timed out":
        raise DesatError(f"{name} cannot be tried: {why_failed(outcome)}; give it more --time, or smaller work")
    if outcome.ending == "failed":
        raise BaselineError(f"{name} cannot be tried: {why_failed(outcome)}", outcome.said)
    raise DesatError(f"{name} cannot be tried: it does {outcome.steps} steps, and at least {FEWEST_STEPS} are needed")


class BaselineError(DesatError):
    """The script fails by itself. said: the last lines of its output."""

    def __init__(self, message: str, said: tuple[str, ...]) -> None:
        super().__init__(message)
        self.said = said
