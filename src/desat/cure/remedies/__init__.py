"""The families of remedies: one file each, listed here."""

from desat.cure.family import Family
from desat.cure.remedies.activation import ACTIVATION
from desat.cure.remedies.attention import ATTENTION
from desat.cure.remedies.clipping import CLIPPING
from desat.cure.remedies.initialization import INITIALIZATION
from desat.cure.remedies.input import INPUT
from desat.cure.remedies.loss import LOSS
from desat.cure.remedies.normalization import NORMALIZATION
from desat.cure.remedies.optimizer import OPTIMIZER
from desat.cure.remedies.residual import RESIDUAL

FAMILIES: tuple[Family, ...] = (
    ACTIVATION,
    NORMALIZATION,
    RESIDUAL,
    ATTENTION,
    INPUT,
    INITIALIZATION,
    LOSS,
    OPTIMIZER,
    CLIPPING,
)
"""In the order in which they are applied: an initialization has to know the nonlinearity that follows."""
