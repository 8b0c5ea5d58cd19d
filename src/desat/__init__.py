"""desat, the training doctor for neural networks."""

from importlib.metadata import version
from typing import Any

import desat.watch  # noqa: F401 - bound first, so that the function of that name stays what `desat.watch` is
from desat.api import Run, apply, log, open, watch
from desat.errors import DesatError

__version__ = version("desat")
__all__ = ["DesatError", "Run", "apply", "log", "open", "watch"]


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext desat`: adds `%%desat`, see desat.notebook."""
    from desat.notebook import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext desat`: removes it again."""
    from desat.notebook import unload

    unload(shell)
