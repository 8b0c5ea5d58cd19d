"""What makes the output of a layer as large as it is: its bias, what comes into it, or its weights."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from desat.diagnose.link_budget import share_of
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record
from desat.record.rows import Site

BIAS_POWER = Threshold(
    "bias power",
    0.5,
    "mean square / mean square",
    "mean square of a layer's bias over that of its output, from which on the bias makes the output what it is",
    "desat: half of it; biases are drawn near zero (Glorot and Bengio 2010, section 4.2.1: at zero)",
)
LARGE_BIAS = Threshold(
    "large bias",
    0.5,
    "rms",
    "of a layer's bias, from which on it is too large",
    "desat: half of the size that its output is drawn for; PyTorch draws it below 1/sqrt(fan-in)",
)
EXCESS = Threshold(
    "excess scale",
    2.0,
    "ratio",
    "input of a layer over 1, or gain of its weights over the root of 2, from which on it is to blame for a large "
    "output",
    "desat: twice what is sound, see the sources of both",
)
OFF_CENTRE = Threshold(
    "off centre",
    3.0,
    "abs(mean) / standard deviation",
    "of a layer's input, from which on what is the same in all samples outweighs what they differ in",
    "desat: of the output of a ReLU it is 0.7 (LeCun et al. 1998, Efficient BackProp, section 4.3, ask for 0)",
)
SOUND_SIZE = 1.0
"""rms of a layer's input that weights are drawn for (LeCun et al. 1998, Efficient BackProp, section 4.3)."""
SOUND_GAIN = float(np.sqrt(2.0))
"""rms(weight) * sqrt(fan-in) of He et al. 2015, section 2.2, the largest one customary; Xavier's is about 1."""

FAINT_INPUT = Threshold(
    "faint input",
    0.02,
    "rms",
    "of a layer's input, below which sound weights make next to nothing of it",
    "desat: sparse word counts scaled to unit length have 0.03 with a thousand words",
)
SMALL_GAIN = 0.5
"""Gain of weights below which they are too small themselves; torch draws those of a Linear with 0.58."""

Blame = Literal["bias", "input", "weights"]


@dataclass(frozen=True)
class Scale:
    """A layer and its sizes at one sampled step; what the record does not hold is None.

    output, mean: rms and mean of what it puts out. bias: rms. incoming, incoming_mean: of its input, which comes from
    `origin`. gain: rms(weight) * sqrt(fan-in), what the weights make of independent inputs of rms 1; where the fan-in
    is not known, the growth from input to output without the bias. units: of its output. fan_in: weights of a unit.
    """

    layer: Site
    output: float | None
    mean: float | None
    bias: float | None
    origin: Site | None
    incoming: float | None
    incoming_mean: float | None
    gain: float | None
    units: float | None = None
    fan_in: float | None = None

    @property
    def bias_power(self) -> float:
        """Mean square of the bias over that of the output; 0 where either is not known."""
        return (self.bias / self.output) ** 2 if self.bias is not None and self.output else 0.0

    @property
    def input_is_the_networks(self) -> bool:
        """Whether nothing of the network comes before the layer."""
        return self.origin is not None and self.origin.kind == "input"

    @property
    def input_is_off_centre(self) -> bool:
        """Whether its mean outweighs what it varies by."""
        if self.incoming is None or self.incoming_mean is None:
            return False
        spread = float(np.sqrt(max(self.incoming**2 - self.incoming_mean**2, 0.0)))
        return abs(self.incoming_mean) >= OFF_CENTRE.value * spread and self.incoming > 0.0

    @property
    def input_is_faint(self) -> bool:
        """Whether next to nothing comes in, and is taken in by weights of a sound size and no large bias."""
        if self.incoming is None or self.gain is None or (self.bias or 0.0) >= LARGE_BIAS.value:
            return False
        return self.incoming <= FAINT_INPUT.value and self.gain >= SMALL_GAIN

    @property
    def weights_are_faint(self) -> bool:
        """Whether the weights are so small that a bias outweighs what they make of the input."""
        if self.gain is None or (self.bias or 0.0) >= LARGE_BIAS.value:
            return False
        return self.gain < SMALL_GAIN and self.bias_power >= BIAS_POWER.value

    @property
    def blame(self) -> Blame | None:
        """What is to blame for an output that is too large; None where none of the three stands out.

        Weights come before an input that other layers made, for it may be as large by weights that are alike.
        """
        if self.bias_power >= BIAS_POWER.value:
            return "bias" if self.bias is not None and self.bias >= LARGE_BIAS.value else None
        of_input, of_weights = (self.incoming or 0.0) / SOUND_SIZE, (self.gain or 0.0) / SOUND_GAIN
        if of_weights >= EXCESS.value and not (self.input_is_the_networks and of_input > of_weights):
            return "weights"
        return "input" if of_input >= EXCESS.value else None

    @property
    def evidence(self) -> dict[str, float]:
        known = {"bias_rms": self.bias, "layer_input_rms": self.incoming, "weight_gain": self.gain}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def words(self) -> str | None:
        """Which of the three is to blame, in words; None as of `blame`."""
        if self.blame == "bias":
            return f"the bias of {self.layer.name} is too large, its rms is {self.bias:.2g}, near 0 is usual"
        if self.blame == "weights":
            return f"the weights of {self.layer.name} are too large, their gain is {self.gain:.2g}, 1 to 1.4 is sound"
        if self.blame == "input" and self.origin is not None:
            if self.input_is_the_networks:
                return f"the network's input is too large, its rms is {self.incoming:.2g}, about 1 is sound"
            return f"what {self.origin.name} hands on is too large, its rms is {self.incoming:.2g}, about 1 is sound"
        return None


def layer_before(record: Record, place: Site) -> Site | None:
    """The last layer with weights of its own, or normalization, at or before a place in the order of execution."""
    layers = [
        site
        for site in record.sites("module")
        if site.position <= place.position and share_of(site) in ("weight", "normalization")
    ]
    return layers[-1] if layers else None


def trace_scale(record: Record, place: Site, step: int) -> Scale | None:
    """As `measure_scale`; where a large input is to blame that layers before have made, the one that is behind it."""
    scale = measure_scale(record, place, step)
    while scale is not None and scale.blame == "input" and scale.origin is not None and not scale.input_is_the_networks:
        before = measure_scale(record, scale.origin, step)
        if before is None or before.blame is None or before.layer.position >= scale.layer.position:
            break
        scale = before
    return scale


def measure_scale(record: Record, place: Site, step: int) -> Scale | None:
    """The layer that a place's values come from, at a sampled step, as the step found it; None where there is none.

    Parameters are recorded after the step: what it has changed is taken off, as far as it is independent of them.
    """
    layer = layer_before(record, place)
    if layer is None:
        return None
    output, mean = _output(record, layer, step)
    bias, weight = (_parameter(record, f"{layer.name}.{name}", step) for name in ("bias", "weight"))
    size = bias[0] if bias is not None else None
    if share_of(layer) == "normalization":
        return Scale(layer, output, mean, size, layer, SOUND_SIZE, 0.0, weight[0] if weight is not None else None)
    origin = _origin(record, layer)
    incoming, incoming_mean = (None, None) if origin is None else _output(record, origin, step)
    units = bias[1] if bias is not None else _units(record, place)
    is_table = "embedding" in layer.operation.lower()
    fan_in = weight[1] / units if weight is not None and units and not is_table else None
    gain = float(weight[0] * np.sqrt(fan_in)) if weight is not None and fan_in is not None else None
    if gain is None and output is not None and incoming:
        gain = float(np.sqrt(max(output**2 - (size or 0.0) ** 2, 0.0)) / incoming)
    return Scale(layer, output, mean, size, origin, incoming, incoming_mean, gain, units, fan_in)


def _origin(record: Record, layer: Site) -> Site | None:
    """What runs last before a layer, else the network's first input of numbers."""
    measured = (site for site in record.sites() if site.kind in ("module", "nonlinearity"))
    before = [site for site in measured if site.position < layer.position]
    inputs = [site for site in record.sites("input") if site.operation.startswith(("float", "bfloat", "double"))]
    return before[-1] if before else inputs[0] if inputs else None


def _output(record: Record, site: Site, step: int) -> tuple[float | None, float | None]:
    """The rms and mean of what a site puts out, where both are finite."""
    series = record.tensor(site, "output")
    at = np.flatnonzero(series["step"] == step)
    if not len(at):
        return None, None
    rms, mean = float(series["rms"][at[0]]), float(series["mean"][at[0]])
    return (rms, mean) if np.isfinite(rms) and np.isfinite(mean) else (None, None)


def _parameter(record: Record, name: str, step: int) -> tuple[float, float] | None:
    """A parameter's rms before the step, and its elements; None where it was not recorded."""
    site = next((site for site in record.sites("parameter") if site.name == name), None)
    series = None if site is None else record.parameter(site)
    if series is None or not len(series["step"]):
        return None
    at = int(np.clip(np.searchsorted(series["step"], step), 0, len(series["step"]) - 1))
    rms, update = float(series["rms"][at]), float(np.nan_to_num(series["update_rms"][at]))
    if not np.isfinite(rms):
        return None
    changed = update if series["step"][at] == step and np.isfinite(update) else 0.0
    return float(np.sqrt(max(rms**2 - changed**2, 0.0))), float(series["elements"][at])


def _units(record: Record, place: Site) -> float | None:
    units = record.tensor(place, "input")["units"]
    known = units[np.isfinite(units)]
    return float(known[0]) if len(known) and known[0] > 0.0 else None
