"""normalization: where it is put, what it computes, what it leaves, and how the user's source would say it."""

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import desat
from desat.cure import origins
from desat.cure.edit import edit_from_json, edited_files
from tests.warm import python


def deep(normalized: type[nn.Module] | None = None) -> nn.Sequential:
    def norm() -> list[nn.Module]:
        return [] if normalized is None else [normalized(8)]

    return nn.Sequential(
        nn.Linear(6, 8), *norm(), nn.Sigmoid(), nn.Linear(8, 8), *norm(), nn.Sigmoid(), nn.Linear(8, 3)
    )


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def reasons(model: nn.Module, remedy: str, batch: object = None) -> dict[str, str | None]:
    return {change.site: change.refused for change in desat.apply(model, None, remedy, batch=batch)}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def normalized(value: np.ndarray, choice: str) -> np.ndarray:
    """The closed form, scale 1 and shift 0."""
    axis = 0 if choice == "batch" else 1
    if choice == "rms":
        return value / np.sqrt(np.square(value).mean(1, keepdims=True) + np.finfo(np.float32).eps)
    centred = value - value.mean(axis, keepdims=True)
    return centred / np.sqrt(value.var(axis, keepdims=True) + 1e-5)


@pytest.mark.parametrize("choice", ["batch", "layer", "rms", "group", "group:1", "auto"])
@pytest.mark.parametrize("seen", [True, False])
def test_what_goes_into_each_nonlinearity_is_normalized(choice: str, seen: bool) -> None:
    net, inputs = deep(), drawn(32, 6)
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in net[::2]]
    value = inputs.numpy()
    # Groups of one feature would be zeros, so of 8 features there is one group.
    formula = {"group": "layer", "group:1": "layer", "auto": "batch" if seen else "layer"}.get(choice, choice)
    for weight, bias in weights[:2]:
        value = 1 / (1 + np.exp(-normalized(value @ weight.T + bias, formula)))
    first, second, output = desat.apply(net, None, f"normalization={choice}", batch=inputs if seen else None)
    assert (first.refused, second.refused) == (None, None)
    assert "output" in (output.refused or "")
    np.testing.assert_allclose(net(inputs).detach(), value @ weights[2][0].T + weights[2][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape", "choice", "expected"),
    [
        (nn.Conv1d(4, 32, 3), (16, 4, 9), "batch", "BatchNorm1d(32)"),
        (nn.Conv2d(4, 32, 3), (16, 4, 9, 9), "batch", "BatchNorm2d(32)"),
        (nn.Conv3d(4, 32, 3), (16, 4, 5, 5, 5), "batch", "BatchNorm3d(32)"),
        (nn.ConvTranspose2d(4, 32, 3), (16, 4, 9, 9), "auto", "BatchNorm2d(32)"),
        (nn.Conv2d(4, 32, 3), (4, 4, 9, 9), "auto", "GroupNorm(32, 32)"),
        (nn.Conv2d(4, 48, 3), (4, 4, 9, 9), "group", "GroupNorm(24, 48)"),
        (nn.Conv2d(4, 48, 3), (4, 4, 9, 9), "group:6", "GroupNorm(6, 48)"),
        (nn.Conv2d(4, 32, 1), (4, 4, 1, 1), "group", "GroupNorm(2, 32)"),
        (nn.Conv2d(4, 32, 3), (4, 4, 9, 9), "layer", "GroupNorm(1, 32)"),
        (nn.Linear(4, 32), (4, 4), "auto", "LayerNorm(32)"),
        (nn.Linear(4, 32), (16, 4), "auto", "BatchNorm1d(32)"),
        (nn.Linear(4, 64), (16, 4), "group", "GroupNorm(4, 64)"),
        (nn.Linear(4, 32), (64, 5, 4), "auto", "LayerNorm(32)"),
        (nn.Linear(4, 32), (64, 5, 4), "rms", "RMSNorm(32)"),
    ],
)
def test_the_kind_fits_the_layer_and_the_batch(
    layer: nn.Module, shape: tuple[int, ...], choice: str, expected: str
) -> None:
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    inputs = drawn(*shape)
    net(inputs)
    change = desat.apply(net, None, f"normalization={choice}", batch=inputs)[0]
    assert change.refused is None
    assert change.after == f"{type(layer).__name__}, then {expected}"
    before_rectifier = net[0](inputs)
    assert before_rectifier.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("layer", "shape", "choice", "word"),
    [
        (nn.Linear(4, 8), (16, 5, 4), "batch", "sequence"),
        (nn.Linear(4, 8), (16, 5, 4), "group", "sequence"),
        (nn.Linear(4, 8), (1, 4), "batch", "one sample"),
        (nn.Linear(4, 8), (16, 4), "group:3", "divide"),
        (nn.Linear(4, 8), (16, 4), "group:8", "zeros"),
        (nn.Conv2d(4, 8, 3), (16, 4, 9, 9), "rms", "space"),
        (nn.Conv2d(4, 8, 3), (4, 9, 9), "batch", "no dimension is the batch"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(layer: nn.Module, shape: tuple[int, ...], choice: str, word: str) -> None:
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(drawn(*shape))
    state = list(net.state_dict())
    assert word in (reasons(net, f"normalization={choice}", drawn(*shape))["0"] or "")
    assert list(net.state_dict()) == state


def test_a_nonlinearity_that_is_called_as_a_function_is_seen_with_a_batch() -> None:
    blind = reasons(Functional(), "normalization=layer")
    assert all("batch" in (reason or "") for site, reason in blind.items() if site != "head")
    net = Functional()
    assert reasons(net, "normalization=layer", drawn(4, 8)) == {
        "layers.0": None, "layers.1": None, "layers.2": None, "head": "it is the output layer",
    }  # fmt: skip
    assert net.layers[0](drawn(4, 8)).mean(1).abs().max() < 1e-6


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("batch", [drawn(16, 6), None])
def test_what_is_normalized_already_is_left(norm: type[nn.Module], batch: Tensor | None) -> None:
    net = deep(norm)
    left = reasons(net, "normalization=batch", batch)
    assert norm.__name__ in (left["0"] or "")
    assert all(left.values())


def test_a_normalization_after_the_nonlinearity_counts() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert "BatchNorm1d" in (reasons(net, "normalization=layer", drawn(4, 6))["0"] or "")


def test_it_is_applied_once() -> None:
    net = deep()
    desat.apply(net, None, "normalization=layer")
    state = {name: value.clone() for name, value in net.state_dict().items()}
    again = reasons(net, "normalization=batch", drawn(16, 6))
    assert all(again.values())
    assert state.keys() == net.state_dict().keys()


def test_recurrent_shared_frozen_gating_and_embedding_layers_are_left() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(9, 8), nn.LSTM(8, 8, batch_first=True)
            self.twice, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
            self.gate, self.sigmoid, self.head = nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lstm(self.embedding(x))[0]
            x = torch.relu(self.twice(torch.relu(self.twice(x))))
            x = torch.relu(self.frozen(x))
            return self.head(x * self.sigmoid(self.gate(x)))

    left = reasons(Net(), "normalization=layer", torch.randint(9, (4, 5)))
    words = {
        "embedding": "no linear", "lstm": "recurrent", "twice": "2 times", "frozen": "frozen", "gate": "gate",
        "head": "output",
    }  # fmt: skip
    assert left.keys() == words.keys()
    assert {site: reason for site, reason in left.items() if words[site] not in (reason or "")} == {}


def test_attention_projections_are_left_and_the_layers_between_them_are_not() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    left = reasons(nn.Sequential(net, nn.Linear(8, 2)), "normalization=layer", drawn(4, 5, 8))
    assert [site for site, reason in left.items() if reason is None] == ["0.linear1"]


def test_what_no_optimizer_trains_is_left() -> None:
    net = deep()
    optimizer = torch.optim.SGD(net[4].parameters(), lr=0.1)
    changes = desat.apply(net, optimizer, "normalization=layer")
    assert "no optimizer" in (changes[0].refused or "")


def test_a_parametrized_layer_is_normalized() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert desat.apply(net, optimizer, "normalization=layer", batch=drawn(4, 6))[0].refused is None
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("choice", "expected"), [("group", nn.GroupNorm), ("layer", nn.LayerNorm), ("auto", nn.LayerNorm)]
)
def test_a_batch_normalization_that_starves_gives_way(choice: str, expected: type[nn.Module]) -> None:
    net = deep(nn.BatchNorm1d)
    parameters, inputs = list(net.parameters()), drawn(2, 6)
    changes = desat.apply(net, None, f"normalization={choice}", batch=inputs)
    assert isinstance(net[1], expected)
    assert [change.site for change in changes if change.refused is None] == ["1", "4"]
    assert all(old is new for old, new in zip(parameters, net.parameters(), strict=True))
    with torch.no_grad():
        net[1].weight.fill_(3.0)
    between = net[:2](inputs).detach().numpy()
    np.testing.assert_allclose(between, 3 * normalized(net[0](inputs).detach().numpy(), "layer"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(inputs), net.train()(inputs))


def test_a_batch_normalization_with_batches_enough_stays_by_auto() -> None:
    net = deep(nn.BatchNorm1d)
    assert all(reasons(net, "normalization=auto", drawn(32, 6)).values())
    assert isinstance(net[1], nn.BatchNorm1d)


def test_a_frozen_batch_normalization_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).requires_grad_(False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert "frozen" in (reasons(net, "normalization=group", drawn(2, 3, 8, 8))["1"] or "")


def test_its_parameters_are_trained_with_the_layers_own() -> None:
    net, inputs = deep(), drawn(32, 6)
    kept, state = dict(net.named_parameters()), torch.get_rng_state()
    optimizer = torch.optim.SGD([{"params": net[:2].parameters()}, {"params": net[2:].parameters(), "lr": 0.0}], lr=0.1)
    desat.apply(net, optimizer, "normalization=batch", batch=inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(net.get_parameter(name) is parameter for name, parameter in kept.items())
    assert net[0].desat_normalization.num_batches_tracked == 0
    net(inputs).square().sum().backward()
    optimizer.step()
    assert (net[0].desat_normalization.bias != 0).all()
    assert (net[2].desat_normalization.bias == 0).all()


@pytest.mark.parametrize("choice", ["batch", "layer", "rms", "group"])
def test_a_network_with_it_can_be_saved_loaded_copied_pickled_and_compiled(choice: str) -> None:
    net, inputs = deep(), drawn(32, 6)
    compiled = torch.compile(net, backend="eager")
    compiled(inputs)  # what was compiled before must not run on without it
    desat.apply(compiled, None, f"normalization={choice}", batch=inputs)
    net(inputs)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    twin = deep()
    desat.apply(twin, None, f"normalization={choice}", batch=inputs)
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for other in (compiled, twin, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.eval()(inputs), net.eval()(inputs))
    assert net.to(torch.float64)(inputs.double()).dtype == torch.float64


SCRIPT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(in_features=width,
                                out_features=width // 2)
        self.images = nn.Sequential({norm} nn.Sigmoid())
        self.head = nn.Linear(width // 2, 4)

    def forward(self, x):
        x = torch.sigmoid(self.second(torch.sigmoid(self.first(x))))
        return self.head(self.images(x))

torch.manual_seed(0)
inputs, labels = torch.randn(256, 16), torch.randint(0, 4, (256,))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(20):
    batch = torch.arange(step * {size}, (step + 1) * {size}) % 256
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
    loss.backward()
    optimizer.step()
print(loss.item())
"""


def run(folder: Path, *arguments: str) -> str:
    done = python(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("remedy", "norm", "size"),
    [("batch", "", 32), ("auto", "nn.BatchNorm1d(width // 2),", 4)],
)
def test_a_script_runs_with_it_and_its_edits_do_the_same(tmp_path: Path, remedy: str, norm: str, size: int) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(norm=norm, size=size))
    common = ("-m", "desat", "run", "-q", "--run-dir", "run", "--apply", f"normalization={remedy}", "train.py")
    printed = run(tmp_path, *common)
    assert printed != run(tmp_path, "train.py")
    with desat.open(tmp_path / "run") as record:
        edits = [edit_from_json(edit) for edit in record.information["edits"]]
    ((_, (_, text)),) = edited_files(edits).items()
    if not norm:
        assert "self.first = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width))" in text
        assert "out_features=width // 2), nn.BatchNorm1d(width // 2))" in text
    else:
        assert "BatchNorm1d" not in text
    assert "self.head = nn.Linear(width // 2, 4)" in text
    (tmp_path / "train.py").write_text(text)
    assert run(tmp_path, "train.py") == printed


@pytest.fixture
def origins_known():
    origins.install()
    yield
    origins.uninstall()


def made(source: str, folder: Path) -> nn.Module:
    path = folder / "network.py"
    path.write_text(source)
    names: dict[str, object] = {}
    exec(compile(source, str(path), "exec"), names)
    return names["net"]  # pyright: ignore[reportReturnType]


@pytest.mark.usefixtures("origins_known")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import torch\nnet = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))",
            "torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))",
        ),
        (
            "from torch.nn import LayerNorm, Linear, Sequential, Tanh\n"
            "net = Sequential(Linear(4, 8), Tanh(), Linear(8, 2))",
            "Sequential(Linear(4, 8), LayerNorm(8))",
        ),
        ("from torch.nn import Linear, Sequential, Tanh\nnet = Sequential(Linear(4, 8), Tanh(), Linear(8, 2))", None),
        (
            "from torch import nn\nnet = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))\n"
            "net[0].bias.data.zero_()",
            None,
        ),
        (
            "from torch import nn\ndef layer(a, b):\n    return nn.Linear(a, b)\n"
            "net = nn.Sequential(layer(4, 8), nn.Tanh(), layer(8, 2))",
            None,
        ),
        (
            "from torch import nn\ndef layer(a, b):\n    return nn.Linear(a, b)\n"
            "net = nn.Sequential(layer(4, 8), nn.Tanh(), layer(8, 8), nn.Tanh(), nn.Linear(8, 2))",
            "nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b))",
        ),
    ],
)
def test_the_edit_is_made_where_the_constructor_stands_for_normalized_layers_alone(
    source: str, text: str | None, tmp_path: Path
) -> None:
    changes = desat.apply(made(source, tmp_path), None, "normalization=layer")
    assert changes[0].refused is None
    assert {edit.text for change in changes for edit in change.edits} == ({text} if text else set())
