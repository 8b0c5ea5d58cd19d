import copy
import itertools
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import desat
from desat.cure import origins
from desat.cure.edit import edited
from desat.record.reader import Record
from tests.warm import desat as run_desat
from tests.warm import python

NUMBERS = itertools.count()

MODULE = """import torch, desat
from torch import nn
net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1))
inputs = torch.linspace(-1, 1, 32).view(8, 4)
keys = list(net.state_dict())
changes = desat.apply(net, None, "loss=logits", batch=inputs)
loss = nn.CrossEntropyLoss()(net(inputs), torch.arange(8) % 3)
scores = net[:3](inputs)
"""
CLASS = """import torch, desat
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        z = self.head(x)
        return WRITTEN
net = Net()
inputs = torch.linspace(-1, 1, 32).view(8, 4)
keys = list(net.state_dict())
changes = desat.apply(net, None, "loss=logits", batch=inputs)
loss = F.cross_entropy(net(inputs), torch.arange(8) % 3)
scores = net.head(inputs)
"""


@pytest.fixture(autouse=True)
def noted() -> Iterator[None]:
    origins.install()
    yield
    origins.uninstall()


def run(tmp_path: Path, script: str) -> tuple[Path, dict[str, Any]]:
    # Python keeps the lines of a file that it has seen: each script has a name of its own.
    path = tmp_path / f"train{next(NUMBERS)}.py"
    path.write_text(script)
    return path, runpy.run_path(str(path))


def test_a_softmax_module_before_cross_entropy_goes(tmp_path: Path) -> None:
    path, names = run(tmp_path, MODULE)
    (change,) = names["changes"]
    assert (change.site, change.refused, change.redefines_loss) == ("3", None, True)
    assert "scores" in change.after
    assert isinstance(names["net"][3], nn.Identity)
    assert torch.equal(names["net"](names["inputs"]), names["scores"])
    assert list(names["net"].state_dict()) == names["keys"]
    assert edited(path.read_text(), change.edits) == MODULE.replace("nn.Softmax(dim=1)", "nn.Identity()")
    compiled = torch.compile(names["net"], backend="eager")
    assert torch.equal(compiled(names["inputs"]), names["scores"])


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("F.softmax(z, dim=1)", "z"),
        ("torch.softmax(z * 2, 1)", "(z * 2)"),
        ("z.softmax(-1)", "z"),
        ("(z + 0).sigmoid()", "(z + 0)"),
        ("torch.sigmoid(input=z)", "z"),
        ("F.softmax(z, 1).view(-1, 3)", "z.view(-1, 3)"),
    ],
)
def test_a_functional_call_becomes_its_argument(tmp_path: Path, written: str, plain: str) -> None:
    path, names = run(tmp_path, CLASS.replace("WRITTEN", written))
    (change,) = names["changes"]
    assert change.refused is None
    factor = 2 if "2" in plain else 1
    torch.testing.assert_close(names["net"](names["inputs"]), factor * names["scores"])
    assert edited(path.read_text(), change.edits) == CLASS.replace("WRITTEN", plain)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (MODULE.replace("nn.CrossEntropyLoss()(net(inputs), ", "nn.NLLLoss()(net(inputs).log(), "), "NLLLoss"),
        (MODULE.replace("nn.CrossEntropyLoss()(net(inputs), torch.arange(8) % 3)", "net(inputs).sum()"), "no loss"),
        (MODULE.replace("nn.Softmax", "nn.LogSoftmax"), "changes nothing"),
        (MODULE.replace(", nn.Softmax(dim=1)", ""), "no softmax"),
        (MODULE.replace(", batch=inputs", ""), "no batch"),
        (CLASS.replace("WRITTEN", "z * F.softmax(z, 1)"), "no softmax"),
        (CLASS.replace("WRITTEN", "F.softmax(z, 1), z").replace("net(inputs), ", "net(inputs)[0], "), "not one tensor"),
        (CLASS.replace("WRITTEN", "[F.softmax(one, 1) for one in (z, z)][1]"), "more than once"),
        (CLASS.replace("WRITTEN", "z").replace("batch=inputs", "batch=inputs[:, :2]"), "failed"),
    ],
)
def test_what_may_be_right_is_left_with_the_reason(tmp_path: Path, script: str, reason: str) -> None:
    _, names = run(tmp_path, script)
    (change,) = names["changes"]
    assert change.refused is not None
    assert reason in change.refused
    assert not change.edits
    assert not any(isinstance(module, nn.Identity) for module in names["net"].modules())


def test_the_random_state_and_buffers_stay(tmp_path: Path) -> None:
    script = MODULE.replace("nn.ReLU()", "nn.BatchNorm1d(5), nn.Dropout(0.5)").replace(
        "scores = net[:3]", "scores = net[:4]"
    )
    script = script.replace("changes = ", "state = torch.get_rng_state()\nchanges = ")
    script = script.replace("loss = ", "after = torch.get_rng_state()\nmean = net[1].running_mean.clone()\nloss = ")
    _, names = run(tmp_path, script)
    assert names["changes"][0].refused is None
    assert torch.equal(names["state"], names["after"])
    assert not names["mean"].any()


def test_a_whole_script_is_run_without_its_softmax(tmp_path: Path) -> None:
    script = (
        "import torch\n"
        "from torch import nn\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "inputs, labels = torch.randn(8, 4), torch.arange(8) % 3\n"
        "for _ in range(3):\n"
        "    optimizer.zero_grad()\n"
        "    loss = nn.functional.cross_entropy(net(inputs), labels)\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
        "print(loss.item())\n"
    )
    (tmp_path / "train.py").write_text(script)
    ended = run_desat("run", "--run-dir", "run", "--apply", "loss=logits", "train.py", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    information = Record(tmp_path / "run").information
    assert information["redefines_loss"]
    (edit,) = information["edits"]
    assert edit["text"] == "nn.Identity()"
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs, labels, loss = torch.randn(8, 4), torch.arange(8) % 3, torch.zeros(())
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    assert float(ended.stdout.splitlines()[0]) == pytest.approx(loss.item(), rel=1e-5)


LOOP = """import torch, desat
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import softmax
torch.manual_seed(0)
net = nn.Linear(4, 3)
inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
targets = F.one_hot(labels, 3).float()
criterion = nn.CrossEntropyLoss(label_smoothing=0.1).to("cpu")
smooth = nn.Softmax(dim=1)
chosen = criterion
binary: nn.Module = nn.BCEWithLogitsLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
losses, before = [], nn.Sequential(nn.Softmax(dim=1), nn.Sigmoid())(inputs)
for step in range(3):
    changes = desat.apply(net, optimizer, "loss=logits", batch=inputs) if step == 0 else changes
    out = net(inputs)
    WRITTEN
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
elsewhere = [torch.softmax(inputs, 1), F.softmax(input=inputs, dim=1), softmax(inputs, 1), inputs.softmax(1), smooth(inputs)]
after = nn.Sequential(nn.Softmax(dim=1), nn.Sigmoid())(inputs)
binaries = [torch.sigmoid(inputs), F.sigmoid(inputs), inputs.sigmoid(), nn.Sigmoid()(inputs)]
"""  # noqa: E501 - a script


@pytest.fixture
def torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays for a process does not stay for the other tests."""
    for name in ("softmax", "sigmoid"):
        for home in (torch, nn.functional, Tensor):
            monkeypatch.setattr(home, name, getattr(home, name))
    for made in (nn.Softmax, nn.Sigmoid):
        monkeypatch.setattr(made, "__call__", nn.Module.__call__)


def by_hand(script: str) -> str:
    return script.replace('desat.apply(net, optimizer, "loss=logits", batch=inputs)', "None")


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("loss = F.cross_entropy(torch.softmax(out * 2, dim=1), labels)", "loss = F.cross_entropy(out * 2, labels)"),
        ("loss = chosen(softmax(input=out, dim=1), labels)", "loss = chosen(out, labels)"),
        ("loss = criterion(out.softmax(-1), labels)", "loss = criterion(out, labels)"),
        ("loss = criterion(net(inputs).softmax(dim=1), labels)", "loss = criterion(net(inputs), labels)"),
        ("loss = criterion(input=nn.Softmax(dim=1)(out), target=labels)", "loss = criterion(input=out, target=labels)"),
        ("loss = nn.CrossEntropyLoss()(smooth(out), labels)", "loss = nn.CrossEntropyLoss()(out, labels)"),
        ("p: Tensor = F.sigmoid(out)\n    loss = binary(p, targets)", "p: Tensor = out\n    loss = binary(p, targets)"),
        (
            "loss = F.binary_cross_entropy_with_logits(torch.sigmoid(-out).view(-1), targets.view(-1))",
            "loss = F.binary_cross_entropy_with_logits((-out).view(-1), targets.view(-1))",
        ),
        (
            "out = (\n        out\n        .softmax(1)\n    )\n    loss = criterion(out, labels)",
            "out = (\n        out\n    )\n    loss = criterion(out, labels)",
        ),
        (
            "é = '…'; loss = criterion(torch.softmax(out, 1), torch.softmax(targets, 1))",
            "é = '…'; loss = criterion(out, torch.softmax(targets, 1))",
        ),
    ],
)  # fmt: skip
def test_a_call_in_the_running_loop_becomes_its_argument(tmp_path: Path, written: str, plain: str) -> None:
    path, names = run(tmp_path, LOOP.replace("WRITTEN", written))
    (change,) = names["changes"]
    assert change.refused is None
    assert change.redefines_loss
    assert edited(path.read_text(), change.edits) == LOOP.replace("WRITTEN", plain)
    _, expected = run(tmp_path, by_hand(LOOP.replace("WRITTEN", plain)))
    assert names["losses"] == expected["losses"]
    _, sick = run(tmp_path, by_hand(LOOP.replace("WRITTEN", written)))
    assert names["losses"] != sick["losses"]
    assert all(torch.equal(one, torch.softmax(names["inputs"], 1)) for one in names["elsewhere"])
    assert all(torch.equal(one, torch.sigmoid(names["inputs"])) for one in names["binaries"])
    assert torch.equal(names["before"], names["after"])


PLACES = {
    "a function": "def loss_of(out):\n    return criterion(torch.softmax(out, 1), labels)\n",
    "a method": (
        "class Losses:\n"
        "    def __init__(self): self.criterion = criterion\n"
        "    def loss_of(self, out):\n"
        "        out = out.softmax(1)\n"
        "        return self.criterion(out, labels)\n"
        "loss_of = Losses().loss_of\n"
    ),
    "a closure": "loss_of = (lambda factor: lambda out: criterion(torch.softmax(out * factor, 1), labels))(1)\n",
}


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("place", PLACES)
def test_a_call_in_another_function_becomes_its_argument(tmp_path: Path, place: str) -> None:
    script = LOOP.replace("for step", PLACES[place] + "for step").replace("WRITTEN", "loss = loss_of(out)")
    softmax = torch.softmax
    _, names = run(tmp_path, script)
    assert names["changes"][0].refused is None
    _, expected = run(tmp_path, by_hand(LOOP.replace("WRITTEN", "loss = criterion(out, labels)")))
    assert names["losses"] == expected["losses"]
    assert (torch.softmax is softmax) is (place != "a closure"), "a function that does not run gets new code"


@pytest.mark.usefixtures("torch_as_it_was")
def test_other_calls_are_compiled_and_pickled_as_before(tmp_path: Path) -> None:
    written = "loss = criterion(torch.softmax(out, 1), labels)"
    _, names = run(tmp_path, LOOP.replace("WRITTEN", written))
    assert names["changes"][0].refused is None

    def attend(scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=1) @ scores.T

    inputs = names["inputs"]
    assert torch.equal(torch.compile(attend, backend="eager", fullgraph=True)(inputs), attend(inputs))
    assert torch.equal(pickle.loads(pickle.dumps(torch.softmax))(inputs, 1), torch.softmax(inputs, 1))
    replaced: Any = torch.softmax
    with pytest.raises(TypeError):
        replaced()


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("loss = criterion(out, labels)", "nor is one seen"),
        ("loss = criterion(torch.softmax(out, 1).log(), labels)", "nor is one seen"),
        ("loss = criterion(torch.log_softmax(out, 1), labels)", "nor is one seen"),
        ("loss = criterion(out, torch.softmax(targets, 1))", "nor is one seen"),
        ("loss = F.nll_loss(torch.softmax(out, 1), labels)", "nor is one seen"),
        ("entropy = lambda p, y: -p.log().mean()\n    loss = entropy(out.softmax(1), labels)", "nor is one seen"),
        ("criterion = nn.NLLLoss()\n    loss = criterion(torch.softmax(out, 1), labels)", "nor is one seen"),
        ("p = torch.softmax(out, 1)\n    loss = criterion(p, labels)\n    hits = p.argmax(1)", "used elsewhere, too"),
        ("p = torch.softmax(out, 1)\n    p = p * 2\n    loss = criterion(p, labels)", "p is used elsewhere, too"),
        ("if step: p = torch.softmax(out, 1)\n    else: p = out\n    loss = criterion(p, labels)", "not certain"),
        ("p = torch.softmax(out, 1)\n    for p in [out]: loss = criterion(p, labels)", "not certain"),
        ("loss = criterion(torch.softmax(out, 1), labels) + criterion(out.softmax(1), labels)", "more than one"),
        ("loss = criterion(F.softmax(out, 1, dtype=torch.float64), labels)", "does more"),
    ],
)  # fmt: skip
def test_a_call_that_is_not_surely_one_too_many_stays(tmp_path: Path, written: str, reason: str) -> None:
    _, names = run(tmp_path, LOOP.replace("WRITTEN", written))
    (change,) = names["changes"]
    assert reason in str(change.refused)
    assert not change.edits
    assert not change.redefines_loss
    _, expected = run(tmp_path, by_hand(LOOP.replace("WRITTEN", written)))
    assert names["losses"] == expected["losses"]


@pytest.mark.usefixtures("torch_as_it_was")
def test_a_place_is_left_out_once(tmp_path: Path) -> None:
    script = LOOP.replace("if step == 0 else", "if step < 2 else")
    _, names = run(tmp_path, script.replace("WRITTEN", "loss = criterion(torch.softmax(out, 1), labels)"))
    assert "already" in str(names["changes"][0].refused)


MAIN = """import torch
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.last(torch.sigmoid(self.first(x)))
def evaluate(net, inputs):
    with torch.no_grad():
        return torch.softmax(net(inputs), dim=1).sum().item()
def main():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    for _ in range(4):
        optimizer.zero_grad()
        WRITTEN
        loss.backward()
        optimizer.step()
        print(repr(loss.item()), repr(evaluate(net, inputs)))
    print(net.first.weight.double().sum().item())
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (
            "loss = F.cross_entropy(torch.softmax(net(inputs), dim=1), labels)",
            "loss = F.cross_entropy(net(inputs), labels)",
        ),
        (
            "probabilities = torch.sigmoid(net(inputs))\n        "
            "loss = F.binary_cross_entropy_with_logits(probabilities, F.one_hot(labels, 3).float())",
            "loss = F.binary_cross_entropy_with_logits(net(inputs), F.one_hot(labels, 3).float())",
        ),
    ],
)
def test_a_whole_script_trains_as_the_one_edited_by_hand(tmp_path: Path, written: str, plain: str) -> None:
    (tmp_path / "train.py").write_text(MAIN.replace("WRITTEN", written))
    (tmp_path / "edited.py").write_text(MAIN.replace("WRITTEN", plain))
    ended = run_desat("run", "--run-dir", "run", "--apply", "loss=logits", "train.py", cwd=tmp_path)
    expected = python("edited.py", cwd=tmp_path)
    assert ended.returncode == expected.returncode == 0, ended.stderr + expected.stderr
    assert ended.stdout.splitlines() == expected.stdout.splitlines()
    information = Record(tmp_path / "run").information
    assert information["redefines_loss"]
    assert "train.py:20" in information["applied"][0]
    assert information["edits"][0]["text"] == "net(inputs)"


def large() -> nn.Sequential:
    """Its activations are beyond the range of float16, and within that of bfloat16."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.fill_(1e3)
        net[1].weight.fill_(1e3)
    return net


def test_a_forward_pass_under_float16_runs_in_bfloat16() -> None:
    net, inputs = large(), torch.ones(2, 4)
    compiled = torch.compile(net, backend="eager")
    with torch.autocast("cpu", dtype=torch.float16):
        assert not net(inputs).isfinite().all()
        (change,) = desat.apply(net, None, "loss=bfloat16")
        assert change.refused is None
        outputs = net(inputs)
        assert (outputs.dtype, outputs.isfinite().all()) == (torch.bfloat16, torch.tensor(True))
        assert torch.equal(compiled(inputs), outputs)
        assert nn.functional.linear(inputs, inputs).dtype is torch.float16
        with pytest.raises(RuntimeError):
            net(torch.ones(2, 3))
        assert nn.functional.linear(inputs, inputs).dtype is torch.float16
        assert torch.equal(copy.deepcopy(net)(inputs), outputs)
        assert "already" in str(desat.apply(net, None, "loss=bfloat16")[0].refused)
    assert net(inputs).dtype is torch.float32
    assert "no float16" in str(desat.apply(large(), None, "loss=bfloat16")[0].refused)


def half_network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).to(torch.bfloat16)


def test_weights_are_kept_in_float32_and_updates_are_not_lost(tmp_path: Path) -> None:
    net, inputs = half_network(), torch.linspace(-1, 1, 32).view(8, 4).to(torch.bfloat16)
    parameters, before = list(net.parameters()), net.state_dict()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    state = torch.get_rng_state()
    (change,) = desat.apply(net, optimizer, "loss=float32-weights", batch=inputs)
    assert change.refused is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(old is new for old, new in zip(parameters, net.parameters(), strict=True))
    assert {one.dtype for one in net.state_dict().values()} == {torch.float32, torch.int64}
    assert all(torch.equal(value.to(before[name].dtype), before[name]) for name, value in net.state_dict().items())
    twin = half_network().float()
    outputs, expected = net(inputs), twin(inputs.float())
    assert torch.equal(outputs, expected.to(torch.bfloat16))
    assert torch.equal(torch.compile(net, backend="eager")(inputs), net(inputs))
    weight = net[3].weight.clone()
    outputs.float().square().mean().backward()
    optimizer.step()
    assert (net[3].weight != weight).all()  # in bfloat16 these updates round to nothing
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    again = half_network()
    desat.apply(again, None, "loss=float32-weights", batch=inputs)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(again.eval()(inputs), net.eval()(inputs))
    assert torch.equal(pickle.loads(pickle.dumps(net))(inputs), net(inputs))


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.to(torch.bfloat16))


def test_weights_stay_where_the_forward_pass_needs_them_narrow_or_nothing_is_to_be_done() -> None:
    net = Casting()
    inputs = torch.ones(2, 4)
    for model, batch, reason in (
        (net, inputs, "does not run"),
        (net, None, "no batch"),
        (nn.Linear(4, 4), inputs, "none are of"),
    ):
        (change,) = desat.apply(model, None, "loss=float32-weights", batch=batch)
        assert change.refused is not None
        assert reason in change.refused
        assert not model._forward_pre_hooks
    assert net.layer.weight.dtype is torch.bfloat16
    assert net(inputs).dtype is torch.bfloat16
