"""What the trials of a search have shown: each candidate judged, the one that is chosen, and the document of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from desat.cure.candidates import Candidate, family_of
from desat.cure.judgement import SMALLEST_EFFECT, Judgement, Measure, Pair, judge, late_loss
from desat.cure.trial import Outcome, why_failed
from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Severity
from desat.errors import DesatError
from desat.record.reader import Record

SCHEMA = 1

LEFT = " left as it is: "
"""In a change that was refused, between what it is of and the reason (desat.cure.family.Change)."""

WRONG_LOSS = "mismatched-loss"
"""The finding whose cure changes what the loss means. That cure is proved by the finding gone, none new, and a loss
that falls in its own meaning: a wrong loss gives no better proof, unless the script reports a metric."""

LEARNING_PARTS = 8
"""The first of so many parts of a trial is where its loss starts from."""

LEARNING_FALL = 0.05
"""Share of it by which the loss of a trial that learns comes down; the noise of a mean of batches is less."""

SIMPLER_WITHIN = 0.05
"""A remedy of fewer changes is chosen if its effect falls behind the best one's by no more than this share."""


@dataclass(frozen=True)
class Run:
    """A trial that was run, with what its record and its output tell. diagnosis: None where nothing was measured."""

    outcome: Outcome
    metrics: tuple[float, ...]
    diagnosis: Diagnosis | None

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end, by itself or at the limit."""
        return self.outcome.ending in ("finished", "stopped")

    def codes(self, *severities: Severity) -> tuple[str, ...]:
        return self.diagnosis.codes(*severities) if self.diagnosis is not None else ()


@dataclass(frozen=True)
class Tried:
    """A candidate, its runs by seed, and what they prove.

    judgement: None where nothing could be compared. gone: codes of errors and warnings that are found no more; new: of
    errors that were not there before. healed: of the errors that are gone, where none is new.
    """

    candidate: Candidate
    runs: Mapping[int, Run]
    judgement: Judgement | None
    reason: str
    gone: tuple[str, ...]
    new: tuple[str, ...]
    healed: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.judgement is not None and not self.reason

    @property
    def rights_the_loss(self) -> bool:
        """Whether it is accepted because the loss was a wrong one; it has no effect that could be compared."""
        return self.accepted and WRONG_LOSS in self.gone and _redefines_loss(self.runs)

    @property
    def changes_something(self) -> bool:
        return not _refusal(self.runs)

    @property
    def effect(self) -> float:
        """-infinity where there is none."""
        effect = self.judgement.effect if self.judgement is not None else math.nan
        return -math.inf if math.isnan(effect) else effect


@dataclass(frozen=True)
class Result:
    """What a search has found.

    diagnosis: what the candidates come from. baseline: by seed. tried: the best first. edits: where the chosen change
    is to be written, as its record says.
    """

    diagnosis: Diagnosis
    baseline: Mapping[int, Run]
    tried: tuple[Tried, ...]
    chosen: Tried | None
    interrupted: bool
    seconds: float
    steps: int

    @property
    def edits(self) -> list[Any]:
        return list(self._notes.get("edits") or [])

    @property
    def sources(self) -> dict[str, str]:
        """By file that the edits are of: its fingerprint when they were found."""
        return dict(self._notes.get("sources") or {})

    @property
    def by_hand(self) -> tuple[str, ...]:
        """Those of the chosen remedies that the edits hold only in part or not at all."""
        candidate = self.chosen.candidate if self.chosen is not None else ()
        if (noted := self._notes.get("by_hand")) is None:
            return () if self.edits else candidate
        families = {family_of(str(remedy)) for remedy in noted}
        return tuple(remedy for remedy in candidate if family_of(remedy) in families)

    @property
    def _notes(self) -> Mapping[str, Any]:
        return _first_run(self.chosen).outcome.notes if self.chosen is not None else {}

    @property
    def applied(self) -> tuple[str, ...]:
        return _first_run(self.chosen).outcome.applied if self.chosen is not None else ()


def look_into(outcome: Outcome, metrics: tuple[float, ...]) -> Run:
    """A trial with its findings."""
    diagnosis = None
    if outcome.steps:
        try:
            with Record(outcome.directory) as record:
                diagnosis = diagnose(record)
        except DesatError:
            pass
    return Run(outcome, metrics, diagnosis)


def prove(
    candidate: Candidate, runs: Mapping[int, Run], baseline: Mapping[int, Run], *, minimize_metric: bool = False
) -> Tried:
    """Judge a candidate by the seeds that were run with it and without. A trial that was cut short proves nothing.

    What is accepted is better by its measure, or makes an error go and is no worse: what is wrong with a batch
    normalization's statistics, say, does not show in the training loss.
    """
    seeds = [seed for seed in sorted(runs) if seed in baseline and runs[seed].outcome.ending != "interrupted"]
    errors_before = {code for run in baseline.values() for code in run.codes("error")}
    ended = [run for run in runs.values() if run.is_whole]
    still = {code for run in ended for code in run.codes("error", "warning")}
    new = tuple(dict.fromkeys(code for run in ended for code in run.codes("error") if code not in errors_before))
    gone = tuple(code for code in baseline[0].codes("error", "warning") if code not in still) if ended else ()
    judgement = None
    compared = [seed for seed in seeds if runs[seed].outcome.steps and baseline[seed].outcome.steps]
    if compared:
        judgement = judge(
            [_pair(baseline[seed], runs[seed]) for seed in compared],
            minimize_metric=minimize_metric,
            comparable=not _redefines_loss(runs),
            new_errors=new,
        )
    reason = (
        _refusal(runs)
        or _unfinished([runs[seed] for seed in seeds], baseline)
        or (judgement.reason if judgement is not None else "it was not tried to its end")
    )
    if reason.startswith("not comparable") and gone:
        reason += f"; gone with it: {', '.join(gone)}"
        if judgement is not None and WRONG_LOSS in gone and not new and all(map(_learns, ended)):
            judgement, reason = replace(judgement, effect=math.nan, interval=None), ""
    healed = tuple(code for code in baseline[0].codes("error") if code in gone) if not new else ()
    if judgement is not None and reason == judgement.reason and healed and _is_no_worse(judgement):
        reason = ""
    return Tried(candidate, dict(runs), judgement, reason, gone, new, healed)


def _is_no_worse(judgement: Judgement) -> bool:
    """Whether the measure, where it can be compared, is no worse than chance makes it."""
    return judgement.effect >= -SMALLEST_EFFECT[judgement.measure] * abs(judgement.without)


def _redefines_loss(runs: Mapping[int, Run]) -> bool:
    return any(run.outcome.notes.get("redefines_loss") for run in runs.values())


def _learns(run: Run) -> bool:
    """Whether a trial's loss, whatever it means, comes down."""
    losses = run.outcome.losses
    first = losses[: max(1, len(losses) // LEARNING_PARTS)]
    first = first[np.isfinite(first)]
    return bool(len(first)) and late_loss(losses) < first.mean() - LEARNING_FALL * abs(first.mean())


def confirmed(tried: Sequence[Tried]) -> list[Tried]:
    """The same, but what is good on one seed alone is no longer accepted where others were run with more."""
    if all(len(one.runs) == 1 for one in tried):
        return list(tried)
    reason = "good on one seed, but not among the best, and so not confirmed"
    doubtful = [one.accepted and len(one.runs) == 1 and not one.rights_the_loss for one in tried]
    return [replace(one, reason=reason) if doubt else one for one, doubt in zip(tried, doubtful, strict=True)]


def choose(tried: Sequence[Tried]) -> Tried | None:
    """The best of the accepted; a simpler one that is as good is better. None helped: None.

    One that rights the loss comes before all others: of a wrong loss less is not better. Then those that make an error
    go: the others leave the cause where it is.
    """
    accepted = [one for one in tried if one.accepted]
    if not accepted:
        return None
    righted = [one for one in accepted if one.rights_the_loss]
    if righted:
        return min(righted, key=lambda one: len(one.candidate))
    accepted = [one for one in accepted if one.healed] or accepted
    best = max(one.effect for one in accepted)
    if math.isinf(best):  # without them there is no finite loss at all
        return min((one for one in accepted if one.effect == best), key=lambda one: (len(one.candidate), _value(one)))
    as_good = [one for one in accepted if one.effect >= best - SIMPLER_WITHIN * abs(best)]
    return min(as_good, key=lambda one: (len(one.candidate), -one.effect))


def _value(one: Tried) -> float:
    return one.judgement.value if one.judgement is not None else math.inf


def in_order(tried: Sequence[Tried]) -> tuple[Tried, ...]:
    """The one to choose first, then the others that are accepted, then those that came to an end; each by effect."""
    best = choose(tried)
    whole = {id(one): all(run.is_whole for run in one.runs.values()) for one in tried}
    return tuple(sorted(tried, key=lambda one: (one is not best, not one.accepted, not whole[id(one)], -one.effect)))


def document(result: Result, diff: str | None) -> dict[str, Any]:
    """The JSON document of `desat cure`, schema 1. Numbers that JSON has no word for become null."""
    first = result.baseline[0]
    candidate = result.chosen.candidate if result.chosen is not None else ()
    return {
        "schema": SCHEMA,
        "baseline": {
            "verdict": result.diagnosis.verdict,
            "findings": [_finding(finding) for finding in result.diagnosis.findings],
            "metric": _finite(_own_value(result.baseline, result.tried)),
            "measure": _measure(result.tried),
            "steps": first.outcome.steps,
            "seconds": round(first.outcome.seconds, 3),
            "seeds": _counted(result.baseline),
            "ending": first.outcome.ending,
        },
        "trials": [_trial(one) for one in result.tried],
        "chosen": list(candidate) or None,
        "diff": diff,
        "by_hand": list(result.by_hand if diff or not result.edits else candidate),
        "applied": list(result.applied),
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
    }


def _counted(runs: Mapping[int, Run]) -> list[int]:
    """The seeds of the runs that can be compared."""
    return [seed for seed in sorted(runs) if runs[seed].outcome.steps and runs[seed].outcome.ending != "interrupted"]


def _trial(one: Tried) -> dict[str, Any]:
    judged = one.judgement
    interval = judged.interval if judged is not None else None
    return {
        "apply": list(one.candidate),
        "metric": _finite(judged.value) if judged is not None else None,
        "effect": _finite(judged.effect) if judged is not None else None,
        "interval": list(interval) if interval is not None else None,
        "accepted": one.accepted,
        "measure": judged.measure if judged is not None else None,
        "without": _finite(judged.without) if judged is not None else None,
        "reason": one.reason or None,
        "findings_gone": list(one.gone),
        "findings_new": list(one.new),
        "seeds": _counted(one.runs),
        "steps": max((run.outcome.steps for run in one.runs.values()), default=0),
        "seconds": round(sum(run.outcome.seconds for run in one.runs.values()), 3),
        "ending": _first_run(one).outcome.ending,
    }


def _finding(finding: Any) -> dict[str, Any]:
    return {"code": finding.code, "severity": finding.severity, "site": finding.site, "cause": finding.cause}


def _pair(without: Run, run: Run) -> Pair:
    return Pair((without.outcome.losses, run.outcome.losses), (without.metrics, run.metrics))


def _refusal(runs: Mapping[int, Run]) -> str:
    """Why a candidate's remedies changed nothing; empty if they did something."""
    applied = runs[min(runs)].outcome.applied
    if applied and all(LEFT in change for change in applied):
        return f"it changes nothing: {applied[0].partition(LEFT)[2]}"
    return ""


def _unfinished(runs: Sequence[Run], baseline: Mapping[int, Run]) -> str:
    """Why a candidate's trials do not count; empty if they do. One that ends as the baseline does counts."""
    for run in runs:
        twin = baseline[run.outcome.plan.seed]
        if not run.is_whole and (twin.is_whole or run.outcome.ending == "pruned"):
            return why_failed(run.outcome)
        if run.outcome.ending == "no steps":
            return why_failed(run.outcome)
    return ""


def _first_run(one: Tried) -> Run:
    return one.runs[min(one.runs)]


def _measure(tried: Sequence[Tried]) -> Measure | None:
    return next((one.judgement.measure for one in tried if one.judgement is not None), None)


def _own_value(baseline: Mapping[int, Run], tried: Sequence[Tried]) -> float:
    """The baseline beside itself, in the measure of the trials."""
    seen = prove((), baseline, baseline).judgement
    wanted = next((one.judgement for one in tried if one.judgement is not None), None)
    if wanted is not None and (seen is None or seen.measure != wanted.measure):
        return wanted.without
    return seen.value if seen is not None else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
