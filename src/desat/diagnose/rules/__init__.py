"""The rules, in the order of what to fix first."""

from desat.diagnose.rule import Rule
from desat.diagnose.rules.dead_units import DEAD_UNITS
from desat.diagnose.rules.exploding_gradient import EXPLODING_GRADIENT
from desat.diagnose.rules.loss_plateau import LOSS_PLATEAU
from desat.diagnose.rules.non_finite import NON_FINITE
from desat.diagnose.rules.saturated_activation import SATURATED_ACTIVATION
from desat.diagnose.rules.vanishing_gradient import VANISHING_GRADIENT

RULES: tuple[Rule, ...] = (
    EXPLODING_GRADIENT,
    NON_FINITE,
    DEAD_UNITS,
    SATURATED_ACTIVATION,
    VANISHING_GRADIENT,
    LOSS_PLATEAU,
)
