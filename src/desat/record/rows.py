"""The rows of a record: one named tuple per table, its fields are the table's columns, in order.

Shares are between 0 and 1. A statistic that could not be had is None (SQL NULL); a value that
overflowed is infinite. Means and root mean squares are over the finite values only.
"""

from typing import NamedTuple


class Site(NamedTuple):
    """One measured place.

    kind: `nonlinearity`, `module` (any other leaf module), `parameter`, `optimizer`, or one that a probe names.
    name: the module path, `path.weight` of a parameter, or `file:line torch.tanh (path)` of a functional call.
    operation: `Sigmoid`, `Linear`, `torch.tanh`; of a parameter, the operation of the module that owns it.
    source: the user's `file:line`, where it is known.
    position: place in the order of execution, from 0; parameters carry the position of their module.
    curve: of a nonlinearity, JSON `{"shape", "low", "high", "peak_gain"}` (see desat.nonlinearity.Curve).
    """

    id: int
    name: str
    kind: str
    operation: str
    source: str | None
    position: int
    curve: str | None

    @property
    def is_bias(self) -> bool:
        """Whether its last name begins with `bias`, as that of a layer's bias, also of a gate's, does."""
        return self.name.rpartition(".")[2].startswith("bias")


class Step(NamedTuple):
    """One optimizer step, sampled or not.

    time: seconds since the run began. watching: seconds spent on watching this step; None where not sampled.
    """

    step: int
    time: float
    loss: float | None
    learning_rate: float | None
    watching: float | None


class TensorStatistics(NamedTuple):
    """Statistics of one tensor of a site at one sampled step.

    quantity: `input` (of a nonlinearity: the pre-activation), `output`, or `gradient` (of the loss with respect
    to the output). calls: how often the site ran in the step; the calls are pooled.
    saturated_low, saturated_high, gain: inputs of nonlinearities only; gain is the mean of abs(f').
    units: how many units (features, channels) the tensor has; saturated_units: bits packed by numpy.packbits,
    one per unit, set where the unit was saturated on every sample of the step.
    histogram: of floor(log2(abs(x))), see `pack_histogram`. dtype: `float32`, `bfloat16` and so on.
    """

    site: int
    quantity: str
    step: int
    calls: int
    elements: int
    mean: float | None
    rms: float | None
    minimum: float | None
    maximum: float | None
    zeros: float
    nonfinite: float
    saturated_low: float | None
    saturated_high: float | None
    gain: float | None
    units: int | None
    saturated_units: bytes | None
    histogram: bytes | None
    dtype: str | None


class ParameterStatistics(NamedTuple):
    """One parameter at one sampled step; a norm is rms * sqrt(elements).

    update_rms: of the optimizer's change; update_rms / rms is the update ratio. unchanged: of the entries whose
    gradient is not zero, the share that the step left as they were, since the change was too small for the dtype.
    """

    site: int
    step: int
    elements: int
    rms: float | None
    gradient_rms: float | None
    gradient_zeros: float | None
    gradient_nonfinite: float | None
    update_rms: float | None
    unchanged: float | None = None


class Reading(NamedTuple):
    """Any other number measured at a site at one sampled step, under its name."""

    site: int
    name: str
    step: int
    value: float | None


class Metric(NamedTuple):
    """A number that the script told of itself with desat.log; of several at one step, the last one.

    step: the last one done by then, -1 for none. value: None where it was nan. time: seconds since the run began.
    """

    name: str
    step: int
    value: float | None
    time: float


Row = Site | Step | TensorStatistics | ParameterStatistics | Reading | Metric
