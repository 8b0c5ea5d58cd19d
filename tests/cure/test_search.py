"""The search over trials that are made up: what is tried, what stops, what is chosen.

Whole scripts are searched in tests/cli/test_cure.py.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.cure import candidates
from desat.cure.halving import Halving
from desat.cure.judgement import Judgement
from desat.cure.metric import Logged
from desat.cure.proof import Result, Tried, confirmed, document
from desat.cure.search import BaselineError, Limits, State, Wish, search
from desat.cure.trial import Ending, Outcome, Plan, Watch
from desat.diagnose.finding import Diagnosis, Finding
from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.rows import Metric
from desat.watch.script import Script
from tests.records import deep_network, write_record

SCRIPT = Script("train.py", False)
GENERAL = ("activation=relu", "initialization=he", "initialization=xavier")


@pytest.fixture(autouse=True)
def few_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "GENERAL", GENERAL)


class Laboratory:
    """Makes up a trial: a sick network whose loss falls by what the remedies are worth; keeps the plans."""

    def __init__(self, worth: dict[str, float], *, ending: Ending = "stopped", steps: int | None = None) -> None:
        self.worth = worth
        self.ending = ending
        self.steps = steps
        self.plans: list[Plan] = []
        self.raises: Exception | None = None
        self.seconds = 0.0
        self.refused: set[str] = set()
        self.redefining: set[str] = set()
        self.metrics: Callable[[Plan], dict[str, float]] = lambda plan: {}
        self._lock = threading.Lock()

    def __call__(self, plan: Plan, place: Path, watch: Watch, stop: threading.Event) -> Outcome:
        with self._lock:
            self.plans.append(plan)
        if self.raises is not None and plan.remedies:
            raise self.raises
        steps = plan.steps if self.steps is None else min(self.steps, plan.steps)
        fall = sum(self.worth.get(remedy, 0.0) for remedy in plan.remedies)
        losses = np.linspace(2.3, 2.3 - fall, steps) + 0.01 * plan.seed if steps else np.empty(0)
        ending: Ending = self.ending
        for shown in range(5, steps, 5):
            time.sleep(self.seconds / steps)
            if watch(losses[:shown]):
                ending, losses = "pruned", losses[:shown]
                break
        place.mkdir(parents=True)
        sick = {} if fall > 0.5 else {"layer_gain": 0.2}
        rows = deep_network(layers=12, steps=range(0, max(len(losses), 1), 10), loss=lambda step: 2.3, **sick)  # pyright: ignore
        told = [Metric(name, 0, value, 0.0) for name, value in self.metrics(plan).items()]
        write_record(place / "record", [*rows, *told]).close()
        words = [
            "net: the layer left as it is: no weights" if r in self.refused else f"net: {r}" for r in plan.remedies
        ]
        notes = {"applied": words, "redefines_loss": not self.redefining.isdisjoint(plan.remedies)}
        (place / "output.txt").write_text("")
        code = 1 if ending == "failed" else 0
        return Outcome(plan, place / "record", place / "output.txt", ending, code, losses, 0.1, ("Boom: x",), notes)


FORTY = Limits(40)
AS_USUAL = Wish()


def run(laboratory: Laboratory, tmp_path: Path, limits: Limits = FORTY, wish: Wish = AS_USUAL, **options) -> Result:
    return search(SCRIPT, tmp_path / "trials", limits=limits, wish=wish, executor=laboratory, **options)


def test_a_remedy_that_helps_is_chosen_after_all_seeds(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.5})
    result = run(laboratory, tmp_path)
    assert result.chosen is not None
    assert result.chosen.candidate == ("activation=relu",)
    assert sorted(result.chosen.runs) == sorted(result.baseline) == [0, 1, 2]
    assert result.chosen.judgement is not None
    assert result.chosen.judgement.interval is not None
    assert result.chosen.gone == ("vanishing-gradient",)
    assert result.applied == ("net: activation=relu",)
    assert result.steps == sum(len(one) for one in _losses(result)) <= 40 * len(laboratory.plans)


def _losses(result: Result) -> list[np.ndarray]:
    runs = [*result.baseline.values(), *(run for one in result.tried for run in one.runs.values())]
    return [run.outcome.losses for run in runs]


def test_two_remedies_that_help_together_are_found(tmp_path: Path) -> None:
    result = run(Laboratory({"activation=relu": 0.5, "initialization=xavier": 0.6}), tmp_path)
    assert result.chosen is not None
    assert set(result.chosen.candidate) == {"activation=relu", "initialization=xavier"}


def test_of_equals_the_simpler_is_chosen(tmp_path: Path) -> None:
    result = run(Laboratory({"activation=relu": 1.0, "initialization=he": 0.001}), tmp_path)
    assert result.chosen is not None
    assert result.chosen.candidate == ("activation=relu",)


def test_that_nothing_helps_is_an_answer(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": -0.5})
    result = run(laboratory, tmp_path)
    assert result.chosen is None
    assert {reason for one in result.tried if (reason := one.reason)}
    assert document(result, None)["chosen"] is None
    assert {plan.seed for plan in laboratory.plans} == {0}


def test_a_remedy_that_changes_nothing_says_why_and_is_not_combined(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.0})
    laboratory.refused = {"initialization=he"}
    result = run(laboratory, tmp_path)
    idle = next(one for one in result.tried if one.candidate == ("initialization=he",))
    assert idle.reason == "it changes nothing: no weights"
    assert not idle.accepted


def test_a_loss_that_means_something_else_is_not_accepted(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.5})
    laboratory.redefining = {"activation=relu"}
    result = run(laboratory, tmp_path)
    assert result.chosen is None
    changed = next(one for one in result.tried if one.candidate == ("activation=relu",))
    assert changed.reason.startswith("not comparable: ")
    assert changed.reason.endswith("gone with it: vanishing-gradient")


def test_what_is_good_on_one_seed_is_not_accepted_where_others_are_confirmed() -> None:
    good = Judgement("loss", 1.0, 2.3, 1.3, None, "")
    run: Any = None
    once = Tried(("activation=relu",), {0: run}, good, "", (), ())
    worse = Tried(("initialization=he",), {0: run}, good, "worse with it", (), ())
    often = Tried(("clipping=norm:1",), {0: run, 1: run}, good, "", (), ())
    assert [one.accepted for one in confirmed([once, worse, often])] == [False, False, True]
    assert [one.reason for one in confirmed([once, worse, often])][1] == "worse with it"
    assert [one.accepted for one in confirmed([once, worse])] == [True, False]


def test_no_trial_comes_twice_and_each_is_paired_by_seed(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 0.5, "initialization=he": 0.4, "initialization=xavier": 0.3})
    run(laboratory, tmp_path, Limits(40, jobs=3))
    asked = Counter((frozenset(plan.remedies), plan.seed) for plan in laboratory.plans)
    assert set(asked.values()) == {1}
    assert {seed for remedies, seed in asked if not remedies} >= {seed for _, seed in asked}


def test_who_falls_behind_is_stopped_at_a_rung(tmp_path: Path) -> None:
    result = run(
        Laboratory({"activation=relu": 1.5, "initialization=he": 1.4, "initialization=xavier": -1.0}), tmp_path
    )
    behind = next(one for one in result.tried if one.candidate == ("initialization=xavier",))
    assert behind.runs[0].outcome.ending == "pruned"
    assert behind.runs[0].outcome.steps < 40
    assert "others did better" in behind.reason


def test_one_seed_asks_for_a_larger_effect_and_no_confirmation(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 0.2})
    result = run(laboratory, tmp_path, Limits(40, seeds=1))
    assert result.chosen is None
    assert {plan.seed for plan in laboratory.plans} == {0}
    assert run(Laboratory({"activation=relu": 1.5}), tmp_path / "more", Limits(40, seeds=1)).chosen is not None


def test_the_steps_of_all_trials_keep_their_limit(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.0})
    result = run(laboratory, tmp_path, Limits(40, all_steps=240, jobs=2))
    assert 120 <= result.steps <= 240
    assert {plan.seed for plan in laboratory.plans} > {0}, "steps were kept for the confirmation"
    with pytest.raises(DesatError, match="--max-steps 30 is less than the 40"):
        run(Laboratory({}), tmp_path / "less", Limits(40, all_steps=30))


def test_trials_are_no_longer_than_the_script(tmp_path: Path) -> None:
    laboratory = Laboratory({}, ending="finished", steps=20)
    run(laboratory, tmp_path)
    assert [plan.steps for plan in laboratory.plans][:2] == [40, 20]


def test_time_that_is_up_ends_the_search_with_what_there_is(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.0})
    laboratory.seconds = 1.5
    result = run(laboratory, tmp_path, Limits(40, seconds=2.0))
    assert result.seconds < 10.0
    assert len(laboratory.plans) < 12
    assert not result.interrupted


def test_an_interrupted_search_gives_the_best_so_far(tmp_path: Path) -> None:
    stop = threading.Event()

    def tell(state: State) -> None:
        if state.phase == "confirmation":
            stop.set()

    laboratory = Laboratory({"activation=relu": 1.5})
    result = run(laboratory, tmp_path, tell=tell, stop=stop)
    assert result.interrupted
    assert result.chosen is not None
    assert len(result.chosen.runs) < 3


def test_a_healthy_network_is_left_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory = Laboratory({})
    monkeypatch.setattr("desat.cure.proof.diagnose", _healthy)
    assert run(laboratory, tmp_path).tried == ()
    assert len(laboratory.plans) == 1
    assert len(run(laboratory, tmp_path / "forced", wish=Wish(force=True)).tried) >= 3


def _healthy(record: Record):
    from desat.diagnose.finding import Diagnosis

    return Diagnosis(record.name, 40, 4, 0.0, ())


@pytest.mark.parametrize(
    ("ending", "steps", "message"),
    [
        ("failed", 0, "ended with exit code 1 before its first step: Boom: x"),
        ("timed out", 0, "stopped after 150 s, before its first step; give it more --time"),
        ("no steps", 0, "without a training step"),
        ("finished", 3, "it does 3 steps, and at least 4 are needed"),
    ],
)
def test_a_script_that_cannot_be_tried_is_refused(ending: Ending, steps: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DesatError, match="cannot be tried") as refused:
        run(Laboratory({}, ending=ending, steps=steps), tmp_path)
    assert message in str(refused.value)
    assert isinstance(refused.value, BaselineError) == (ending == "failed")


def test_an_error_of_the_executor_comes_out_and_the_others_are_told_to_stop(tmp_path: Path) -> None:
    laboratory = Laboratory({})
    laboratory.raises = OSError("no space left")
    stop = threading.Event()
    with pytest.raises(OSError, match="no space left"):
        run(laboratory, tmp_path, stop=stop)
    assert stop.is_set()


def accuracies(plan: Plan) -> dict[str, float]:
    return {
        "val_accuracy": 0.8 if "initialization=he" in plan.remedies else 0.3,
        "perplexity": 5.0 - len(plan.remedies),
    }


def test_remedies_are_judged_by_the_metric_that_the_script_logs(tmp_path: Path) -> None:
    laboratory = Laboratory({})  # no loss falls
    laboratory.metrics = accuracies
    found = document(run(laboratory, tmp_path), None)
    assert found["chosen"] == ["initialization=he"]
    assert (found["baseline"]["measure"], found["baseline"]["metric"]) == ("metric", 0.3)


def test_the_metric_that_is_asked_for_by_its_name_is_taken_and_may_be_better_with_less(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.5})
    laboratory.metrics = accuracies
    result = run(laboratory, tmp_path, wish=Wish(metric=Logged("perplexity"), minimize_metric=True))
    assert document(result, None)["baseline"]["metric"] == 5.0
    judged = [one.judgement for one in result.tried if len(one.candidate) == 1]
    assert [(one.measure, one.value, one.effect > 0) for one in judged if one] == [("metric", 4.0, True)] * len(judged)


def test_a_metric_that_a_trial_lacks_is_not_replaced_by_another_one(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.5})
    laboratory.metrics = lambda plan: {"accuracy": 0.9} if plan.remedies else {"val_accuracy": 0.3}
    result = run(laboratory, tmp_path)
    assert {one.judgement.measure for one in result.tried if one.judgement} == {"loss"}


def test_a_name_that_is_never_logged_ends_the_search(tmp_path: Path) -> None:
    laboratory = Laboratory({"activation=relu": 1.5})
    laboratory.metrics = accuracies
    with pytest.raises(DesatError, match=r"--metric 'f1': .*it logs 'perplexity', 'val_accuracy'"):
        run(laboratory, tmp_path, wish=Wish(metric=Logged("f1")))
    assert len(laboratory.plans) == 1


def test_progress_is_told(tmp_path: Path) -> None:
    states: list[State] = []
    run(Laboratory({"activation=relu": 1.0}), tmp_path, tell=states.append)
    assert [state.phase for state in states if state.done == state.planned and not state.running][-1] == "confirmation"
    assert states[0] == State("baseline", 0, 1, ((),))
    assert all(state.done <= state.planned for state in states)


def test_the_document_has_what_is_promised(tmp_path: Path) -> None:
    found = document(run(Laboratory({"activation=relu": 1.5}), tmp_path), "--- a")
    assert found["schema"] == 1
    assert {"baseline", "trials", "chosen", "diff"} <= found.keys()
    best = next(trial for trial in found["trials"] if trial["apply"] == found["chosen"])
    assert found["chosen"] == ["activation=relu"]
    assert best["accepted"] is True
    assert best["interval"][0] <= best["effect"] <= best["interval"][1]
    assert best["metric"] < found["baseline"]["metric"]
    assert found["diff"] == "--- a"


def test_halving_keeps_the_better_half_at_each_rung() -> None:
    singles = [(f"activation={name}",) for name in "abcdefgh"]
    halving = Halving(80)
    halving.enqueue(singles)
    assert halving.rungs == [20, 40]
    kept = []
    for loss in (1.0, 5.0, 2.0, 6.0, 0.5, 7.0, 0.4, 8.0):
        contender = halving.next()
        assert contender is not None
        losses = np.full(30, loss)
        pruned = contender.is_beaten(losses)
        contender.tell(losses, pruned=pruned)
        kept.append(not pruned)
    assert kept == [True, False, False, False, True, False, True, False]
    assert halving.next() is None


def test_a_loss_that_means_something_else_is_not_halved() -> None:
    halving = Halving(80)
    halving.enqueue([("activation=relu",), ("loss=logits",)])
    first, second = halving.next(), halving.next()
    assert first is not None
    assert second is not None
    assert not first.is_beaten(np.full(30, 1.0))
    second.judged_by_loss = False
    assert not second.is_beaten(np.full(30, 9.0))


def test_a_general_candidate_that_is_no_better_than_the_script_is_stopped() -> None:
    singles = [("activation=relu",), ("optimizer=adam",), ("clipping=1.0",)]
    halving = Halving(80, general={("optimizer=adam",), ("clipping=1.0",)}, baseline=np.full(80, 1.0))
    halving.enqueue(singles)
    ended = []
    for loss in (1.0, 1.0, 0.9):
        contender = halving.next()
        assert contender is not None
        ended.append(contender.is_beaten(np.full(30, loss)))
        contender.tell(np.full(30, loss), pruned=ended[-1])
    assert ended == [False, True, False]


def test_where_the_script_diverges_nothing_is_stopped_for_being_no_better() -> None:
    halving = Halving(80, general={("optimizer=adam",)}, baseline=np.full(80, np.nan))
    halving.enqueue([("optimizer=adam",)])
    contender = halving.next()
    assert contender is not None
    assert not contender.is_beaten(np.full(30, 5.0))


def test_an_error_that_may_lie_in_the_rate_asks_for_a_range_test(tmp_path: Path) -> None:
    error = Finding("update-too-small", "error", None, (), None, 0, 1, "cause", "message", remedies=("optimizer=adam",))
    laboratory = Laboratory({"activation=relu": 1.5})
    result = run(laboratory, tmp_path, wish=Wish(diagnosis=Diagnosis("run", 40, 4, 0.0, (error,))))
    assert [plan.remedies for plan in laboratory.plans][:3] == [(), ("optimizer=adam",), ("optimizer=range:40",)]
    assert not any("optimizer=range" in remedy for one in result.tried for remedy in one.candidate)
