"""One disease, one finding: consequences are folded under what caused them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from desat.diagnose.finding import SEVERITIES, Finding
from desat.diagnose.rule import BORN_BY

OVERFLOW = "non-finite"
EXPLOSION = "exploding-gradient"
LARGE_STEPS = "update-too-large"
LARGE_SIGNAL = "exploding-signal"
SHARP = "sharp-curvature"
SMALL_FORMAT = "low-precision-range"
BLOCKED_GATE = "saturated-gate"
OPTIMIZER = "degenerate-optimizer"
INPUT = "unscaled-input"
WRONG_LOSS = "mismatched-loss"
SYMMETRY = "symmetric-units"
UNTRAINED = "untrained-parameter"
IMBALANCE = "residual-imbalance"
SURE_OUTPUT = "saturated-output"
LOST_RANK = "collapsed-rank"


def _always(effect: Finding, cause: Finding) -> bool:
    return True


def _lost_in_nonlinearities(effect: Finding, cause: Finding) -> bool:
    """Units that pass nothing explain a lost gradient only where it is lost in them."""
    return effect.evidence.get("nonlinearity_share", 1.0) >= 0.5


def _lost_in_weights(effect: Finding, cause: Finding) -> bool:
    """Weights too small for the signal leave each unit to its bias, on or off whatever the sample."""
    return not _lost_in_nonlinearities(cause, effect)


def _later(effect: Finding, cause: Finding) -> bool:
    """What was there before, or from the same step on, is not its doing."""
    return effect.first_step > cause.first_step


def _not_before(effect: Finding, cause: Finding) -> bool:
    return not _later(cause, effect)


def _grew_over_time(effect: Finding, cause: Finding) -> bool:
    """A gradient that grows from step to step follows from the steps; one that grows over the depth was there first."""
    return "gradient_growth_db" in effect.evidence


def _follows_steps(effect: Finding, cause: Finding) -> bool:
    """What begins in the midst of a run with a large step follows from it, as the weights did."""
    began_together = effect.first_step == cause.first_step > BORN_BY
    return _grew_over_time(effect, cause) or _later(effect, cause) or began_together


def _precedes_steps(effect: Finding, cause: Finding) -> bool:
    return not _follows_steps(cause, effect)


def _ends_above_its_start(finding: Finding) -> bool:
    return finding.evidence.get("lost_again", 0.0) >= 1.0


def _swings_on_its_way_up(effect: Finding, cause: Finding) -> bool:
    """Of a loss that ends higher than it began the swings are no matter, unless it swung from the beginning."""
    return (_ends_above_its_start(cause) and effect.first_step > BORN_BY) or _not_before(effect, cause)


def _rises_by_swings(effect: Finding, cause: Finding) -> bool:
    return not _swings_on_its_way_up(cause, effect)


def _signal_grew_later(effect: Finding, cause: Finding) -> bool:
    return effect.evidence.get("since_initialization", 1.0) == 0.0


def _by_drawn_weights(effect: Finding, cause: Finding) -> bool:
    """Weights that were drawn too large make the signal grow, and with it all that comes back."""
    return not _signal_grew_later(cause, effect)


def _gradient_by_drawn_weights(effect: Finding, cause: Finding) -> bool:
    return _by_drawn_weights(effect, cause) and not _grew_over_time(effect, cause)


def _signal_lost_in_weights(effect: Finding, cause: Finding) -> bool:
    """Weights too small for the signal are too small for the gradient, and leave each unit to its bias."""
    return cause.evidence.get("lost_in_weights", 0.0) == 1.0


def _signal_squashed(effect: Finding, cause: Finding) -> bool:
    """What takes the gradient takes the signal: units that are flat where their inputs lie."""
    return not _signal_lost_in_weights(cause, effect)


def _steep_by_depth(effect: Finding, cause: Finding) -> bool:
    """A gradient that grows over the depth makes the loss sharp; one that grows over time follows from that."""
    return not _grew_over_time(cause, effect) and _not_before(effect, cause)


def _values_too_large(effect: Finding, cause: Finding) -> bool:
    return bool({"largest", "overflow_share"} & effect.evidence.keys())


def _small_gradients(effect: Finding, cause: Finding) -> bool:
    """An epsilon of the usual size outweighs only gradients that something else made too small."""
    return effect.evidence.get("small_gradients", 0.0) == 1.0


def _carried_on(effect: Finding, cause: Finding) -> bool:
    """Of all that is wrong with an optimizer, only momentum makes steps too large."""
    return "step_gain" in cause.evidence


def _gets_next_to_nothing(effect: Finding, cause: Finding) -> bool:
    return "cut_off" not in effect.evidence and "left_out" not in effect.evidence


def _is_rounded_off(effect: Finding, cause: Finding) -> bool:
    """Weights that get a gradient and a step, and stay, are those whose steps are too small for their format."""
    return "unmoved" in effect.evidence and "unchanged_share" in cause.evidence


def _driven_by_weights(effect: Finding, cause: Finding) -> bool:
    return cause.evidence.get("weight_scale", 0.0) > 1.0 and _not_before(effect, cause)


def _gets_nothing(effect: Finding, cause: Finding) -> bool:
    """Weights whose gradient is zero are stopped by what is behind them, and those that are cut off by the script."""
    return "silent" in effect.evidence and "cut_off" not in effect.evidence and "left_out" not in effect.evidence


def _stays_by_itself(effect: Finding, cause: Finding) -> bool:
    return not _gets_nothing(cause, effect)


def _is_the_output(effect: Finding, cause: Finding) -> bool:
    return set(effect.sites) <= set(cause.sites)


@dataclass(frozen=True)
class Explanation:
    """A finding of code `effect` is a consequence of an error of code `cause`, if `applies(effect, cause)`."""

    effect: str
    cause: str
    applies: Callable[[Finding, Finding], bool] = _always


EXPLANATIONS = (
    Explanation("dead-units", "vanishing-signal", _signal_lost_in_weights),
    Explanation("dead-units", EXPLOSION),
    Explanation("dead-units", OVERFLOW),
    Explanation("dead-units", "vanishing-gradient", _lost_in_weights),
    Explanation("saturated-activation", OVERFLOW),
    Explanation("vanishing-gradient", OVERFLOW),
    Explanation("vanishing-gradient", "vanishing-signal", _signal_lost_in_weights),
    Explanation("vanishing-gradient", "saturated-activation", _lost_in_nonlinearities),
    Explanation("vanishing-gradient", "dead-units", _lost_in_nonlinearities),
    *(
        Explanation(effect, LARGE_STEPS, _later)
        for effect in ("dead-units", "saturated-activation", "vanishing-gradient", "vanishing-signal", OVERFLOW)
    ),
    Explanation(EXPLOSION, LARGE_STEPS, _follows_steps),
    Explanation(EXPLOSION, LARGE_SIGNAL, _gradient_by_drawn_weights),
    Explanation(OVERFLOW, LARGE_SIGNAL, _by_drawn_weights),
    Explanation(LARGE_STEPS, EXPLOSION, _precedes_steps),
    Explanation(LARGE_STEPS, LARGE_SIGNAL, _by_drawn_weights),
    Explanation(LARGE_SIGNAL, LARGE_STEPS, _signal_grew_later),
    Explanation(LARGE_SIGNAL, EXPLOSION, _signal_grew_later),
    *(
        Explanation("vanishing-signal", cause, _signal_squashed)
        for cause in ("dead-units", "saturated-activation", "vanishing-gradient")
    ),
    *(Explanation("update-too-small", cause) for cause in (LARGE_STEPS, EXPLOSION, OVERFLOW, "vanishing-signal")),
    *(Explanation("update-too-small", cause) for cause in ("dead-units", "saturated-activation", "vanishing-gradient")),
    *(
        Explanation(effect, cause)
        for effect in ("loss-diverging", "loss-oscillating", "loss-plateau")
        for cause in (LARGE_STEPS, LARGE_SIGNAL, "degenerate-batchnorm", "collapsed-attention")
    ),
    Explanation("loss-diverging", EXPLOSION),
    Explanation("loss-diverging", OVERFLOW),
    Explanation("loss-oscillating", EXPLOSION),
    Explanation("loss-oscillating", OVERFLOW),
    Explanation("loss-oscillating", "loss-diverging", _swings_on_its_way_up),
    Explanation("loss-diverging", "loss-oscillating", _rises_by_swings),
    Explanation("loss-plateau", "vanishing-signal"),
    Explanation("loss-plateau", "loss-diverging"),
    Explanation("loss-plateau", "loss-oscillating"),
    Explanation("loss-plateau", EXPLOSION),
    Explanation("loss-plateau", OVERFLOW),
    Explanation("loss-plateau", "dead-units"),
    Explanation("loss-plateau", "saturated-activation"),
    Explanation("loss-plateau", "vanishing-gradient"),
    Explanation("loss-plateau", "update-too-small"),
    Explanation(SMALL_FORMAT, LARGE_SIGNAL, _values_too_large),
    *(
        Explanation(effect, SMALL_FORMAT)
        for effect in (OVERFLOW, "clipping-dominates", "update-too-small", "loss-diverging", "loss-plateau")
    ),
    Explanation(OPTIMIZER, SMALL_FORMAT, _small_gradients),
    Explanation(UNTRAINED, SMALL_FORMAT, _is_rounded_off),
    Explanation(SHARP, LARGE_SIGNAL, _by_drawn_weights),
    Explanation(SHARP, EXPLOSION, _steep_by_depth),
    Explanation(SHARP, LARGE_STEPS, _later),
    Explanation(LARGE_STEPS, SHARP, _not_before),
    Explanation(EXPLOSION, SHARP, _follows_steps),
    Explanation(OVERFLOW, SHARP, _later),
    *(Explanation(effect, SHARP) for effect in ("loss-diverging", "loss-oscillating", "loss-plateau")),
    Explanation(BLOCKED_GATE, LARGE_STEPS, _later),
    Explanation(EXPLOSION, BLOCKED_GATE, _driven_by_weights),
    *(
        Explanation(effect, BLOCKED_GATE)
        for effect in ("vanishing-signal", "vanishing-gradient", "collapsed-rank", "update-too-small", "loss-plateau")
    ),
    Explanation(UNTRAINED, BLOCKED_GATE, _gets_next_to_nothing),
    *(
        Explanation(OPTIMIZER, cause, _small_gradients)
        for cause in (BLOCKED_GATE, "dead-units", "saturated-activation", "vanishing-signal", "vanishing-gradient")
    ),
    *(Explanation(effect, OPTIMIZER, _carried_on) for effect in (LARGE_STEPS, "loss-diverging", "loss-oscillating")),
    *(
        Explanation(effect, cause)
        for effect in ("update-too-small", "loss-plateau")
        for cause in (OPTIMIZER, "clipping-dominates")
    ),
    *(
        Explanation(effect, INPUT)
        for effect in (
            LARGE_SIGNAL,
            SHARP,
            LARGE_STEPS,
            EXPLOSION,
            OVERFLOW,
            "dead-units",
            BLOCKED_GATE,
            SURE_OUTPUT,
            "saturated-activation",
            LOST_RANK,
            "vanishing-signal",
            "vanishing-gradient",
            "update-too-small",
            "loss-diverging",
            "loss-oscillating",
            "loss-plateau",
        )
    ),
    *(
        Explanation(effect, WRONG_LOSS)
        for effect in (
            SURE_OUTPUT,
            OVERFLOW,
            LARGE_STEPS,
            EXPLOSION,
            "vanishing-gradient",
            "update-too-small",
            "loss-diverging",
            "loss-oscillating",
            "loss-plateau",
        )
    ),
    *(
        Explanation(effect, SYMMETRY)
        for effect in (LOST_RANK, "vanishing-signal", "vanishing-gradient", "update-too-small", "loss-plateau")
    ),
    Explanation(UNTRAINED, SYMMETRY, _gets_nothing),
    *(
        Explanation(UNTRAINED, cause, _gets_nothing)
        for cause in (OVERFLOW, "dead-units", "saturated-activation", "vanishing-signal", "vanishing-gradient")
    ),
    *(
        Explanation(effect, UNTRAINED, _stays_by_itself)
        for effect in ("vanishing-gradient", "update-too-small", "loss-plateau")
    ),
    *(
        Explanation(effect, IMBALANCE, _not_before)
        for effect in (
            LARGE_SIGNAL,
            EXPLOSION,
            OVERFLOW,
            SURE_OUTPUT,
            "loss-diverging",
            "loss-oscillating",
            "loss-plateau",
        )
    ),
    Explanation(SURE_OUTPUT, LARGE_SIGNAL, _by_drawn_weights),
    Explanation(SURE_OUTPUT, LARGE_STEPS, _later),
    Explanation("saturated-activation", SURE_OUTPUT, _is_the_output),
    Explanation("loss-plateau", SURE_OUTPUT),
    *(Explanation(LOST_RANK, cause, _later) for cause in (LARGE_STEPS, EXPLOSION)),
    *(Explanation(LOST_RANK, cause) for cause in (OVERFLOW, "dead-units", "saturated-activation", "vanishing-signal")),
    # In a network that is too deep for its slopes samples grow alike and gradients vanish together (Schoenholz et al.
    # 2017, section 4: the ordered phase); the link budget says what takes them.
    Explanation(LOST_RANK, "vanishing-gradient", _not_before),
    Explanation("loss-plateau", LOST_RANK),
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
