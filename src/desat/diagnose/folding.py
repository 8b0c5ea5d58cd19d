"""One disease, one finding: consequences are folded under what caused them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from desat.diagnose.finding import SEVERITIES, Finding

OVERFLOW = "non-finite"
EXPLOSION = "exploding-gradient"


def _always(effect: Finding, cause: Finding) -> bool:
    return True


def _lost_in_nonlinearities(effect: Finding, cause: Finding) -> bool:
    """Units that pass nothing explain a lost gradient only where it is lost in them."""
    return effect.evidence.get("nonlinearity_share", 1.0) >= 0.5


def _lost_in_weights(effect: Finding, cause: Finding) -> bool:
    """Weights too small for the signal leave each unit to its bias, on or off whatever the sample."""
    return not _lost_in_nonlinearities(cause, effect)


@dataclass(frozen=True)
class Explanation:
    """A finding of code `effect` is a consequence of an error of code `cause`, if `applies(effect, cause)`."""

    effect: str
    cause: str
    applies: Callable[[Finding, Finding], bool] = _always


EXPLANATIONS = (
    Explanation("dead-units", EXPLOSION),
    Explanation("dead-units", OVERFLOW),
    Explanation("dead-units", "vanishing-gradient", _lost_in_weights),
    Explanation("saturated-activation", OVERFLOW),
    Explanation("vanishing-gradient", OVERFLOW),
    Explanation("vanishing-gradient", "saturated-activation", _lost_in_nonlinearities),
    Explanation("vanishing-gradient", "dead-units", _lost_in_nonlinearities),
    Explanation("loss-plateau", EXPLOSION),
    Explanation("loss-plateau", OVERFLOW),
    Explanation("loss-plateau", "dead-units"),
    Explanation("loss-plateau", "saturated-activation"),
    Explanation("loss-plateau", "vanishing-gradient"),
)
"""No chain of these leads back to where it began, so that something is always left to fix."""


def fold(findings: Sequence[Finding]) -> list[Finding]:
    """What another error explains becomes a note that points to it; an overflow joins the explosion it ends."""
    merged = _merge_overflow(list(findings))
    errors = {finding.code: finding for finding in merged if finding.severity == "error"}
    return [_as_consequence(finding, errors) for finding in merged]


def order(findings: Sequence[Finding], codes: Sequence[str]) -> tuple[Finding, ...]:
    """By severity, then by what to fix first: `codes` in that order."""
    rank = {code: place for place, code in enumerate(codes)}
    return tuple(
        sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), rank.get(finding.code, len(rank))))
    )


def _as_consequence(finding: Finding, errors: dict[str, Finding]) -> Finding:
    if finding.severity == "note":
        return finding
    for explanation in EXPLANATIONS:
        cause = errors.get(explanation.cause) if explanation.effect == finding.code else None
        if cause is not None and cause.first_step <= finding.last_step and explanation.applies(finding, cause):
            return replace(finding, severity="note", cause=f"a consequence of {cause.code}", remedies=cause.remedies)
    return finding


def _merge_overflow(findings: list[Finding]) -> list[Finding]:
    """An explosion that ends in nan is one disease: the overflow becomes part of the explosion's evidence."""
    by_code = {finding.code: finding for finding in findings}
    explosion, overflow = by_code.get(EXPLOSION), by_code.get(OVERFLOW)
    if explosion is None or overflow is None or overflow.severity != "error":
        return findings
    if explosion.first_step > overflow.first_step:
        return findings
    merged = replace(
        explosion,
        severity="error",
        last_step=max(explosion.last_step, overflow.last_step),
        message=f"{explosion.message} The numbers overflowed at step {overflow.first_step}.",
        evidence=explosion.evidence | {"nonfinite_since": float(overflow.first_step)},
    )
    return [merged if finding is explosion else finding for finding in findings if finding is not overflow]
