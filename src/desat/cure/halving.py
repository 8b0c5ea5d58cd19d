"""Successive halving of candidates, by Optuna: who does worse than half of the others at a rung is stopped there.

The halving is asynchronous (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020): a trial is
compared with those that have reached the rung, and none waits for the others.
"""

import math
import threading
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.cure.candidates import Candidate
from desat.cure.judgement import late_loss
from desat.errors import DesatError

CANDIDATE = "candidate"

FIRST_RUNG = 0.25
"""Share of the steps after which losses are compared first; then at the half."""

NO_LOSSES = np.empty(0)

REDUCTION = 2
"""One in so many goes on: the mildest there is, since early losses are a rough judge of late ones."""


class Halving:
    """A race of candidates. steps: of a whole trial.

    general: candidates that nothing but their loss speaks for; of these, one that is no better at a rung than the
    script was without it (baseline, its losses by step) is stopped, too.
    """

    def __init__(
        self, steps: int, general: Collection[Candidate] = (), baseline: NDArray[np.float64] = NO_LOSSES
    ) -> None:
        optuna = import_optuna()
        self.steps = steps
        first = max(1, math.ceil(FIRST_RUNG * steps))
        self.rungs = [rung for power in range(10) if (rung := first * REDUCTION**power) < steps]
        self._study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION),
        )
        self._pruned: Any = optuna.trial.TrialState.PRUNED
        self._failed: Any = optuna.trial.TrialState.FAIL
        self._general = general
        self._baseline = baseline
        self._lock = threading.Lock()
        self._waiting = 0

    def enqueue(self, candidates: Iterable[Candidate]) -> None:
        """Have these tried next, in this order."""
        for candidate in candidates:
            self._study.enqueue_trial({}, user_attrs={CANDIDATE: list(candidate)})
            self._waiting += 1

    @property
    def waiting(self) -> int:
        """Candidates that are still to be tried."""
        return self._waiting

    def next(self) -> "Contender | None":
        """The next candidate, None if there is none left."""
        with self._lock:
            if not self._waiting:
                return None
            self._waiting -= 1
            trial = self._study.ask()
        return Contender(tuple(trial.user_attrs[CANDIDATE]), trial, self)

    def is_idle(self, candidate: Candidate, rung: int, loss: float) -> bool:
        """Whether a general candidate is, at a rung, no better than the script without it."""
        before = late_loss(self._baseline[:rung])
        return candidate in self._general and len(self._baseline) >= rung and math.isfinite(before) and loss >= before

    def is_beaten(self, trial: Any, rung: int, loss: float) -> bool:
        with self._lock:
            trial.report(loss, rung)
            return trial.should_prune()

    def tell(self, trial: Any, loss: float | None, *, pruned: bool) -> None:
        """What became of a trial; without a loss it has failed."""
        with self._lock:
            if pruned or loss is None or not math.isfinite(loss):
                self._study.tell(trial, state=self._pruned if pruned else self._failed)
            else:
                self._study.tell(trial, loss)


class Contender:
    """One candidate in the race. `judged_by_loss` is to be set false where its loss means something else."""

    def __init__(self, candidate: Candidate, trial: Any, halving: Halving) -> None:
        self.candidate = candidate
        self.judged_by_loss = True
        self._trial = trial
        self._halving = halving
        self._passed = 0

    def is_beaten(self, losses: NDArray[np.float64]) -> bool:
        """Whether to stop it, by its losses so far; there is nothing to stop where all steps are done."""
        rungs = self._halving.rungs
        if len(losses) >= self._halving.steps:
            return False
        while self.judged_by_loss and self._passed < len(rungs) and len(losses) >= rungs[self._passed]:
            rung = rungs[self._passed]
            self._passed += 1
            loss = late_loss(losses[:rung])
            if self._halving.is_beaten(self._trial, rung, loss) or self._halving.is_idle(self.candidate, rung, loss):
                return True
        return False

    def tell(self, losses: NDArray[np.float64], *, pruned: bool = False) -> None:
        self._halving.tell(self._trial, late_loss(losses) if len(losses) else None, pruned=pruned)


def import_optuna() -> Any:
    """Optuna, which does not log here. Raises DesatError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise DesatError("desat cure searches with Optuna: install it with `pip install 'desat[cure]'`") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
