"""Recurrent layers: their gates, which fused kernels hide, and how far back through time a gradient still reaches.

The training only copies a few sequences, the weights and the gradients that come to these sequences; the writer's
thread runs the layers again over them, in NumPy, forward and backward (desat.reference.recurrent). Of an LSTM of 128
units over 100 steps, whose training step takes 16 ms, the copies take 0.5 ms and the writer's thread 8 ms. Rejected:
the same recursion in torch's operations on the training's thread, which takes 10 ms of it for each layer and direction
and on an accelerator would be thousands of launches. What the writer's thread spends is bounded, see
desat.watch.readings.HOST_SHARE.

The layers are run again without the dropout between them, of which no trace is left; and of more than STEPS steps only
the newest ones, from a state of zeros. Inputs handed over by keyword are not seen by module hooks: without them
nothing is measured, and a state before the first step is taken for zeros.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from desat.nonlinearity import Curve, measure_curve
from desat.reference import recurrent as reference
from desat.watch.measurements import is_measurable
from desat.watch.modules import Member
from desat.watch.scene import Scene
from desat.watch.through_time import Place, Plan, measure_recurrent

SEQUENCES = 4
"""Sequences that are looked at: regularly chosen ones of a batch, the longest ones where they are packed."""

CELL_ROWS = 64
"""Rows of a batch that are looked at in a cell, which runs a single step."""

STEPS = 256
"""Steps that are looked at, the newest ones of a sequence."""

FEWEST_STEPS = 16
MULTIPLICATIONS = 2**28
"""Multiplications of one run over the sequences: with many weights it has fewer steps, but FEWEST_STEPS at least."""

WEIGHTS = 10_000_000
"""Layers with more weights in all are not looked at: a copy of them costs too much."""

_SEQUENCE_FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
_CELL_FORWARDS = (nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward)

KINDS = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"cell": torch.tanh, "new": torch.tanh}
"""What a gate's argument goes through, where it is not the sigmoid."""


@dataclass(frozen=True, eq=False)
class Window:
    """The part of a call's sequences that is looked at.

    sizes: see Plan. sequence: copies the rows of that part from inputs, outputs or their gradients, to the shape
    (steps, sequences, features) or, of packed ones, (sum of sizes, features). state: likewise from states, to the
    shape (layers * directions, sequences, features). cut: whether older steps were left out.
    """

    sizes: tuple[int, ...]
    sequence: Callable[[Tensor], Tensor]
    state: Callable[[Tensor], Tensor]
    cut: bool


def probe_recurrent(
    scene: Scene, member: Member, module: nn.Module, args: tuple[Any, ...]
) -> Callable[[Any], None] | None:
    """Look at a recurrent layer, once it has run."""
    if not args or parametrize.is_parametrized(module):  # a parametrization may change its state when it is asked
        return None
    if type(module).forward not in _SEQUENCE_FORWARDS + _CELL_FORWARDS or not is_measurable(_data(args[0])):
        return None
    weights = _weights(module)
    if _number(weights) > WEIGHTS:
        return None
    return lambda output: _look(scene, member, module, weights, args, output)


def _look(
    scene: Scene, member: Member, module: nn.Module, weights: list[list[Tensor]], args: tuple[Any, ...], output: Any
) -> None:
    is_cell = not isinstance(module, nn.RNNBase)
    inputs, *states_before = args
    window = _cell_window(inputs) if is_cell else _window(module, inputs, _number(weights))
    plan = _plan(scene, member, module, weights, window)
    site = plan.places[0][0].state
    started = states_before[0] if states_before and not window.cut else None
    kept = scene.measurements.gathered(
        site,
        "sequences",
        lambda: _copies(weights, inputs, started, window),
        functools.partial(measure_recurrent, plan),
    )
    if kept is None or is_cell:
        return
    outputs, states = output
    for name, tensor, take in (
        ("at_output", _data(outputs), window.sequence),
        *((f"at_{name}", state, window.state) for name, state in _states(states).items()),
    ):
        scene.measurements.gradient(site, tensor, functools.partial(_keep, kept, name, take))


def _plan(scene: Scene, member: Member, module: nn.Module, weights: list[list[Tensor]], window: Window) -> Plan:
    kind = _kind(module)
    directions = 2 if getattr(module, "bidirectional", False) else 1
    numbered = isinstance(module, nn.RNNBase)

    def place(layer: int, direction: int) -> Place:
        name = f"{member.path}.l{layer}{'_reverse' * direction}" if numbered else member.path
        gates = tuple(scene.site("gate", f"{name}.{gate}", f"{kind.name} gate") for gate in kind.gates)
        return Place(scene.site("recurrent", name, member.operation), gates)

    layers = [(number, weights[number * directions :][:directions]) for number in range(len(weights) // directions)]
    return Plan(
        kind=kind,
        curves=tuple(_curve(_function(module, gate)) for gate in kind.gates),
        places=tuple(tuple(place(number, direction) for direction in range(directions)) for number, _ in layers),
        shapes=tuple(tuple(tuple(tuple(one.shape) for one in way) for way in layer) for _, layer in layers),
        sizes=window.sizes,
        has_bias=bool(module.bias) if numbered else module.bias_ih is not None,
    )


def _copies(weights: list[list[Tensor]], inputs: Any, started: Any, window: Window) -> dict[str, Tensor]:
    flat = torch.cat([one.detach().reshape(-1) for layer in weights for one in layer])
    copies = {"weights": _plain(flat), "inputs": _plain(window.sequence(_data(inputs)))}
    return copies | {name: _plain(window.state(state)) for name, state in _states(started).items()}


def _keep(kept: dict[str, Tensor], name: str, take: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
    kept[name] = _plain(take(gradient))


def _plain(tensor: Tensor) -> Tensor:
    """In a type that NumPy has, and that does not overflow where half precision does."""
    return tensor.detach() if tensor.dtype in (torch.float32, torch.float64) else tensor.detach().float()


def _window(module: nn.RNNBase, inputs: Any, weights: int) -> Window:
    """What to look at of the inputs of a recurrent layer with so many weights."""
    if isinstance(inputs, PackedSequence):
        return _packed_window(inputs, weights)
    if inputs.dim() == 2:
        time, batch = inputs.shape[0], 1
    else:
        time, batch = (inputs.shape[1], inputs.shape[0]) if module.batch_first else inputs.shape[:2]
    chosen = slice(None, batch // SEQUENCES * SEQUENCES or None, max(1, batch // SEQUENCES))
    sequences = len(range(batch)[chosen])
    steps = _steps(time, weights * sequences)

    def sequence(tensor: Tensor) -> Tensor:
        if tensor.dim() == 2:
            return tensor[time - steps :].unsqueeze(1).clone()
        tensor = tensor.transpose(0, 1) if module.batch_first else tensor
        return tensor[time - steps :, chosen].clone(memory_format=torch.contiguous_format)

    def state(tensor: Tensor) -> Tensor:
        return (tensor.unsqueeze(1) if tensor.dim() == 2 else tensor[:, chosen]).clone()

    return Window((sequences,) * steps, sequence, state, cut=steps < time)


def _packed_window(inputs: PackedSequence, weights: int) -> Window:
    """The longest sequences lie first at each step; batch_sizes lies on the CPU, so that no device is waited for."""
    batch_sizes = inputs.batch_sizes.tolist()
    longest = min(SEQUENCES, batch_sizes[0])
    steps = _steps(len(batch_sizes), weights * longest)
    begins = list(accumulate(batch_sizes, initial=0))[-steps - 1 : -1]
    sizes = tuple(min(longest, size) for size in batch_sizes[-steps:])
    places = [begin + number for begin, size in zip(begins, sizes, strict=True) for number in range(size)]
    rows = torch.tensor(places, device="cpu").to(inputs.data.device, non_blocking=True)
    order = None if inputs.sorted_indices is None else inputs.sorted_indices[: sizes[0]]

    def sequence(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, rows)

    def state(tensor: Tensor) -> Tensor:
        return tensor[:, : sizes[0]].clone() if order is None else tensor.index_select(1, order)

    return Window(sizes, sequence, state, cut=steps < len(batch_sizes))


def _cell_window(inputs: Tensor) -> Window:
    batch = inputs.shape[0] if inputs.dim() == 2 else 1
    chosen = slice(None, batch // CELL_ROWS * CELL_ROWS or None, max(1, batch // CELL_ROWS))

    def rows(tensor: Tensor) -> Tensor:
        return (tensor[chosen] if tensor.dim() == 2 else tensor.unsqueeze(0)).unsqueeze(0).clone()

    return Window((len(range(batch)[chosen]),), rows, rows, cut=False)


def _steps(time: int, multiplications: int) -> int:
    return min(time, STEPS, max(FEWEST_STEPS, MULTIPLICATIONS // multiplications))


def _data(value: Any) -> Any:
    return value.data if isinstance(value, PackedSequence) else value


def _states(states: Any) -> dict[str, Tensor]:
    """The state h, and the cell of an LSTM, by their names."""
    if isinstance(states, tuple):
        return {"hidden": states[0], "cell": states[1]}
    return {} if states is None else {"hidden": states}


def _weights(module: nn.Module) -> list[list[Tensor]]:
    """By layer and direction, in torch's order: input, hidden, their biases if there are some, projection if any."""
    if isinstance(module, nn.RNNBase):
        return [list(layer) for layer in module.all_weights]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [[weight for name in names if (weight := getattr(module, name)) is not None]]


def _number(weights: list[list[Tensor]]) -> int:
    return sum(one.numel() for layer in weights for one in layer)


def _kind(module: nn.Module) -> reference.Kind:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return reference.LSTM
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return reference.GRU
    return reference.RNN_RELU if module.nonlinearity == "relu" else reference.RNN_TANH


def _function(module: nn.Module, gate: str) -> Callable[[Tensor], Tensor]:
    if gate == "hidden":
        return torch.relu if module.nonlinearity == "relu" else torch.tanh
    return _FUNCTIONS.get(gate, torch.sigmoid)


@functools.cache
def _curve(function: Callable[[Tensor], Tensor]) -> Curve:
    curve = measure_curve(function)
    assert curve is not None, "sigmoid, tanh and relu are nonlinearities"
    return curve
