"""A recurrent layer as the record has it: whose state it is, its recurrent weights, what comes into it."""

import re

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode
from desat.diagnose.reading_series import typical
from desat.record.reader import Record
from desat.record.rows import Site


def owner(state_name: str) -> tuple[str, str]:
    """The module of a recurrent state and the end of its parameters' names: `lstm.l0` is of `lstm`, `_l0`."""
    module, _, place = state_name.rpartition(".")
    return (module, f"_{place}") if re.fullmatch(r"l\d+(_reverse)?", place) else (state_name, "")


def weight_scales(record: Record, state: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps, and at each the rms of a layer's recurrent weights over that of PyTorch's initialization."""
    module, suffix = owner(state)
    site = next((one for one in record.sites("parameter") if one.name == f"{module}.weight_hh{suffix}"), None)
    if site is None:
        return np.zeros(0), np.zeros(0)
    series = record.parameter(site)
    gates = len({one.name for one in record.sites("gate") if one.name.startswith(f"{state}.")})
    return series["step"], series["rms"] * np.sqrt(3.0 * np.sqrt(series["elements"] / max(gates, 1)))


def input_size(record: Record, gate: Site, module: str, episode: Episode) -> float | None:
    """The size of what goes into the layer: the output of what runs before it, or the network's input."""
    position = min((site.position for site in record.sites() if site.name.startswith(module)), default=gate.position)
    before = [site for site in record.sites() if site.kind in ("module", "nonlinearity") and site.position < position]
    for site in [*before[::-1][:1], *record.sites("input")[:1]]:
        series = record.tensor(site, "output")
        size = typical(series["step"], series["rms"], episode)
        if size is not None:
            return size
    return None
