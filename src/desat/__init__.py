"""desat, the training doctor for neural networks."""

from importlib.metadata import version

import desat.watch  # noqa: F401 - bound first, so that the function of that name stays what `desat.watch` is
from desat.api import Run, apply, log, open, watch
from desat.errors import DesatError

__version__ = version("desat")
__all__ = ["DesatError", "Run", "apply", "log", "open", "watch"]
