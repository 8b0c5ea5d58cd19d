"""The rules, in the order of what to fix first."""

from desat.diagnose.learning import THRESHOLDS
from desat.diagnose.rule import SEVERE, Rule
from desat.diagnose.rules.dead_units import DEAD_UNITS
from desat.diagnose.rules.exploding_gradient import EXPLODING_GRADIENT
from desat.diagnose.rules.loss_plateau import LOSS_PLATEAU
from desat.diagnose.rules.non_finite import NON_FINITE
from desat.diagnose.rules.saturated_activation import SATURATED_ACTIVATION
from desat.diagnose.rules.vanishing_gradient import VANISHING_GRADIENT
from desat.diagnose.threshold import Threshold

RULES: tuple[Rule, ...] = (
    EXPLODING_GRADIENT,
    NON_FINITE,
    DEAD_UNITS,
    SATURATED_ACTIVATION,
    VANISHING_GRADIENT,
    LOSS_PLATEAU,
)


def all_thresholds() -> dict[str, Threshold]:
    """Every threshold by its key: those of the rules, and those by which all of them judge harm."""
    rules = (threshold for rule in RULES for threshold in rule.thresholds)
    return {threshold.key: threshold for threshold in (*rules, *THRESHOLDS, SEVERE)}
