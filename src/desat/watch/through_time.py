"""Through time: what the writer's thread makes of the sequences, weights and gradients of a recurrent layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.reference import recurrent as reference

REACH = 0.01
"""A gradient reaches as far back as its norm is at least this share of that at the last step."""

LEAST_RATIO = 1e-30
"""Ratios of norms are recorded as at least this one, -600 dB."""


@dataclass(frozen=True, eq=False)
class Place:
    """One layer and direction: the sites of its state and of its gates."""

    state: Site
    gates: tuple[Site, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What the writer's thread must know to run the layers again.

    curves: of the gates. shapes: of the weights, by layer and direction, in torch's order. sizes: how many of the
    sequences, the first ones, have each step.
    """

    kind: reference.Kind
    curves: tuple[Curve, ...]
    places: tuple[tuple[Place, ...], ...]
    shapes: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    sizes: tuple[int, ...]
    has_bias: bool


def measure_recurrent(plan: Plan, arrays: dict[str, NDArray[Any]]) -> dict[Site, dict[str, float]]:
    """Readings of the gates and states of recurrent layers.

    arrays: `weights`, flat, and `inputs`; the states before the first step, `hidden` and `cell`, unless they are zeros;
    and the gradients `at_output`, `at_hidden` and `at_cell` of those to which one came.

    Of each gate: `saturated_low` and `saturated_high`, the shares of its arguments where its derivative is below 5 % of
    its maximum, and its `mean`. Of each layer and direction: `unit_spread` (see there), `steps` (of the longest
    sequence looked at), `hidden_rms`, of an LSTM `cell_rms` and `cell_largest` (of the magnitude).

    And of the gradient that comes to the last step, what of it arrives at the states of the steps before it through
    time alone (Pascanu et al. 2013, section 2): the norm at the state, of an LSTM h and cell together, relative to that
    at the last step, root mean square over the sequences. `gradient_reach_steps`: how many steps back it is below REACH
    (if never, the number of steps). `gradient_decay_db_per_step`: up to there, positive where it shrinks.
    `gradient_first_step_db`: what arrives at the first step, 20 log10. The last step is the last to which any gradient
    comes. These are missing where no step is before it.
    """
    with np.errstate(all="ignore"):
        layers = _laid_out(plan, arrays["weights"])
        inputs = _padded(plan, arrays["inputs"])
        hidden, cell = _start(plan, layers, inputs, arrays)
        traces = reference.forward_stack(plan.kind, layers, inputs, plan.sizes, hidden, cell)
        readings: dict[Site, dict[str, float]] = {}
        for place, weights, trace in _each(plan.places, layers, traces):
            readings |= _of_trace(plan, place, trace)
            readings[place.state] |= unit_spread(weights, len(plan.kind.gates))
        if any(name.startswith("at_") for name in arrays):
            for place, found in _of_gradients(plan, layers, traces, arrays):
                readings[place.state] |= found
        return readings


def _of_trace(plan: Plan, place: Place, trace: reference.Trace) -> dict[Site, dict[str, float]]:
    readings = {}
    valid = trace.valid
    for number, (site, curve) in enumerate(zip(place.gates, plan.curves, strict=True)):
        before = trace.before[:, :, number][valid]
        readings[site] = {
            "saturated_low": float((before <= curve.low).mean()),
            "saturated_high": float((before >= curve.high).mean()),
            "mean": float(trace.gates[:, :, number][valid].mean(dtype=np.float64)),
        }
    state = {"steps": float(len(plan.sizes)), "hidden_rms": _rms(trace.hidden[valid])}
    if plan.kind is reference.LSTM:
        cell = trace.cell[valid]
        state |= {"cell_rms": _rms(cell), "cell_largest": float(np.abs(cell).max())}
    return readings | {place.state: state}


def unit_spread(weights: reference.Weights, gates: int) -> dict[str, float]:
    """Reading `unit_spread`: rms of the weights less their mean over a gate's units, over the rms of the weights.

    0 of units that are copies of each other, about 1 of units that are drawn; nothing where weights are zero throughout
    or not finite, or where there is a single unit. Biases do not count, which often are alike on purpose. Outputs of
    units that are nearly alike soon differ by more than rounding, since what comes back to them differs, and yet the
    layer is worth a few units only: their weights tell.
    """
    squares = deviations = 0.0
    for matrix in (weights.input, weights.hidden):
        by_unit = matrix.astype(np.float64).reshape(gates, -1, matrix.shape[1])
        squares += float(np.square(by_unit).sum())
        deviations += float(np.square(by_unit - by_unit.mean(axis=1, keepdims=True)).sum())
    is_known = weights.hidden.shape[0] > gates and np.isfinite(squares) and squares > 0.0
    return {"unit_spread": float(np.sqrt(deviations / squares))} if is_known else {}


def _of_gradients(
    plan: Plan, layers: reference.Layers, traces: list[list[reference.Trace]], arrays: dict[str, NDArray[Any]]
) -> list[tuple[Place, dict[str, float]]]:
    sequences = plan.sizes[0]
    width = sum(trace.hidden.shape[2] for trace in traces[-1])
    at_output = np.zeros((len(plan.sizes), sequences, width), arrays["weights"].dtype)
    if "at_output" in arrays:
        at_output = _padded(plan, arrays["at_output"]).astype(at_output.dtype)
    numbers = sum(len(directions) for directions in layers)
    at_hidden = arrays.get("at_hidden", np.zeros((numbers, sequences, traces[0][0].hidden.shape[2]), at_output.dtype))
    at_cell = arrays.get("at_cell", np.zeros((numbers, sequences, traces[0][0].cell.shape[2]), at_output.dtype))
    arriving = reference.backward_stack(plan.kind, layers, traces, at_output, at_hidden, at_cell)
    found = []
    for number, (place, weights, trace, arrived) in enumerate(_each(plan.places, layers, traces, arriving)):
        ratios = reference.reach(plan.kind, weights, trace, arrived, at_cell[number])
        found.append((place, reach_readings(ratios)))
    return found


def reach_readings(ratios: NDArray[Any]) -> dict[str, float]:
    """The readings of a gradient by steps back, shape (steps back, sequences), as `reach` of the reference gives it."""
    there = ~np.isnan(ratios).all(axis=1)
    if there.sum() < 2:
        return {}
    relative = np.sqrt(np.nanmean(np.square(ratios[there], dtype=np.float64), axis=1))
    level = 20.0 * np.log10(np.maximum(relative, LEAST_RATIO))
    below = np.flatnonzero(relative < REACH)
    last = int(below[0]) if len(below) else len(level) - 1
    return {
        "gradient_reach_steps": float(below[0] if len(below) else len(level)),
        "gradient_decay_db_per_step": float(-level[last] / last),
        "gradient_first_step_db": float(level[-1]),
    }


def _laid_out(plan: Plan, flat: NDArray[Any]) -> list[list[reference.Weights]]:
    start = 0

    def cut(shape: tuple[int, ...]) -> NDArray[Any]:
        nonlocal start
        start, begin = start + int(np.prod(shape)), start
        return flat[begin:start].reshape(shape)

    def laid_out(shapes: Sequence[tuple[int, ...]]) -> reference.Weights:
        arrays = [cut(shape) for shape in shapes]
        biases = 2 if plan.has_bias else 0
        none = np.zeros(arrays[0].shape[0], flat.dtype)
        input_bias, hidden_bias = arrays[2:4] if biases else (none, none)
        projection = arrays[2 + biases] if len(arrays) > 2 + biases else None
        return reference.Weights(arrays[0], arrays[1], input_bias, hidden_bias, projection)

    return [[laid_out(shapes) for shapes in directions] for directions in plan.shapes]


def _start(
    plan: Plan, layers: reference.Layers, inputs: NDArray[Any], arrays: dict[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The states before the first step, zeros unless they are known."""
    numbers, weights = sum(len(directions) for directions in layers), layers[0][0]
    units, width = weights.hidden.shape[0] // len(plan.kind.gates), weights.hidden.shape[1]
    hidden = arrays.get("hidden", np.zeros((numbers, inputs.shape[1], width), weights.hidden.dtype))
    return hidden, arrays.get("cell", np.zeros((numbers, inputs.shape[1], units), weights.hidden.dtype))


def _padded(plan: Plan, rows: NDArray[Any]) -> NDArray[Any]:
    """Shape (steps, sequences, features); of packed rows, zeros where a sequence has no step."""
    if rows.ndim == 3:
        return rows
    padded = np.zeros((len(plan.sizes), plan.sizes[0], rows.shape[-1]), rows.dtype)
    padded[np.arange(plan.sizes[0]) < np.asarray(plan.sizes)[:, None]] = rows
    return padded


def _each(*nests: Sequence[Sequence[Any]]) -> Any:
    """What belongs to each layer and direction."""
    return zip(*([one for layer in nest for one in layer] for nest in nests), strict=True)


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
