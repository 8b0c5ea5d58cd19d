from pathlib import Path

import numpy as np

from desat.cure.curves import MOST_POINTS, loss_curves
from desat.cure.proof import Result, Run, Tried
from desat.cure.trial import Outcome, Plan
from desat.diagnose.finding import Diagnosis
from desat.watch.script import Script


def run(losses: list[float], seed: int = 0) -> Run:
    plan = Plan(Script("train.py", False, ()), (), seed, len(losses), 1.0)
    place = Path("nowhere")
    return Run(Outcome(plan, place, place, "stopped", 0, np.array(losses, np.float64), 1.0), (), None)


def result(baseline: dict[int, Run], **tried: dict[int, Run]) -> Result:
    ones = tuple(Tried((name,), runs, None, "", (), ()) for name, runs in tried.items())
    return Result(Diagnosis("run", 1, 1, 0.0, ()), baseline, ones, None, False, 1.0, 1)


def test_losses_are_kept_by_seed_the_baseline_first_and_what_is_not_finite_is_null() -> None:
    found = loss_curves(result({1: run([2.0], 1), 0: run([1.0, np.nan, np.inf])}, b={0: run([])}, a={0: run([0.5])}))
    assert found == [
        {
            "apply": [],
            "runs": [
                {"seed": 0, "steps": [0, 1, 2], "losses": [1.0, None, None]},
                {"seed": 1, "steps": [0], "losses": [2.0]},
            ],
        },
        {"apply": ["b"], "runs": [{"seed": 0, "steps": [], "losses": []}]},
        {"apply": ["a"], "runs": [{"seed": 0, "steps": [0], "losses": [0.5]}]},
    ]


def test_long_curves_are_thinned_alike() -> None:
    losses = np.arange(3 * MOST_POINTS - 1.0)
    baseline, short = loss_curves(result({0: run(list(losses))}, a={0: run(list(losses[:700]))}))
    kept = baseline["runs"][0]
    assert kept["steps"] == kept["losses"] == list(range(0, 3 * MOST_POINTS - 1, 3))
    assert len(kept["steps"]) == MOST_POINTS
    assert short["runs"][0]["steps"] == list(range(0, 700, 3))
    whole = loss_curves(result({0: run(list(losses[:MOST_POINTS]))}))
    assert whole[0]["runs"][0]["losses"] == list(losses[:MOST_POINTS])
