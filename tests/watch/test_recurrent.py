"""Gates, states and the gradient through time of a watched training, against torch's own cells and autograd."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import desat
from desat.nonlinearity import measure_curve
from desat.record.reader import Record
from desat.watch import readings as collecting
from desat.watch import recurrent
from desat.watch.measurements import Measurements
from desat.watch.modules import Member
from desat.watch.readings import Readings
from desat.watch.scene import Scene
from desat.watch.shipment import ship
from desat.watch.sites import Sites
from desat.watch.through_time import LEAST_RATIO, REACH, measure_recurrent, reach_readings
from desat.watch.trouble import Trouble

GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new"), "RNN": ("hidden",)}


class Reader(nn.Module):
    """A recurrent layer, what comes of which is chosen by `use`, and a readout."""

    def __init__(self, layer: nn.Module, use: Callable[[Any], Tensor], width: int) -> None:
        super().__init__()
        self.layer, self.head, self.use = layer, nn.Linear(width, 4), use

    def forward(self, *inputs: Any) -> Tensor:
        return self.head(self.use(self.layer(*inputs)))


def last_step(output: Any) -> Tensor:
    return output[0][-1]


def train_on(*inputs: Any, steps: int = 1) -> Callable[..., None]:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(*inputs).square().sum().backward()
            optimizer.step()

    return loop


def readings(record: Record, name: str, kind: str = "gate", step: int = 0) -> dict[str, float]:
    (site,) = [site for site in record.sites(kind) if site.name == name]
    return {name: columns["value"][step] for name, columns in record.readings(site).items()}


def arguments(layer: nn.RNNBase, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By gate: its arguments and its values at all steps of a layer of one direction, by torch and step by step."""
    w_ih, w_hh, b_ih, b_hh = (tensor.detach() for tensor in layer.all_weights[0])
    hidden = layer(inputs)[0].detach()
    before = torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])
    projected, recurred = inputs @ w_ih.T + b_ih, before @ w_hh.T + b_hh
    if isinstance(layer, nn.LSTM):
        i, f, g, o = (projected + recurred).chunk(4, dim=2)
        found = {"input": (i, i.sigmoid()), "forget": (f, f.sigmoid()), "output": (o, o.sigmoid())}
        return {**found, "cell": (g, g.tanh())}
    if isinstance(layer, nn.GRU):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = projected.chunk(3, dim=2), recurred.chunk(3, dim=2)
        r, z = x_r + h_r, x_z + h_z
        n = x_n + r.sigmoid() * h_n
        return {"reset": (r, r.sigmoid()), "update": (z, z.sigmoid()), "new": (n, n.tanh())}
    z = projected + recurred
    return {"hidden": (z, z.tanh() if layer.nonlinearity == "tanh" else z.relu())}


def strong(layer: nn.RNNBase, scale: float = 6.0) -> Any:
    """A layer with weights that saturate a part of its gates."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    return layer


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(6, 8), nn.GRU(6, 8), nn.RNN(6, 8), nn.RNN(6, 8, nonlinearity="relu")],
    ids=lambda layer: str(layer),
)
def test_shares_and_means_of_gates_are_those_of_torchs_cells(watched, layer: nn.RNNBase) -> None:
    strong(layer, 1.0 if layer.mode == "RNN_RELU" else 6.0)
    inputs = torch.randn(12, 4, 6)
    expected = arguments(copy.deepcopy(layer).double(), inputs.double())
    record = watched(Reader(layer, last_step, 8), train_on(inputs))
    kind = type(layer).__name__
    assert [site.name for site in record.sites("gate")] == [f"layer.l0.{gate}" for gate in GATES[kind]]
    assert {site.operation for site in record.sites("gate")} == {f"{kind} gate"}
    saturated = 0.0
    for gate, (before, values) in expected.items():
        functions = {"cell": torch.tanh, "new": torch.tanh, "hidden": torch.tanh}
        function = torch.relu if layer.mode == "RNN_RELU" else functions.get(gate, torch.sigmoid)
        curve = measure_curve(function)
        assert curve is not None
        found = readings(record, f"layer.l0.{gate}")
        assert set(found) == {"saturated_low", "saturated_high", "mean"}
        assert found["saturated_low"] == pytest.approx((before <= curve.low).double().mean().item(), abs=1e-9)
        assert found["saturated_high"] == pytest.approx((before >= curve.high).double().mean().item(), abs=1e-9)
        assert found["mean"] == pytest.approx(values.mean().item(), abs=1e-5)
        saturated += found["saturated_low"] + found["saturated_high"]
    assert saturated > 0.1


def test_states_of_an_lstm(watched) -> None:
    inputs, layer = torch.randn(12, 4, 6), strong(nn.LSTM(6, 8), 2.0)
    cell, state = nn.LSTMCell(6, 8), (torch.zeros(4, 8), torch.zeros(4, 8))
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    memories = []
    for step in inputs:
        state = cell(step, state)
        memories.append(state[1].detach())
    memory, hidden = torch.stack(memories), layer(inputs)[0].detach()
    found = readings(watched(Reader(layer, last_step, 8), train_on(inputs)), "layer.l0", "recurrent")
    assert found["steps"] == 12
    assert found["hidden_rms"] == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert found["cell_rms"] == pytest.approx(memory.square().mean().sqrt().item(), rel=1e-5)
    assert found["cell_largest"] == pytest.approx(memory.abs().max().item(), rel=1e-5)


def by_step(cell: nn.RNNCellBase, head: nn.Linear, inputs: Tensor) -> np.ndarray:
    """Norms of the gradient at the state by steps back, shape (steps, sequences), of the loss of `train_on`."""
    state: Any = torch.zeros(inputs.shape[1], cell.hidden_size, dtype=inputs.dtype, requires_grad=True)
    if isinstance(cell, nn.LSTMCell):
        state = (state, torch.zeros_like(state))
    states = []
    for step in inputs:
        state = cell(step, state)
        states.append(state if isinstance(state, tuple) else (state,))
        for part in states[-1]:
            part.retain_grad()
    head(states[-1][0]).square().sum().backward()
    return np.array([torch.cat([part.grad for part in state], dim=1).norm(dim=1).numpy() for state in states[::-1]])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("of", ["output", "state"])
def test_the_gradient_through_time_is_that_of_an_unrolled_cell(watched, kind: str, of: str) -> None:
    inputs, layer = torch.randn(30, 4, 6), getattr(nn, kind)(6, 8)
    use = last_step if of == "output" else lambda output: (output[1][0] if kind == "LSTM" else output[1])[0]
    model = Reader(layer, use, 8)
    cell = getattr(nn, f"{kind}Cell")(6, 8)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    norms = by_step(cell.double(), copy.deepcopy(model.head).double(), inputs.double())
    ratios = np.sqrt(np.square(norms / norms[0]).mean(axis=1))
    below = int(np.flatnonzero(ratios < REACH)[0])

    found = readings(watched(model, train_on(inputs)), "layer.l0", "recurrent")
    assert 1 < below < 30
    assert found["gradient_reach_steps"] == below
    assert found["gradient_decay_db_per_step"] == pytest.approx(-20 * np.log10(ratios[below]) / below, rel=1e-3)
    assert found["gradient_first_step_db"] == pytest.approx(20 * np.log10(ratios[-1]), rel=1e-3)


def forgetful(bias: float) -> nn.LSTM:
    layer = nn.LSTM(6, 8)
    with torch.no_grad():
        layer.bias_ih_l0[8:16] = bias
        layer.weight_hh_l0.mul_(0.1)
        layer.weight_ih_l0.mul_(0.3)
    return layer


def test_forget_gates_that_are_shut_make_a_short_reach(watched) -> None:
    inputs = torch.randn(40, 4, 6)
    record = watched(Reader(forgetful(-12.0), last_step, 8), train_on(inputs))
    assert readings(record, "layer.l0.forget")["saturated_low"] == 1.0
    assert readings(record, "layer.l0.forget")["mean"] < 0.01
    shut = readings(record, "layer.l0", "recurrent")
    assert shut["gradient_reach_steps"] <= 2
    assert shut["gradient_decay_db_per_step"] > 20


def test_forget_gates_that_are_open_make_a_long_reach(watched) -> None:
    record = watched(Reader(forgetful(8.0), last_step, 8), train_on(torch.randn(40, 4, 6)))
    assert readings(record, "layer.l0.forget")["saturated_high"] == 1.0
    is_open = readings(record, "layer.l0", "recurrent")
    assert is_open["gradient_reach_steps"] == 40
    assert is_open["gradient_decay_db_per_step"] < 1


@given(
    st.sampled_from(["LSTM", "GRU", "RNN"]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1, 3, 10]),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=40)
def test_a_layer_of_any_make_is_measured(
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    projected: bool,
    batch: int | None,
    steps: int,
) -> None:
    """The state of every layer and direction as the writer computes it is the one torch ended with."""
    options = {"proj_size": 3} if projected and kind == "LSTM" else {}
    layer = getattr(nn, kind)(
        5, 4, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=torch.float64, **options
    )
    inputs = torch.randn(*([steps, 5] if batch is None else [steps, batch, 5]), dtype=torch.float64)
    if batch is not None and batch_first:
        inputs = inputs.transpose(0, 1).contiguous()
    output, state = layer(inputs)
    found, kept = measured(layer, inputs)
    names = [f"layer.l{number}{way}" for number in range(layers) for way in ("", "_reverse")[: 1 + bidirectional]]
    assert set(found) == {*names, *(f"{name}.{gate}" for name in names for gate in GATES[kind])}
    assert all(np.isfinite(list(values.values())).all() for values in found.values())

    chosen = (batch or 1) // 4 or 1
    if batch is None:
        top = output.detach().unsqueeze(1)
    else:
        top = (output.transpose(0, 1) if batch_first else output).detach()[:, ::chosen][:, :4]
    for way, part in enumerate(top.chunk(1 + bidirectional, dim=2)):
        name = f"layer.l{layers - 1}{'_reverse' * way}"
        assert found[name]["hidden_rms"] == pytest.approx(part.square().mean().sqrt().item(), rel=1e-9)
    assert kept["inputs"].shape == (steps, top.shape[1], 5)
    assert kept["at_output"].shape == top.shape
    of_h = state[0] if kind == "LSTM" else state
    assert kept["at_hidden"].shape == (len(names), top.shape[1], of_h.shape[-1])


def measured(layer: nn.Module, *inputs: Any) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """What the probe makes of one call of a layer, whose outputs are all added up, and what it kept to make it of."""

    class Kept(Measurements):
        def gathered(self, site: Any, name: str, tensors: Any, reduction: Any) -> Any:
            self.reduction = reduction
            self.kept = super().gathered(site, name, tensors, reduction)
            return self.kept

    measurements = Kept(Trouble())
    finish = recurrent.probe_recurrent(
        Scene(Sites(), measurements), Member("layer", type(layer).__name__, True, None), layer, inputs
    )
    assert finish is not None
    output = layer(*inputs)
    finish(output)
    flat: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, PackedSequence):
            flat.append(value.data)
        elif isinstance(value, Tensor):
            flat.append(value)
        else:
            for item in value:
                collect(item)

    collect(output)
    torch.stack([tensor.square().sum() for tensor in flat]).sum().backward()
    assert measurements.kept is not None
    assert measurements.reduction.func is measure_recurrent
    arrays = {name: tensor.numpy() for name, tensor in measurements.kept.items()}
    measurements.stop()
    return {site.name: values for site, values in measurements.reduction(arrays).items()}, measurements.kept


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.booleans(), st.sampled_from(["LSTM", "GRU", "RNN"]))
@settings(deadline=None, max_examples=25)
def test_of_packed_sequences_the_longest_are_measured(lengths: list[int], bidirectional: bool, kind: str) -> None:
    layer = getattr(nn, kind)(5, 4, 2, bidirectional=bidirectional, dtype=torch.float64)
    padded = torch.randn(max(lengths), len(lengths), 5, dtype=torch.float64)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    numbers = 2 * (1 + bidirectional)
    start: Any = torch.randn(numbers, len(lengths), 4, dtype=torch.float64)
    start = (start, torch.randn_like(start)) if kind == "LSTM" else start
    found, _ = measured(layer, packed, start)

    output, order = layer(packed, start)[0], packed.sorted_indices
    assert order is not None
    steps, _ = pad_packed_sequence(output)
    chosen = order[:4].tolist()
    top = torch.cat([steps[: lengths[number], number] for number in chosen]).detach()
    for way, part in enumerate(top.chunk(1 + bidirectional, dim=1)):
        name = f"layer.l1{'_reverse' * way}"
        assert found[name]["hidden_rms"] == pytest.approx(part.square().mean().sqrt().item(), rel=1e-9)
        assert ("gradient_reach_steps" in found[name]) == (max(lengths) > 1)


def test_of_a_long_sequence_the_newest_steps_are_measured() -> None:
    layer, inputs = nn.GRU(3, 4, dtype=torch.float64), torch.randn(300, 2, 3, dtype=torch.float64)
    found, kept = measured(layer, inputs, torch.randn(1, 2, 4, dtype=torch.float64))
    assert found["layer.l0"]["steps"] == recurrent.STEPS
    assert torch.equal(kept["inputs"], inputs[-recurrent.STEPS :])
    assert "hidden" not in kept
    short = layer(inputs[-recurrent.STEPS :])[0].detach()
    assert found["layer.l0"]["hidden_rms"] == pytest.approx(short.square().mean().sqrt().item(), rel=1e-9)


def test_of_long_packed_sequences_the_newest_steps_are_measured() -> None:
    layer, padded = nn.GRU(3, 4, dtype=torch.float64), torch.randn(300, 3, 3, dtype=torch.float64)
    found, kept = measured(layer, pack_padded_sequence(padded, torch.tensor([300, 290, 20])))
    newest = torch.cat([torch.stack([padded[t, n] for n in range(2) if t < (300, 290)[n]]) for t in range(44, 300)])
    assert torch.equal(kept["inputs"], newest)
    assert found["layer.l0"]["steps"] == recurrent.STEPS


def test_layers_with_many_weights_run_over_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "MULTIPLICATIONS", 100_000)
    layer = nn.LSTM(20, 20)
    found, _ = measured(layer, torch.randn(100, 1, 20))
    assert found["layer.l0"]["steps"] == 100_000 // sum(parameter.numel() for parameter in layer.parameters())


def test_layers_with_too_many_weights_are_left_alone(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "WEIGHTS", 100)
    record = watched(Reader(nn.LSTM(6, 8), last_step, 8), train_on(torch.randn(5, 4, 6)))
    assert record.sites("gate") == ()
    assert record.sites("recurrent") == ()


def test_a_parametrized_layer_is_left_alone(watched) -> None:
    layer = nn.GRU(6, 8)
    nn.utils.parametrizations.spectral_norm(layer, "weight_hh_l0")
    record = watched(Reader(layer, last_step, 8), train_on(torch.randn(5, 4, 6), steps=2))
    assert record.sites("gate") == ()


def test_half_precision_is_measured() -> None:
    layer = nn.GRU(6, 8, dtype=torch.bfloat16)
    found, kept = measured(layer, torch.randn(5, 4, 6, dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert found["layer.l0"]["gradient_reach_steps"] >= 1


class Stepwise(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        state = None
        for step in inputs:
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_is_measured_at_the_last_call_that_was_taken(watched, kind: str) -> None:
    cell, inputs = getattr(nn, f"{kind}Cell")(6, 8), torch.randn(6, 4, 6)
    state = None
    for step in inputs[:4]:  # of six calls the first, the second and the fourth are taken
        state = cell(step, state)
    hidden = state[0] if isinstance(state, tuple) else state
    assert hidden is not None
    record = watched(Stepwise(cell), train_on(inputs))
    assert [site.name for site in record.sites("gate")] == [f"cell.{gate}" for gate in GATES[kind]]
    found = readings(record, "cell", "recurrent")
    assert found["hidden_rms"] == pytest.approx(hidden.detach().square().mean().sqrt().item(), rel=1e-5)
    assert found["steps"] == 1
    assert "gradient_reach_steps" not in found


def test_every_sampled_step_is_in_the_record(watched) -> None:
    record = watched(Reader(nn.LSTM(6, 8), last_step, 8), train_on(torch.randn(5, 4, 6), steps=5))
    (site,) = record.sites("recurrent")
    assert record.readings(site)["gradient_reach_steps"]["step"].tolist() == [0, 1, 2, 3, 4]
    positions = [place.position for place in record.sites() if place.kind in ("gate", "recurrent")]
    (head,) = [place for place in record.sites("module") if place.name == "head"]
    assert max(positions) < head.position


def test_a_gradient_that_comes_to_the_first_step_only_has_no_reach(watched) -> None:
    record = watched(Reader(nn.GRU(6, 8), lambda output: output[0][0], 8), train_on(torch.randn(5, 4, 6)))
    found = readings(record, "layer.l0", "recurrent")
    assert found["hidden_rms"] > 0
    assert "gradient_reach_steps" not in found


def test_reach_readings() -> None:
    ratios = np.array([[1.0, 1.0, np.nan], [0.1, 0.1, np.nan], [0.001, np.nan, np.nan], [np.nan] * 3])
    found = reach_readings(ratios)
    assert found == pytest.approx(
        {"gradient_reach_steps": 2, "gradient_decay_db_per_step": 30, "gradient_first_step_db": -60}
    )
    assert reach_readings(np.array([[1.0], [2.0]]))["gradient_reach_steps"] == 2
    assert reach_readings(np.array([[1.0], [10.0]]))["gradient_decay_db_per_step"] == pytest.approx(-20)
    assert reach_readings(np.array([[1.0], [0.0]]))["gradient_first_step_db"] == 20 * np.log10(LEAST_RATIO)
    assert reach_readings(np.array([[1.0], [np.nan]])) == {}


class Tagger(nn.Module):
    """Packed sentences, two layers, both directions, dropout."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(6, 8, 2, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        packed = pack_padded_sequence(inputs, torch.tensor([3, 7, 7, 5, 2]), enforce_sorted=False)
        return self.head(pad_packed_sequence(self.layer(packed)[0])[0])


def trained(make: Callable[[], nn.Module], inputs: Tensor, run_dir: Path | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if run_dir is None:
        train_on(inputs, steps=5)(model, optimizer)
    else:
        with desat.watch(model, optimizer, every=2, run_dir=run_dir):
            train_on(inputs, steps=5)(model, optimizer)
    moments = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return [*model.state_dict().values(), *moments, torch.get_rng_state()]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("make", [Tagger, lambda kind: Stepwise(getattr(nn, f"{kind}Cell")(6, 8))])
def test_training_is_the_same_bit_for_bit(kind: str, make: Callable[[str], nn.Module], tmp_path: Path) -> None:
    inputs = torch.randn(7, 5, 6)
    plain = trained(lambda: make(kind), inputs, None)
    watched = trained(lambda: make(kind), inputs, tmp_path / "run")
    assert all(torch.equal(expected, found) for expected, found in zip(plain, watched, strict=True))
    with desat.open(tmp_path / "run") as record:
        sites = record.sites("gate")
        assert len(sites) == len(GATES[kind]) * (4 if make is Tagger else 1)
        assert all(record.readings(site)["mean"]["step"].tolist() == [0, 2, 4] for site in sites)


def test_no_more_is_gathered_than_the_writer_keeps_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    collected, site = Readings(), Sites().meet("recurrent", "a", "LSTM")
    monkeypatch.setattr(collecting, "GATHERED_BYTES", 1000)

    def gather(forward_pass: int) -> bool:
        return collected.gather(site, "x", lambda: {"x": torch.zeros(200)}, lambda _: {}, forward_pass) is not None

    assert [gather(forward_pass) for forward_pass in range(3)] == [True, True, False]
    parcels = [collected.take(0, set())]
    assert not gather(3)
    ship(parcels)()
    parcels.clear()
    assert gather(4)


def test_a_reduction_that_took_its_share_of_the_processor_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    collected, site = Readings(), Sites().meet("recurrent", "a", "LSTM")
    monkeypatch.setattr(collecting, "HOST_SHARE", 0.0)

    def busy(_: dict[str, Any]) -> dict[Any, dict[str, float]]:
        return {site: {"sum": float(sum(range(100_000)))}}

    assert collected.gather(site, "x", lambda: {"x": torch.zeros(1)}, busy, 1) is not None
    assert [row.name for row in ship([collected.take(0, set())])()] == ["sum"]
    assert collected.gather(site, "x", lambda: {"x": torch.zeros(1)}, busy, 2) is None


def test_a_reduction_that_fails_costs_its_readings_only(caplog: pytest.LogCaptureFixture) -> None:
    collected, sites = Readings(), Sites()
    broken, sound = sites.meet("recurrent", "a", "LSTM"), sites.meet("recurrent", "b", "LSTM")
    collected.gather(broken, "x", lambda: {"x": torch.zeros(1)}, lambda arrays: {broken: {"y": arrays["y"]}}, 1)
    kept = collected.gather(sound, "x", lambda: {"x": torch.ones(1)}, lambda arrays: {sound: {"n": len(arrays)}}, 1)
    assert kept is not None
    kept["later"] = torch.ones(2)
    assert [(row.site, row.name, row.value) for row in ship([collected.take(3, set())])()] == [(sound.id, "n", 2)]
    assert "readings are missing" in caplog.text


@pytest.mark.parametrize("kind", GATES)
def test_the_spread_of_the_weights_over_the_units(watched, kind: str) -> None:
    layer = getattr(nn, kind)(3, 5)
    weights = {name: one.detach().double().reshape(len(GATES[kind]), 5, -1) for name, one in layer.named_parameters()}
    around = [one - one.mean(1, keepdim=True) for name, one in weights.items() if name.startswith("weight")]
    whole = [one for name, one in weights.items() if name.startswith("weight")]
    expected = (sum(one.square().sum() for one in around) / sum(one.square().sum() for one in whole)) ** 0.5
    record = watched(Reader(layer, last_step, 5), train_on(torch.randn(7, 2, 3)))
    assert readings(record, "layer.l0", "recurrent")["unit_spread"] == pytest.approx(float(expected), rel=1e-6)
    assert expected > 0.7


@pytest.mark.parametrize(("value", "spread"), [(0.3, 0.0), (0.0, None), (float("nan"), None)])
def test_units_that_are_copies_have_no_spread(watched, value: float, spread: float | None) -> None:
    layer = nn.LSTM(3, 5)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(value)
        layer.weight_hh_l0.fill_(value)
    found = readings(watched(Reader(layer, last_step, 5), train_on(torch.randn(7, 2, 3))), "layer.l0", "recurrent")
    assert found.get("unit_spread") == (None if spread is None else pytest.approx(spread, abs=1e-7))
