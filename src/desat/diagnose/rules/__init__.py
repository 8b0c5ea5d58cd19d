"""The rules, in the order of what to fix first."""

from desat.diagnose.learning import THRESHOLDS
from desat.diagnose.rule import SEVERE, Rule
from desat.diagnose.rules.clipping_dominates import CLIPPING_DOMINATES
from desat.diagnose.rules.collapsed_attention import COLLAPSED_ATTENTION
from desat.diagnose.rules.collapsed_rank import COLLAPSED_RANK
from desat.diagnose.rules.dead_units import DEAD_UNITS
from desat.diagnose.rules.degenerate_batchnorm import DEGENERATE_BATCHNORM
from desat.diagnose.rules.degenerate_optimizer import DEGENERATE_OPTIMIZER
from desat.diagnose.rules.exploding_gradient import EXPLODING_GRADIENT
from desat.diagnose.rules.exploding_signal import EXPLODING_SIGNAL
from desat.diagnose.rules.loss_diverging import LOSS_DIVERGING
from desat.diagnose.rules.loss_oscillating import LOSS_OSCILLATING
from desat.diagnose.rules.loss_plateau import LOSS_PLATEAU
from desat.diagnose.rules.low_precision_range import LOW_PRECISION_RANGE
from desat.diagnose.rules.mismatched_loss import MISMATCHED_LOSS
from desat.diagnose.rules.non_finite import NON_FINITE
from desat.diagnose.rules.residual_imbalance import RESIDUAL_IMBALANCE
from desat.diagnose.rules.saturated_activation import SATURATED_ACTIVATION
from desat.diagnose.rules.saturated_gate import SATURATED_GATE
from desat.diagnose.rules.saturated_output import SATURATED_OUTPUT
from desat.diagnose.rules.sharp_curvature import SHARP_CURVATURE
from desat.diagnose.rules.symmetric_units import SYMMETRIC_UNITS
from desat.diagnose.rules.unscaled_input import UNSCALED_INPUT
from desat.diagnose.rules.untrained_parameter import UNTRAINED_PARAMETER
from desat.diagnose.rules.update_too_large import UPDATE_TOO_LARGE
from desat.diagnose.rules.update_too_small import UPDATE_TOO_SMALL
from desat.diagnose.rules.vanishing_gradient import VANISHING_GRADIENT
from desat.diagnose.rules.vanishing_signal import VANISHING_SIGNAL
from desat.diagnose.threshold import Threshold

RULES: tuple[Rule, ...] = (
    UNSCALED_INPUT,
    MISMATCHED_LOSS,
    SYMMETRIC_UNITS,
    UNTRAINED_PARAMETER,
    RESIDUAL_IMBALANCE,
    LOW_PRECISION_RANGE,
    EXPLODING_SIGNAL,
    SHARP_CURVATURE,
    UPDATE_TOO_LARGE,
    EXPLODING_GRADIENT,
    NON_FINITE,
    COLLAPSED_ATTENTION,
    DEGENERATE_BATCHNORM,
    DEAD_UNITS,
    SATURATED_GATE,
    SATURATED_OUTPUT,
    SATURATED_ACTIVATION,
    COLLAPSED_RANK,
    VANISHING_SIGNAL,
    VANISHING_GRADIENT,
    DEGENERATE_OPTIMIZER,
    CLIPPING_DOMINATES,
    UPDATE_TOO_SMALL,
    LOSS_DIVERGING,
    LOSS_OSCILLATING,
    LOSS_PLATEAU,
)


def all_thresholds() -> dict[str, Threshold]:
    """Every threshold by its key: those of the rules, and those by which all of them judge harm."""
    rules = (threshold for rule in RULES for threshold in rule.thresholds)
    return {threshold.key: threshold for threshold in (*rules, *THRESHOLDS, SEVERE)}
