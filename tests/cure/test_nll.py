"""loss=log-probabilities against the reference: cross entropy of the scores, by hand in the same script."""

import itertools
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure import origins
from desat.cure.edit import edited
from desat.record.reader import Record
from tests.warm import desat as run_desat
from tests.warm import python

NUMBERS = itertools.count()

LOOP = """import torch, desat
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, nll_loss, softmax
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.last = LAST
    def forward(self, x):
        z = self.last(self.head(x))
        return RETURNED
torch.manual_seed(0)
net = Net()
inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
labels[0] = 2
weight = torch.tensor([1.0, 2.0, 3.0])
criterion = nn.NLLLoss(weight=weight, ignore_index=2)
summed = nn.NLLLoss(reduction="sum")
smooth = nn.Softmax(dim=1)
HELPERS
optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
losses, gradients, keys = [], [], list(net.state_dict())
for step in range(3):
    changes = desat.apply(net, optimizer, "loss=log-probabilities", batch=inputs) if step == 0 else changes
    out = net(inputs)
    WRITTEN
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    gradients.append(net.head.weight.grad.clone())
    optimizer.step()
probabilities = [torch.softmax(inputs, 1), F.softmax(inputs, dim=1), inputs.softmax(1), nn.Softmax(dim=1)(inputs)]
proper = log_softmax(inputs, 1)
"""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What stays for a process does not stay for the other tests."""
    for home in (torch, F, Tensor):
        for name in ("softmax", "sigmoid", "nll_loss"):
            if hasattr(home, name):
                monkeypatch.setattr(home, name, getattr(home, name))
    for name in ("Softmax", "Sigmoid", "NLLLoss"):
        monkeypatch.setattr(getattr(nn, name), "__call__", nn.Module.__call__)
    origins.install()
    yield
    origins.uninstall()


def script(written: str, *, helpers: str = "", last: str = "nn.Identity()", returned: str = "z") -> str:
    text = LOOP.replace("WRITTEN", written).replace("HELPERS", helpers)
    return text.replace("LAST", last).replace("RETURNED", returned)


def by_hand(text: str) -> str:
    return text.replace('desat.apply(net, optimizer, "loss=log-probabilities", batch=inputs)', "None")


def run(tmp_path: Path, text: str) -> tuple[Path, dict[str, Any]]:
    # Python keeps the lines of a file that it has seen: each script has a name of its own.
    path = tmp_path / f"train{next(NUMBERS)}.py"
    path.write_text(text)
    return path, runpy.run_path(str(path))


def nll() -> tuple[Any, Any]:
    """Those of torch, called so that a reading of this file, which is among the scripts' callers, does not see it."""
    return vars(F)["nll_loss"], vars(nn)["NLLLoss"]()


def assert_alike(names: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same losses and gradients at every step, and other calls of the same functions as they were."""
    torch.testing.assert_close(torch.tensor(names["losses"]), torch.tensor(expected["losses"]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.stack(names["gradients"]), torch.stack(expected["gradients"]), rtol=1e-6, atol=1e-6
    )
    inputs, labels = names["inputs"], names["labels"]
    assert all(torch.equal(one, expected["probabilities"][0]) for one in names["probabilities"])
    plain = -inputs[:, :3]
    likelihoods = [function(plain, labels) for function in (*nll(), names["nll_loss"])]
    assert all(float(one) == float(-plain.gather(1, labels[:, None]).mean()) for one in likelihoods)


REFERENCE = "loss = F.cross_entropy(out, labels)"
WEIGHED = "loss = F.cross_entropy(out, labels, weight=weight, ignore_index=2)"


@pytest.mark.parametrize(
    ("written", "plain", "reference"),
    [
        ("loss = F.nll_loss(out, labels)", "loss = F.cross_entropy(out, labels)", REFERENCE),
        ("loss = F.nll_loss(net(inputs), labels)", "loss = F.cross_entropy(net(inputs), labels)", REFERENCE),
        ("loss = nll_loss(input=out, target=labels)", "loss = cross_entropy(input=out, target=labels)", REFERENCE),
        ("loss = nll_loss(net(inputs), labels)", "loss = cross_entropy(net(inputs), labels)", REFERENCE),
        (
            "loss = torch.nn.functional.nll_loss(out.view(-1, 3), labels, weight, None, 2)",
            "loss = torch.nn.functional.cross_entropy(out.view(-1, 3), labels, weight, None, 2)",
            WEIGHED,
        ),
        (
            "loss = F.nll_loss(out, labels) + F.nll_loss(net(inputs), labels)",
            "loss = F.cross_entropy(out, labels) + F.cross_entropy(net(inputs), labels)",
            "loss = 2 * F.cross_entropy(out, labels)",
        ),
        (
            "loss = F.nll_loss(out, labels, reduction='sum') + F.nll_loss(log_softmax(net(inputs), 1), labels)",
            "loss = F.cross_entropy(out, labels, reduction='sum') + F.nll_loss(log_softmax(net(inputs), 1), labels)",
            "loss = F.cross_entropy(out, labels, reduction='sum') + F.cross_entropy(out, labels)",
        ),
        ("loss = nn.NLLLoss()(out, labels)", "loss = nn.CrossEntropyLoss()(out, labels)", REFERENCE),
        ("loss = nn.NLLLoss()(net(inputs), labels)", "loss = nn.CrossEntropyLoss()(net(inputs), labels)", REFERENCE),
        (
            "loss = F.nll_loss(torch.softmax(out, 1), labels)",
            "loss = F.nll_loss(torch.log_softmax(out, 1), labels)",
            REFERENCE,
        ),
        (
            "loss = F.nll_loss(F.softmax(net(inputs), dim=1), labels)",
            "loss = F.nll_loss(F.log_softmax(net(inputs), dim=1), labels)",
            REFERENCE,
        ),
        (
            "loss = criterion(softmax(out, dim=-1), labels)",
            "loss = criterion(log_softmax(out, dim=-1), labels)",
            WEIGHED,
        ),
        (
            "loss = criterion(net(inputs).softmax(1), labels)",
            "loss = criterion(net(inputs).log_softmax(1), labels)",
            WEIGHED,
        ),
        (
            "p = out.softmax(dim=1)\n    loss = F.nll_loss(p, labels)\n    hits = p.argmax(1)",
            "p = out.log_softmax(dim=1)\n    loss = F.nll_loss(p, labels)\n    hits = p.argmax(1)",
            REFERENCE,
        ),
        (
            "loss = F.nll_loss(nn.Softmax(dim=1)(out), labels)",
            "loss = F.nll_loss(nn.LogSoftmax(dim=1)(out), labels)",
            REFERENCE,
        ),
        (
            "loss = F.nll_loss(torch.sigmoid(out), labels)",
            "loss = F.nll_loss(torch.log_softmax(out, dim=1), labels)",
            REFERENCE,
        ),
        (
            "loss = F.nll_loss((out + 0).sigmoid(), labels)",
            "loss = F.nll_loss((out + 0).log_softmax(dim=1), labels)",
            REFERENCE,
        ),
    ],
)
def test_a_loss_in_the_running_loop(tmp_path: Path, written: str, plain: str, reference: str) -> None:
    path, names = run(tmp_path, script(written))
    assert all(one.refused is None and one.redefines_loss for one in names["changes"])
    edits = [edit for one in names["changes"] for edit in one.edits]
    assert edited(path.read_text(), edits) == script(plain)
    assert_alike(names, run(tmp_path, by_hand(script(reference)))[1])


@pytest.mark.parametrize(
    ("call", "reference", "constructor"),
    [
        ("criterion(out, labels)", "F.cross_entropy(out, labels, weight=weight, ignore_index=2)", "weight=weight"),
        ("summed(net(inputs), labels)", "F.cross_entropy(out, labels, reduction='sum')", "reduction"),
    ],
)
def test_a_criterion_becomes_a_cross_entropy_in_place(
    tmp_path: Path, call: str, reference: str, constructor: str
) -> None:
    path, names = run(tmp_path, script(f"loss = {call}"))
    (change,) = names["changes"]
    expected = run(tmp_path, by_hand(script(f"loss = {reference}")))[1]
    assert_alike(names, expected)
    assert edited(path.read_text(), change.edits) == path.read_text().replace(
        f"nn.NLLLoss({constructor}", f"nn.CrossEntropyLoss({constructor}"
    )
    righted, other = (
        names[one] for one in (("criterion", "summed") if "criterion" in call else ("summed", "criterion"))
    )
    assert type(righted) is nn.CrossEntropyLoss
    assert type(other) is nn.NLLLoss, "it is made elsewhere"
    assert list(righted.state_dict()) == list(expected["criterion" if "criterion" in call else "summed"].state_dict())
    again = pickle.loads(pickle.dumps(righted))
    arguments = names["net"](names["inputs"]), names["labels"]
    assert torch.equal(again(*arguments), righted(*arguments))
    # Proper logarithms of probabilities have the same loss as before.
    proper = F.log_softmax(names["inputs"][:, :3], 1)
    torch.testing.assert_close(
        righted(proper, names["labels"]),
        nll()[0](
            proper, names["labels"], righted.weight, ignore_index=righted.ignore_index, reduction=righted.reduction
        ),
    )


HELPERS = {
    "a function": (
        "def loss_of(outputs, targets):\n    return F.nll_loss(outputs, targets)",
        "nll_loss(outputs",
        "cross_entropy(outputs",
    ),
    "a function with other callers": (
        "def loss_of(outputs, targets):\n    return F.nll_loss(outputs, targets)\n"
        "checked = loss_of(log_softmax(net(inputs), 1), labels)",
        "nll_loss(outputs",
        "cross_entropy(outputs",
    ),
    "a softmax in a function": (
        "def loss_of(outputs, targets):\n    return F.nll_loss(torch.softmax(outputs, dim=1), targets)",
        "torch.softmax(outputs",
        "torch.log_softmax(outputs",
    ),
    "a softmax in another function": (
        "def guess(outputs): return F.softmax(outputs, dim=1)\n"
        "def loss_of(outputs, targets):\n    return nn.NLLLoss()(guess(outputs), targets)",
        "F.softmax(outputs",
        "F.log_softmax(outputs",
    ),
    "a method": (
        "class Trainer:\n    def __init__(self):\n        self.criterion = nn.NLLLoss()\n"
        "    def loss_of(self, outputs, targets):\n        return self.criterion(outputs, targets)\n"
        "loss_of = Trainer().loss_of",
        "self.criterion = nn.NLLLoss",
        "self.criterion = nn.CrossEntropyLoss",
    ),
    "a lambda": (
        "loss_of = lambda outputs, targets: F.nll_loss(outputs, targets)",
        "nll_loss(outputs",
        "cross_entropy(outputs",
    ),
}


@pytest.mark.parametrize("place", HELPERS)
def test_a_loss_in_another_function(tmp_path: Path, place: str) -> None:
    helpers, wrong, right = HELPERS[place]
    path, names = run(tmp_path, script("loss = loss_of(out, labels)", helpers=helpers))
    (change,) = names["changes"]
    assert change.refused is None
    assert_alike(names, run(tmp_path, by_hand(script(REFERENCE)))[1])
    assert edited(path.read_text(), change.edits) == path.read_text().replace(wrong, right)
    is_rewritten = place in ("a function", "a function with other callers", "a softmax in a function")
    assert not is_rewritten or names["F"].nll_loss is torch.nn.functional.nll_loss


def test_a_softmax_that_a_caller_hands_over(tmp_path: Path) -> None:
    helpers = "def loss_of(outputs, targets):\n    return F.nll_loss(outputs, targets)"
    path, names = run(tmp_path, script("loss = loss_of(torch.softmax(out, 1), labels)", helpers=helpers))
    (change,) = names["changes"]
    assert_alike(names, run(tmp_path, by_hand(script(REFERENCE)))[1])
    assert edited(path.read_text(), change.edits) == script(
        "loss = loss_of(torch.log_softmax(out, 1), labels)", helpers=helpers
    )


@pytest.mark.parametrize(
    ("parts", "plain"),
    [
        ({"last": "nn.Softmax(dim=1)"}, {"last": "nn.LogSoftmax(dim=1)"}),
        ({"last": "nn.Sigmoid()"}, {"last": "nn.LogSoftmax(dim=1)"}),
        ({"returned": "F.softmax(z, dim=1)"}, {"returned": "F.log_softmax(z, dim=1)"}),
        ({"returned": "z.softmax(-1)"}, {"returned": "z.log_softmax(-1)"}),
        ({"returned": "softmax(z, 1)"}, {"returned": "log_softmax(z, 1)"}),
        ({"returned": "torch.sigmoid(z)"}, {"returned": "torch.log_softmax(z, dim=1)"}),
    ],
)
def test_a_softmax_in_the_network(tmp_path: Path, parts: dict[str, str], plain: dict[str, str]) -> None:
    written = "loss = F.nll_loss(out, labels)"
    path, names = run(tmp_path, script(written, **parts))
    (change,) = names["changes"]
    assert change.refused is None
    assert "exponential" in change.after
    assert edited(path.read_text(), change.edits) == script(written, **plain)
    assert_alike(names, run(tmp_path, by_hand(script(REFERENCE)))[1])
    net, inputs = names["net"], names["inputs"]
    assert list(net.state_dict()) == names["keys"]
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    before = net(inputs)
    net.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(before, F.log_softmax(net.head(inputs), 1))
    assert torch.equal(torch.compile(net, backend="eager")(inputs), before)


def test_a_compiled_step_after_it(tmp_path: Path) -> None:
    helpers = "def loss_of(outputs, targets):\n    return F.nll_loss(outputs, targets) + criterion(outputs, targets)"
    _, names = run(tmp_path, script("loss = loss_of(out, labels)", helpers=helpers))
    out, labels, criterion = names["net"](names["inputs"]).detach(), names["labels"], names["criterion"]
    expected = F.cross_entropy(out, labels) + F.cross_entropy(out, labels, criterion.weight, ignore_index=2)
    torch.testing.assert_close(names["loss_of"](out, labels), expected)
    compiled = torch.compile(names["loss_of"], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(out, labels), expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (script("loss = F.cross_entropy(out, labels)"), "no nll_loss is seen"),
        (script("loss = F.nll_loss(F.log_softmax(out, 1), labels)"), "as the source says"),
        (script("loss = criterion(nn.LogSoftmax(1)(out), labels)"), "as the source says"),
        (script("loss = F.nll_loss(torch.log(out.softmax(1) + 1e-8), labels)"), "as the source says"),
        (script("loss = F.nll_loss(out, labels)", returned="F.log_softmax(z, 1)"), "sum to one"),
        (script("loss = F.nll_loss(out, labels)", returned="z - z.logsumexp(1, keepdim=True)"), "sum to one"),
        (script("loss = F.nll_loss(out, labels)", returned="z.exp() / z.exp().sum(1, keepdim=True)"), "not known"),
        (script("loss = F.nll_loss(out[0], labels)", returned="(z, x)"), "not certain"),
        (script("loss = F.nll_loss(out * 2, labels)"), "not certain"),
        (script("loss = helper(out, labels)", helpers="helper = F.nll_loss"), "by another name"),
        (script("p = out.softmax(1)\n    loss = F.nll_loss(p, labels)\n    sure = p.max()"), "used elsewhere, too"),
        (script("loss = F.nll_loss(out, labels)", last="nn.Softmax(1)").replace(", batch=inputs)", ")"), "no batch"),
        (script("loss = F.nll_loss(out, labels) + F.nll_loss(out.log(), labels)", last="nn.Softmax(1)"), "by hand"),
        (script("loss = F.nll_loss(out, labels) + F.l1_loss(out, out)", last="nn.Softmax(1)"), "l1_loss"),
    ],
)
def test_what_may_be_right_is_left_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    _, names = run(tmp_path, text)
    (change,) = names["changes"]
    assert reason in str(change.refused)
    assert not change.edits
    assert not change.redefines_loss
    _, expected = run(tmp_path, by_hand(text).replace(", batch=inputs)", ")"))
    assert names["losses"] == expected["losses"]
    assert type(names["criterion"]) is nn.NLLLoss


def test_a_criterion_that_is_handed_on_under_another_name(tmp_path: Path) -> None:
    text = (
        "import torch, desat\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "net, inputs, labels = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3\n"
        "made = nn.NLLLoss()\n"
        "def train(crit):\n    return crit(net(inputs), labels)\n"
        "changes = desat.apply(net, None, 'loss=log-probabilities', batch=inputs)\n"
        "loss = train(made)\n"
    )
    path, names = run(tmp_path, text)
    (change,) = names["changes"]
    torch.testing.assert_close(names["loss"], F.cross_entropy(names["net"](names["inputs"]), names["labels"]))
    assert edited(path.read_text(), change.edits) == text.replace("NLLLoss", "CrossEntropyLoss")


MAIN = """import torch
import torch.nn.functional as F
from torch import nn
def evaluate(net, inputs, labels):
    with torch.no_grad():
        return F.nll_loss(net(inputs), labels, reduction="sum").item(), net(inputs).argmax(1).sum().item()
def main():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    criterion = nn.NLLLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    for _ in range(4):
        optimizer.zero_grad()
        loss = WRITTEN
        loss.backward()
        optimizer.step()
        print(repr(loss.item()), *evaluate(net, inputs, labels))
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("written", ["F.nll_loss(net(inputs), labels)", "criterion(net(inputs), labels)"])
def test_a_whole_script_trains_as_the_one_edited_by_hand(tmp_path: Path, written: str) -> None:
    text = MAIN.replace("WRITTEN", written)
    (tmp_path / "train.py").write_text(text)
    ended = run_desat("run", "--run-dir", "run", "--apply", "loss=log-probabilities", "train.py", cwd=tmp_path)
    information = Record(tmp_path / "run").information
    changed = text.replace("nll_loss", "cross_entropy")
    changed = changed.replace("NLLLoss", "CrossEntropyLoss") if "criterion" in written else changed
    (tmp_path / "edited.py").write_text(changed)
    expected = python("edited.py", cwd=tmp_path)
    assert ended.returncode == expected.returncode == 0, ended.stderr + expected.stderr
    assert ended.stdout.splitlines() == expected.stdout.splitlines()
    assert information["redefines_loss"]
    assert information["by_hand"] == []
    assert {edit["text"] for edit in information["edits"]} <= {"cross_entropy", "CrossEntropyLoss"}
