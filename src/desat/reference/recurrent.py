"""LSTM, GRU and plain recurrent networks in NumPy, with all their gates, and their gradients through time.

The formulas are those of torch.nn.LSTM, GRU and RNN, and of their cells. LSTM: Hochreiter and Schmidhuber 1997, with
the forget gate of Gers, Schmidhuber and Cummins 2000, section 3, and the projection of Sak, Senior and Beaufays 2014,
section 2. GRU: Cho et al. 2014, section 2.3, with the reset gate applied after the multiplication. The gradient through
time and why it vanishes: Pascanu, Mikolov and Bengio 2013, section 2.

Shapes are written with T steps, B sequences, I inputs, G gates, H units and R numbers in the state h (R is H unless the
state is projected). Sequences may differ in length: `sizes[t]` tells how many of them, the first ones, have a step t,
as in torch's PackedSequence; it never grows with t. Entries of steps that a sequence has not are 0. Everything is
computed in the dtype of the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 2**18
"""Multiplications in one product of matrices: few enough for BLAS to start no threads, which would get in the way of a
training beside (OpenBLAS, two cores in use: 8 ms with threads for a product that takes 0.03 ms without)."""

BLOCK_ROWS = 16


class Weights(NamedTuple):
    """The weights of one layer and direction, as torch lays them out.

    input: (G*H, I). hidden: (G*H, R). input_bias, hidden_bias: (G*H,). projection: (R, H), of an LSTM with proj_size.
    """

    input: Array
    hidden: Array
    input_bias: Array
    hidden_bias: Array
    projection: Array | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """One layer and direction, run over T steps.

    before, gates: (T, B, G, H), the gates' arguments and values. hidden, previous_hidden: (T, B, R), the state h after
    and before each step. cell, previous_cell: (T, B, H), likewise the cell state of an LSTM. recurrent: (T, B, G, H),
    what the state before contributes to `before`, bias included.
    """

    sizes: Sequence[int]
    reverse: bool
    before: Array
    gates: Array
    recurrent: Array
    hidden: Array
    previous_hidden: Array
    cell: Array
    previous_cell: Array

    @property
    def order(self) -> range:
        """The steps in the order in which they are run."""
        steps = range(len(self.sizes))
        return steps[::-1] if self.reverse else steps

    @property
    def ends(self) -> NDArray[np.int64]:
        """The step that is run last, of each sequence: (B,)."""
        return np.zeros(self.before.shape[1], np.int64) if self.reverse else self.valid.sum(axis=0) - 1

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which sequence has which step: (T, B)."""
        return np.arange(self.before.shape[1]) < np.asarray(self.sizes)[:, None]


class Backward(NamedTuple):
    """Gradients of one layer and direction.

    projected: (T, B, G, H), at what the inputs contribute to `before`. state: (T, B, R + H), the whole gradient at h
    and cell of a step, 0 for a cell where there is none.
    """

    projected: Array
    state: Array

    def at_inputs(self, weights: Weights) -> Array:
        """The gradient at the inputs: (T, B, I)."""
        flat = self.projected.reshape(*self.projected.shape[:2], -1)
        return _multiply(flat, _blocks(weights.input, BLOCK_ROWS))


Layers = Sequence[Sequence[Weights]]
"""The weights of each layer and, within it, of each direction: forward and, if there is one, reverse."""

Step = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array, Array]]
"""(projected input, recurrent, h, cell) of one step -> (before, gates, h, cell); h is not yet projected."""

Factors = Callable[[Trace], tuple[Array, ...]]
"""Local derivatives of all steps at once, each (T, B, ...)."""

Back = Callable[[tuple[Array, ...], Array, Array], tuple[Array, Array, Array | float, Array, Array]]
"""(factors, gradient at h, at the cell by the next step) of one step -> gradient at (projected input, recurrent, h
before directly, cell in all, cell before)."""


@dataclass(frozen=True)
class Kind:
    """A kind of recurrent network. gates: their names, in the order of torch's weights."""

    name: str
    gates: tuple[str, ...]
    step: Step
    factors: Factors
    back: Back


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    return 0.5 * np.tanh(0.5 * values) + 0.5


def forward(
    kind: Kind,
    weights: Weights,
    inputs: Array,
    sizes: Sequence[int],
    hidden: Array,
    cell: Array,
    reverse: bool = False,
) -> Trace:
    """Run one layer in one direction over inputs (T, B, I) from the state h (B, R) and cell (B, H)."""
    steps, sequences = inputs.shape[:2]
    units = weights.hidden.shape[0] // len(kind.gates)
    gated = (steps, sequences, len(kind.gates), units)
    projected = (_multiply(inputs, _blocks(weights.input.T, BLOCK_ROWS)) + weights.input_bias).reshape(gated)
    blocks = _blocks(weights.hidden.T, sequences)
    projection = None if weights.projection is None else _blocks(weights.projection.T, sequences)
    hidden, cell = hidden.copy(), cell.copy()
    before, gates, recurrent = (np.zeros(gated, projected.dtype) for _ in range(3))
    hiddens, previous_hidden = (np.zeros((steps, *hidden.shape), projected.dtype) for _ in range(2))
    cells, previous_cell = (np.zeros((steps, *cell.shape), projected.dtype) for _ in range(2))
    trace = Trace(sizes, reverse, before, gates, recurrent, hiddens, previous_hidden, cells, previous_cell)
    for step in trace.order:
        here = (step, slice(sizes[step]))
        h, c = hidden[here[1]], cell[here[1]]
        previous_hidden[here], previous_cell[here] = h, c
        recurrent[here] = (_multiply(h, blocks) + weights.hidden_bias).reshape(recurrent[here].shape)
        before[here], gates[here], new, c[:] = kind.step(projected[here], recurrent[here], h, c)
        h[:] = new if projection is None else _multiply(new, projection)
        hiddens[here], cells[here] = h, c
    return trace


def backward(kind: Kind, weights: Weights, trace: Trace, at_hidden: Array, at_last_cell: Array) -> Backward:
    """Gradients of a scalar, given those at each step's h by another way than the next step, and at the last cell.

    at_hidden: (T, B, R), as it comes from the layer above; what comes to the last h alone is added to its step.
    at_last_cell: (B, H).
    """
    factors = kind.factors(trace)
    blocks = _blocks(weights.hidden, at_hidden.shape[1])
    projection = None if weights.projection is None else _blocks(weights.projection, at_hidden.shape[1])
    carried, at_cell = np.zeros_like(at_hidden[0]), at_last_cell.copy()
    width = carried.shape[1]
    state = np.zeros((*at_hidden.shape[:2], width + at_cell.shape[1]), at_hidden.dtype)
    at_projected = np.zeros_like(trace.before)
    for step in trace.order[::-1]:
        here = (step, slice(trace.sizes[step]))
        at_h = at_hidden[here] + carried[here[1]]
        at_new = at_h if projection is None else _multiply(at_h, projection)
        at_projected[here], at_recurrent, directly, at_c, at_cell[here[1]] = kind.back(
            tuple(factor[here] for factor in factors), at_new, at_cell[here[1]]
        )
        state[here][:, :width], state[here][:, width:] = at_h, at_c
        carried[here[1]] = _multiply(at_recurrent.reshape(len(at_recurrent), -1), blocks) + directly
    return Backward(at_projected, state)


def reach(kind: Kind, weights: Weights, trace: Trace, at_hidden: Array, at_last_cell: Array) -> Array:
    """How much of the gradient at the last step arrives at the steps before it.

    Takes of the gradients of `backward` those of each sequence's last step alone (the last to which any comes) and
    gives norm(gradient at the state, so many steps back) / norm(gradient at the last state), shape (steps back, B): 1
    in the first row, nan beyond the beginning of a sequence and of a sequence to which no gradient comes. The state of
    an LSTM is h and cell together: most of what reaches far back goes through the cell.
    """
    steps, sequences = at_hidden.shape[:2]
    order = list(trace.order)
    arrives = np.any(at_hidden != 0, axis=2)
    arrives[trace.ends, np.arange(sequences)] |= np.any(at_last_cell != 0, axis=1)
    arrives = arrives[order]
    lasts = np.where(arrives.any(axis=0), steps - 1 - np.argmax(arrives[::-1], axis=0), -1)
    lone, at_cell = np.zeros_like(at_hidden), np.zeros_like(at_last_cell)
    for sequence, last in enumerate(lasts):
        if last >= 0:
            gradient, at_end = at_hidden[order[last], sequence], order[last] == trace.ends[sequence]
            # Made about 1, since of small numbers float32 loses what decays further.
            largest = np.abs(gradient).max() or np.abs(at_last_cell[sequence]).max()
            lone[order[last], sequence] = gradient / largest
            if at_end:
                at_cell[sequence] = at_last_cell[sequence] / largest
    # In float64: squares of what has decayed below 1e-22, which is -440 dB, would be zeros in float32.
    norms = np.linalg.norm(backward(kind, weights, trace, lone, at_cell).state.astype(np.float64), axis=2)[order]
    has_step = trace.valid[order]
    ratios = np.full((steps, sequences), np.nan)
    for sequence, last in enumerate(lasts):
        back = norms[: last + 1, sequence][has_step[: last + 1, sequence]][::-1]
        ratios[: len(back), sequence] = back / back[:1]
    return ratios


def forward_stack(
    kind: Kind, layers: Layers, inputs: Array, sizes: Sequence[int], hidden: Array, cell: Array
) -> list[list[Trace]]:
    """Run all layers, each fed with the states of the one below, without dropout.

    hidden: (layers * directions, B, R) and cell: (layers * directions, B, H), as torch orders them.
    """
    traces: list[list[Trace]] = []
    for number, directions in enumerate(layers):
        traces.append([])
        for reverse, weights in enumerate(directions):
            at = number * len(directions) + reverse
            traces[-1].append(forward(kind, weights, inputs, sizes, hidden[at], cell[at], bool(reverse)))
        inputs = np.concatenate([trace.hidden for trace in traces[-1]], axis=2)
    return traces


def backward_stack(
    kind: Kind, layers: Layers, traces: list[list[Trace]], at_output: Array, at_last_hidden: Array, at_last_cell: Array
) -> list[list[Array]]:
    """The gradients that come to each step's h of each layer and direction by another way than the next step.

    at_output: (T, B, directions * R). at_last_hidden: (layers * directions, B, R) and at_last_cell: (..., B, H), what
    comes to the last states. Gives for each layer and direction `at_hidden`, (T, B, R), for `backward` and `reach`.
    """
    arriving: list[list[Array]] = [[] for _ in layers]
    for number in range(len(layers))[::-1]:
        parts = np.split(at_output, len(layers[number]), axis=2)
        at_output = np.zeros(())
        for direction, (weights, trace) in enumerate(zip(layers[number], traces[number], strict=True)):
            at = number * len(layers[number]) + direction
            at_hidden = parts[direction].copy()
            at_hidden[trace.ends, np.arange(at_hidden.shape[1])] += at_last_hidden[at]
            arriving[number].append(at_hidden)
            if number:
                at_output = at_output + backward(kind, weights, trace, at_hidden, at_last_cell[at]).at_inputs(weights)
    return arriving


# LSTM


def _lstm_step(projected: Array, recurrent: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array, Array]:
    before = projected + recurrent
    gates = np.tanh(before * _LSTM_SCALE) * _LSTM_SCALE + _LSTM_SHIFT
    cell = gates[:, 1] * cell + gates[:, 0] * gates[:, 2]
    return before, gates, gates[:, 3] * np.tanh(cell), cell


_LSTM_SCALE = np.array([0.5, 0.5, 1.0, 0.5], np.float32)[:, None]
_LSTM_SHIFT = np.array([0.5, 0.5, 0.0, 0.5], np.float32)[:, None]
"""sigmoid(z) = tanh(z / 2) / 2 + 1 / 2, so that one call of tanh makes all gates."""


def _lstm_factors(trace: Trace) -> tuple[Array, ...]:
    i, f, g, o = (trace.gates[:, :, gate] for gate in range(4))
    squashed = np.tanh(trace.cell)
    to_gates = np.stack([g * i * (1 - i), trace.previous_cell * f * (1 - f), i * (1 - g * g)], axis=2)
    return o * (1 - squashed * squashed), squashed * o * (1 - o), to_gates, f


def _lstm_back(factors: tuple[Array, ...], at_h: Array, at_cell: Array) -> tuple[Array, Array, float, Array, Array]:
    to_cell, to_output_gate, to_gates, forget = factors
    at_cell = at_cell + at_h * to_cell
    at_before = np.concatenate([at_cell[:, None] * to_gates, (at_h * to_output_gate)[:, None]], axis=1)
    return at_before, at_before, 0.0, at_cell, at_cell * forget


# GRU


def _gru_step(projected: Array, recurrent: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array, Array]:
    before = projected + recurrent
    gates = sigmoid(before)
    before[:, 2] = projected[:, 2] + gates[:, 0] * recurrent[:, 2]
    gates[:, 2] = np.tanh(before[:, 2])
    return before, gates, gates[:, 2] + gates[:, 1] * (hidden - gates[:, 2]), cell


def _gru_factors(trace: Trace) -> tuple[Array, ...]:
    r, z, n = (trace.gates[:, :, gate] for gate in range(3))
    to_new = (1 - z) * (1 - n * n)
    to_update = (trace.previous_hidden - n) * z * (1 - z)
    to_reset = to_new * trace.recurrent[:, :, 2] * r * (1 - r)
    return np.stack([to_reset, to_update, to_new], axis=2), np.stack([to_reset, to_update, to_new * r], axis=2), z


def _gru_back(factors: tuple[Array, ...], at_h: Array, at_cell: Array) -> tuple[Array, Array, Array, Array, Array]:
    to_projected, to_recurrent, update = factors
    wide = at_h[:, None]
    return wide * to_projected, wide * to_recurrent, at_h * update, at_cell, at_cell


# Plain


def _plain_step(function: Callable[[Array], Array]) -> Step:
    def step(projected: Array, recurrent: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array, Array]:
        before = projected + recurrent
        gates = function(before)
        return before, gates, gates[:, 0], cell

    return step


def _plain_back(factors: tuple[Array, ...], at_h: Array, at_cell: Array) -> tuple[Array, Array, float, Array, Array]:
    at_before = at_h[:, None] * factors[0]
    return at_before, at_before, 0.0, at_cell, at_cell


LSTM = Kind("LSTM", ("input", "forget", "cell", "output"), _lstm_step, _lstm_factors, _lstm_back)
GRU = Kind("GRU", ("reset", "update", "new"), _gru_step, _gru_factors, _gru_back)
RNN_TANH = Kind("RNN", ("hidden",), _plain_step(np.tanh), lambda trace: (1 - trace.gates * trace.gates,), _plain_back)
RNN_RELU = Kind(
    "RNN",
    ("hidden",),
    _plain_step(lambda z: np.maximum(z, 0)),
    lambda trace: ((trace.before > 0).astype(trace.before.dtype),),
    _plain_back,
)


def _blocks(matrix: Array, rows: int) -> list[Array]:
    """A matrix cut into columns such that so many rows times a part of it stay below BLOCK multiplications."""
    columns = max(1, BLOCK // (max(1, rows) * matrix.shape[0]))
    return [np.ascontiguousarray(matrix[:, at : at + columns]) for at in range(0, matrix.shape[1], columns)]


def _multiply(rows: Array, blocks: list[Array]) -> Array:
    """The product of rows (..., K) and the matrix (K, N) that was cut into `blocks`, a few rows at a time."""
    flat = rows.reshape(-1, rows.shape[-1])
    if len(flat) <= BLOCK_ROWS:
        parts = [flat @ block for block in blocks]
        made = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    else:
        made = np.concatenate([_multiply(flat[at : at + BLOCK_ROWS], blocks) for at in range(0, len(flat), BLOCK_ROWS)])
    return made.reshape(*rows.shape[:-1], made.shape[-1])
