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
from tests.cli.test_run import desat as run_desat

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
