"""The families of remedies: one file each, listed here."""

from desat.cure.family import Family
from desat.cure.remedies.activation import ACTIVATION
from desat.cure.remedies.initialization import INITIALIZATION

FAMILIES: tuple[Family, ...] = (ACTIVATION, INITIALIZATION)
"""In the order in which they are applied: an initialization has to know the nonlinearity that follows."""
