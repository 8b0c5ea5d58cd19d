"""What the trials prove, over outcomes that are made up."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.cure.proof import Result, Run, Tried, choose, confirmed, document, in_order, prove
from desat.cure.trial import Ending, Outcome, Plan
from desat.diagnose.finding import Diagnosis, Finding
from desat.watch.script import Script

SCRIPT = Script("train.py", False)
STEPS = 40
NAN = math.nan


def run(
    end: float,
    *,
    start: float = 2.0,
    seed: int = 0,
    ending: Ending = "stopped",
    steps: int = STEPS,
    errors: tuple[str, ...] = (),
    metrics: tuple[float, ...] = (),
    **notes: Any,
) -> Run:
    """A trial whose loss goes from `start` to `end` in a straight line."""
    findings = tuple(Finding(code, "error", None, (), None, 0, 9, "a cause", "a message") for code in errors)
    losses = np.linspace(start, end, steps) if math.isfinite(end) else np.full(steps, end)
    code = 1 if ending == "failed" else 0
    outcome = Outcome(
        Plan(SCRIPT, (), seed, STEPS, 60.0), Path("record"), Path("output"), ending, code, losses, 1.0, ("Boom",), notes
    )
    return Run(outcome, metrics, Diagnosis("run", steps, steps, 0.0, findings))


def baseline(*errors: str, end: float = 2.0, seeds: int = 1, metrics: tuple[float, ...] = ()) -> dict[int, Run]:
    return {seed: run(end, seed=seed, errors=errors, metrics=metrics) for seed in range(seeds)}


def tried(name: str, end: float, *, seeds: int = 1, without: dict[int, Run] | None = None, **values: Any) -> Tried:
    runs = {seed: run(end + 0.01 * seed, seed=seed, **values) for seed in range(seeds)}
    return prove(tuple(name.split("+")), runs, without or baseline("dead-units", seeds=seeds))


def righted(**values: Any) -> Tried:
    """`loss=logits`, where the loss was a wrong one."""
    defaults: dict[str, Any] = {"end": 1.0, "without": baseline("mismatched-loss"), "redefines_loss": True}
    return tried("loss=logits", **defaults | values)


def result(*all_tried: Tried, without: dict[int, Run] | None = None) -> Result:
    ordered = in_order(all_tried)
    before = without or baseline("dead-units")
    diagnosis = before[0].diagnosis
    assert diagnosis is not None
    return Result(diagnosis, before, ordered, choose(ordered), False, 1.0, STEPS)


def test_a_lower_loss_is_accepted_with_the_findings_that_are_gone() -> None:
    one = tried("activation=relu", 0.5)
    assert one.accepted
    assert one.gone == ("dead-units",)
    assert one.effect == pytest.approx(2.0 - np.linspace(2.0, 0.5, STEPS)[-10:].mean())


def test_a_new_error_is_not_accepted_and_one_that_was_there_is_none() -> None:
    assert tried("a=b", 0.5, errors=("exploding-gradient",)).reason == "a new error: exploding-gradient"
    assert tried("a=b", 0.5, errors=("dead-units",)).accepted


@pytest.mark.parametrize(
    ("ending", "reason"), [("pruned", "others did better"), ("timed out", "after 60 s"), ("failed", "exit code 1")]
)
def test_a_trial_that_was_cut_short_proves_nothing(ending: Ending, reason: str) -> None:
    one = tried("a=b", 0.1, ending=ending, steps=20)
    assert not one.accepted
    assert reason in one.reason
    assert one.gone == ()


def test_a_trial_that_ends_as_the_baseline_does_counts() -> None:
    without = {0: run(2.0, ending="failed", errors=("dead-units",))}
    assert tried("a=b", 0.5, ending="failed", without=without).accepted


def test_a_loss_that_diverges_with_it_is_not_accepted_and_one_that_no_longer_does_is() -> None:
    assert tried("a=b", math.inf).reason == "the loss diverged with it"
    assert tried("a=b", 1.9, without={0: run(NAN, start=NAN, errors=("non-finite",))}).accepted


def test_one_that_changed_nothing_says_why() -> None:
    one = tried("a=b", 0.5, applied=["net: the layer left as it is: no weights"])
    assert (one.accepted, one.changes_something) == (False, False)
    assert one.reason == "it changes nothing: no weights"


def test_of_seeds_that_have_no_pair_nothing_is_told() -> None:
    one = prove(("a=b",), {0: run(0.5), 1: run(9.0, seed=1), 2: run(0.0, seed=2, ending="interrupted")}, baseline())
    assert one.judgement is not None
    assert one.judgement.interval is None
    assert one.accepted


def test_a_wrong_loss_that_is_righted_is_accepted_without_an_effect() -> None:
    one = righted()
    assert one.accepted
    assert one.rights_the_loss
    assert one.effect == -math.inf


@pytest.mark.parametrize(
    "one",
    [
        righted(errors=("mismatched-loss",)),
        righted(errors=("exploding-gradient",)),
        righted(end=2.0),
        righted(end=3.0),
        righted(ending="pruned"),
        righted(without=baseline("dead-units")),
    ],
    ids=["finding stays", "new error", "no fall", "rises", "cut short", "loss was right"],
)
def test_another_loss_is_not_accepted_where_anything_speaks_against_it(one: Tried) -> None:
    assert not one.accepted
    assert not one.rights_the_loss


def test_another_loss_is_judged_by_the_metric_where_there_is_one() -> None:
    without = baseline("mismatched-loss", metrics=(0.5, 0.6))
    assert righted(metrics=(0.5, 0.9), without=without).accepted
    assert righted(metrics=(0.5, 0.4), without=without).reason == "worse with it"


def test_what_rights_the_loss_comes_before_all_others() -> None:
    wrong = baseline("mismatched-loss")
    better, right = tried("activation=relu", 0.1, without=wrong), righted()
    both = righted()
    both = Tried(("loss=logits", "activation=relu"), both.runs, both.judgement, "", both.gone, ())
    assert better.accepted
    assert choose([better, both, right]) is right
    assert in_order([better, both, right])[0] is right


def test_of_equals_the_simpler_is_chosen_and_of_others_the_better() -> None:
    single, pair, poor = tried("a=b", 0.12), tried("a=b+c=d", 0.1), tried("e=f", 0.9)
    assert choose([poor, pair, single]) is single
    assert [one.candidate for one in in_order([poor, pair, single])] == [("a=b",), ("a=b", "c=d"), ("e=f",)]
    assert choose([poor, pair]) is pair
    assert choose([tried("a=b", 2.5)]) is None


def test_of_those_that_save_from_a_loss_that_was_never_finite_the_lower_loss_is_chosen() -> None:
    nothing = {0: run(NAN, start=NAN, errors=("non-finite",))}
    high, low = tried("a=b", 1.5, without=nothing), tried("c=d", 0.5, without=nothing)
    assert high.effect == low.effect == math.inf
    assert choose([high, low]) is low
    assert choose([high, low, tried("e=f+g=h", 0.1, without=nothing)]) is low


def test_what_is_good_on_one_seed_is_doubted_where_others_have_more_but_not_what_rights_the_loss() -> None:
    once, often, right = tried("a=b", 0.1), tried("c=d", 0.5, seeds=3), righted()
    first, second, third = confirmed([once, often, right])
    assert (first.accepted, second.accepted, third.accepted) == (False, True, True)
    assert "not confirmed" in first.reason
    assert confirmed([once])[0].accepted


def test_the_rejected_come_after_the_accepted_and_those_cut_short_last() -> None:
    short = tried("a=b", 0.1, ending="pruned", steps=20)
    worse, good = tried("c=d", 2.5), tried("e=f", 0.5)
    assert in_order([short, worse, good]) == (good, worse, short)


def test_a_document_is_json_whatever_the_numbers_are() -> None:
    nothing = {0: run(NAN, start=NAN, errors=("non-finite",))}
    found = document(result(tried("a=b", 0.5, without=nothing), righted(), without=nothing), None)
    json.loads(json.dumps(found, allow_nan=False))
    assert found["baseline"]["metric"] is None
    assert [trial["effect"] for trial in found["trials"]] == [None, None]


def test_a_document_says_what_is_to_be_done_by_hand() -> None:
    edit = {"file": "train.py", "line": 1, "column": 0, "end_line": 1, "end_column": 4, "text": "new"}
    part = tried("activation=relu+initialization=he", 0.5, edits=[edit], by_hand=["initialization=he"])
    assert document(result(part), "--- a")["by_hand"] == ["initialization=he"]
    assert document(result(part), None)["by_hand"] == ["activation=relu", "initialization=he"], "the diff was lost"
    whole = tried("activation=relu", 0.5, edits=[edit], by_hand=[])
    assert document(result(whole), "--- a")["by_hand"] == []
    assert document(result(tried("residual=skip", 0.5, by_hand=["residual=skip"])), None)["by_hand"] == [
        "residual=skip"
    ]
    assert document(result(tried("a=b", 3.0)), None)["by_hand"] == []
