"""The NumPy networks against torch's own in float64, their gradients against autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from desat.reference import recurrent as reference

KINDS = {
    "LSTM": (nn.LSTM, reference.LSTM),
    "GRU": (nn.GRU, reference.GRU),
    "tanh": (nn.RNN, reference.RNN_TANH),
    "relu": (nn.RNN, reference.RNN_RELU),
}


def module_of(name: str, **settings: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    if name in ("tanh", "relu"):
        settings["nonlinearity"] = name
    module = KINDS[name][0](**settings, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return module


def layers_of(module: nn.RNNBase) -> list[list[reference.Weights]]:
    def weights(tensors: list[Tensor]) -> reference.Weights:
        arrays = [tensor.detach().numpy() for tensor in tensors]
        biases = arrays[2:4] if module.bias else [np.zeros(len(arrays[0]))] * 2
        rest = arrays[4:] if module.bias else arrays[2:]
        return reference.Weights(arrays[0], arrays[1], *biases, *rest)

    ways = [weights(list(tensors)) for tensors in module.all_weights]
    directions = 2 if module.bidirectional else 1
    return [ways[at : at + directions] for at in range(0, len(ways), directions)]


def states_of(module: nn.RNNBase, sequences: int) -> tuple[Tensor, Tensor]:
    numbers = module.num_layers * (2 if module.bidirectional else 1)
    hidden = torch.randn(numbers, sequences, module.proj_size or module.hidden_size, dtype=torch.float64)
    return hidden.requires_grad_(), torch.randn(numbers, sequences, module.hidden_size, dtype=torch.float64)


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(2, 5),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_states_and_gradients_are_torchs(
    name: str,
    lengths: list[int],
    features: int,
    units: int,
    layers: int,
    bidirectional: bool,
    bias: bool,
    projected: bool,
) -> None:
    kind = KINDS[name][1]
    options = {"proj_size": units - 1} if projected and name == "LSTM" else {}
    module = module_of(
        name,
        input_size=features,
        hidden_size=units,
        num_layers=layers,
        bidirectional=bidirectional,
        bias=bias,
        **options,
    )
    lengths = sorted(lengths, reverse=True)
    inputs = torch.randn(lengths[0], len(lengths), features, dtype=torch.float64, requires_grad=True)
    hidden, cell = states_of(module, len(lengths))
    packed = pack_padded_sequence(inputs, torch.tensor(lengths))
    packed_output, states = module(packed, (hidden, cell) if name == "LSTM" else hidden)
    output, _ = pad_packed_sequence(packed_output)
    last_hidden, last_cell = states if name == "LSTM" else (states, cell)

    sizes = packed.batch_sizes.tolist()
    stack = layers_of(module)
    traces = reference.forward_stack(kind, stack, inputs.detach().numpy(), sizes, hidden.detach().numpy(), cell.numpy())
    found = np.concatenate([trace.hidden for trace in traces[-1]], axis=2)
    np.testing.assert_allclose(found, output.detach().numpy(), atol=1e-12)
    if name == "LSTM":
        ends = [trace.cell[trace.ends, np.arange(len(lengths))] for directions in traces for trace in directions]
        np.testing.assert_allclose(np.stack(ends), last_cell.detach().numpy(), atol=1e-12)

    to_output, to_hidden = torch.randn_like(output), torch.randn_like(last_hidden)
    to_cell = torch.randn_like(last_cell) if name == "LSTM" else torch.zeros_like(cell)
    loss = (output * to_output).sum() + (last_hidden * to_hidden).sum() + (last_cell * to_cell).sum()
    (at_inputs,) = torch.autograd.grad(loss, inputs)
    padding = np.arange(len(lengths)) >= np.array(sizes)[:, None]
    at_output = np.where(padding[:, :, None], 0.0, to_output.numpy())
    arriving = reference.backward_stack(kind, stack, traces, at_output, to_hidden.numpy(), to_cell.numpy())
    computed = sum(
        reference.backward(kind, weights, trace, at_hidden, at_cell).at_inputs(weights)
        for weights, trace, at_hidden, at_cell in zip(stack[0], traces[0], arriving[0], to_cell.numpy(), strict=False)
    )
    np.testing.assert_allclose(computed, at_inputs.numpy(), atol=1e-10)


def unrolled(cell: nn.RNNCellBase, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The states h, each of which keeps its gradient, and the cells of a torch cell that is run step by step."""
    state = torch.zeros(inputs.shape[1], cell.hidden_size, dtype=inputs.dtype, requires_grad=True)
    memory = torch.zeros_like(state)
    hiddens, memories = [], []
    for step in inputs:
        if isinstance(cell, nn.LSTMCell):
            state, memory = cell(step, (state, memory))
        else:
            state = cell(step, state)
        state.retain_grad()
        if memory.requires_grad:
            memory.retain_grad()
        hiddens.append(state)
        memories.append(memory)
    return hiddens, memories


def by_step_back(hiddens: list[Tensor], memories: list[Tensor]) -> NDArray[Any]:
    """Norms of the gradient at h and cell together, the last step first: shape (steps, sequences)."""
    norms = []
    for hidden, memory in zip(hiddens[::-1], memories[::-1], strict=True):
        parts = [tensor.grad for tensor in (hidden, memory) if tensor.requires_grad and tensor.grad is not None]
        norms.append(torch.cat(parts, dim=1).norm(dim=1).numpy())
    return np.array(norms)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (nn.LSTMCell(3, 5, dtype=torch.float64), reference.LSTM),
        (nn.GRUCell(3, 5, dtype=torch.float64), reference.GRU),
        (nn.RNNCell(3, 5, dtype=torch.float64), reference.RNN_TANH),
        (nn.RNNCell(3, 5, nonlinearity="relu", dtype=torch.float64), reference.RNN_RELU),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_gradient_by_step_is_that_of_an_unrolled_cell(
    cell: nn.RNNCellBase, kind: reference.Kind, steps: int
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(steps, 4, 3, dtype=torch.float64)
    hiddens, memories = unrolled(cell, inputs)
    into = torch.randn(4, 5, dtype=torch.float64)
    (hiddens[-1] * into).sum().backward()
    norms = by_step_back(hiddens, memories)

    weights = weights_of(cell)
    start = np.zeros((4, 5))
    trace = reference.forward(kind, weights, inputs.numpy(), [4] * steps, start, start)
    at_hidden = np.zeros((steps, 4, 5))
    at_hidden[-1] = into.numpy()
    np.testing.assert_allclose(reference.reach(kind, weights, trace, at_hidden, start), norms / norms[0], rtol=1e-9)


def test_reach_begins_at_the_last_step_to_which_a_gradient_comes() -> None:
    cell = nn.GRUCell(3, 5, dtype=torch.float64)
    inputs = torch.randn(6, 3, 3, dtype=torch.float64)
    hiddens, _ = unrolled(cell, inputs)
    into = torch.randn(5, dtype=torch.float64)
    (hiddens[3][0] * into).sum().backward()
    norms = np.array([hidden.grad.norm(dim=1).numpy()[0] for hidden in hiddens[3::-1]])  # pyright: ignore

    start = np.zeros((3, 5))
    trace = reference.forward(reference.GRU, weights_of(cell), inputs.numpy(), [3] * 6, start, start)
    at_hidden = np.zeros((6, 3, 5))
    at_hidden[3, 0] = into.numpy()
    at_hidden[1, 0] = 7.0
    ratios = reference.reach(reference.GRU, weights_of(cell), trace, at_hidden, start)
    np.testing.assert_allclose(ratios[:4, 0], norms / norms[0], rtol=1e-9)
    assert np.isnan(ratios[4:, 0]).all()
    assert np.isnan(ratios[:, 1:]).all()


def test_reach_of_a_reverse_direction_over_sequences_of_several_lengths() -> None:
    cell = nn.RNNCell(3, 5, dtype=torch.float64)
    lengths, start = [5, 3, 1], np.zeros((3, 5))
    inputs = torch.randn(5, 3, 3, dtype=torch.float64)
    sizes = [sum(length > step for length in lengths) for step in range(5)]
    trace = reference.forward(reference.RNN_TANH, weights_of(cell), inputs.numpy(), sizes, start, start, reverse=True)
    at_hidden = np.zeros((5, 3, 5))
    at_hidden[0] = 1.0
    ratios = reference.reach(reference.RNN_TANH, weights_of(cell), trace, at_hidden, start)
    for number, length in enumerate(lengths):
        hiddens, _ = unrolled(cell, inputs[:length, number : number + 1].flip(0))
        hiddens[-1].sum().backward()
        norms = np.array([hidden.grad.norm().item() for hidden in hiddens[::-1]])  # pyright: ignore
        np.testing.assert_allclose(ratios[:length, number], norms / norms[0], rtol=1e-9)
        assert np.isnan(ratios[length:, number]).all()


def weights_of(cell: nn.RNNCellBase) -> reference.Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return reference.Weights(*(getattr(cell, name).detach().numpy() for name in names))


def test_gates_of_an_lstm_are_those_that_make_torchs_states() -> None:
    cell = nn.LSTMCell(3, 5, dtype=torch.float64)
    inputs = torch.randn(7, 2, 3, dtype=torch.float64)
    hiddens, memories = unrolled(cell, inputs)
    weights, start = weights_of(cell), np.zeros((2, 5))
    trace = reference.forward(reference.LSTM, weights, inputs.numpy(), [2] * 7, start, start)
    h: NDArray[Any] = start
    for step in range(7):
        before = (
            inputs[step].numpy() @ weights.input.T + h @ weights.hidden.T + weights.input_bias + weights.hidden_bias
        )
        i, f, g, o = np.split(before, 4, axis=1)
        expected = np.stack([1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))], axis=1)
        np.testing.assert_allclose(trace.before[step].reshape(2, -1), before, atol=1e-12)
        np.testing.assert_allclose(trace.gates[step], expected, atol=1e-12)
        np.testing.assert_allclose(trace.cell[step], memories[step].detach().numpy(), atol=1e-12)
        h = hiddens[step].detach().numpy()


def test_gates_of_a_gru_are_those_that_make_torchs_states() -> None:
    cell = nn.GRUCell(3, 5, dtype=torch.float64)
    inputs = torch.randn(7, 2, 3, dtype=torch.float64)
    hiddens, _ = unrolled(cell, inputs)
    weights, start = weights_of(cell), np.zeros((2, 5))
    trace = reference.forward(reference.GRU, weights, inputs.numpy(), [2] * 7, start, start)
    r, z, n = (trace.gates[:, :, gate] for gate in range(3))
    assert ((r > 0) & (r < 1) & (z > 0) & (z < 1)).all()
    np.testing.assert_allclose(n, np.tanh(trace.before[:, :, 2]), atol=1e-12)
    np.testing.assert_allclose((1 - z) * n + z * trace.previous_hidden, trace.hidden, atol=1e-12)
    np.testing.assert_allclose(trace.hidden, torch.stack(hiddens).detach().numpy(), atol=1e-12)
    from_input = inputs.numpy() @ weights.input.T + weights.input_bias
    from_hidden = trace.previous_hidden @ weights.hidden.T + weights.hidden_bias
    np.testing.assert_allclose(r, 1 / (1 + np.exp(-(from_input + from_hidden)[:, :, :5])), atol=1e-12)
    np.testing.assert_allclose(z, 1 / (1 + np.exp(-(from_input + from_hidden)[:, :, 5:10])), atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None, max_examples=20)
def test_products_in_blocks_are_products(rows: int, inner: int, columns: int) -> None:
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, rows, inner)), generator.normal(size=(inner, columns))
    made = reference._multiply(left, reference._blocks(right, min(rows, reference.BLOCK_ROWS)))
    np.testing.assert_allclose(made, left @ right, atol=1e-10)
