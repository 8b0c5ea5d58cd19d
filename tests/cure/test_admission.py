"""Remedies on unmodified scripts, each run as a user would."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from desat.cure.edit import edit_from_json, unified_diff
from desat.record.reader import Record
from tests.warm import desat

HEAD = """
import torch
import torch.nn as nn
from torch.nn import functional as F
torch.manual_seed(0)
inputs, labels = torch.randn(64, 8), torch.randint(0, 3, (64,))
"""
LOOP = """
for _ in range(8):
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss.item():.9f}")
"""
FUNCTIONAL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.act = {module}

    def forward(self, x):
        x = {first}
        for _ in range(2):
            x = {second}
        return self.last(self.act(x))

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
"""
OLD = {"first": "torch.tanh(self.first(x))", "second": "self.second(x).sigmoid()", "module": "nn.Tanh()"}
NEW = {"first": "F.gelu(self.first(x))", "second": "F.gelu(self.second(x))", "module": "nn.GELU()"}


def run(tmp_path: Path, text: str, *options: str) -> tuple[str, dict[str, Any]]:
    """What a script prints under `desat run`, and what the record says of it."""
    script = tmp_path / "train.py"
    script.write_text(text)
    done = desat("run", "--quiet", "--overwrite", "--run-dir", "run", *options, "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Record(tmp_path / "run") as record:
        return done.stdout, record.information


def test_calls_in_a_users_forward_are_replaced_as_if_they_had_been_written_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    treated, told = run(tmp_path, HEAD + FUNCTIONAL.format(**OLD) + LOOP, "--apply", "activation=gelu")
    monkeypatch.chdir(tmp_path)
    diff = unified_diff([edit_from_json(values) for values in told["edits"]])
    subprocess.run(["patch", "-p1"], input=diff, text=True, check=True, capture_output=True)
    written = (tmp_path / "train.py").read_text()
    assert written == HEAD + FUNCTIONAL.format(**NEW) + LOOP
    by_hand, _ = run(tmp_path, written)
    assert treated == by_hand
    untreated, _ = run(tmp_path, HEAD + FUNCTIONAL.format(**OLD) + LOOP)
    assert untreated != by_hand


def test_a_compiled_network_gets_the_same_remedy(tmp_path: Path) -> None:
    compiled = FUNCTIONAL + "plain, model = model, torch.compile(model, backend='eager', fullgraph=True)\n"
    treated, _ = run(tmp_path, HEAD + compiled.format(**OLD) + LOOP, "--apply", "activation=gelu")
    by_hand, _ = run(tmp_path, HEAD + compiled.format(**NEW) + LOOP)
    assert float(treated) == pytest.approx(float(by_hand), rel=1e-5)


def test_a_file_that_changed_since_it_was_read_is_left(tmp_path: Path) -> None:
    text = HEAD + FUNCTIONAL.format(**OLD).replace("self.act(x)", "x") + LOOP
    spoil = (
        "import pathlib\npathlib.Path(__file__).write_text(pathlib.Path(__file__).read_text().replace('2)', '3)'))\n"
    )
    _, told = run(tmp_path, spoil + text, "--apply", "activation=gelu")
    assert any("changed since" in line or "could not be read" in line for line in told["applied"])


def test_one_place_that_makes_several_modules_is_edited_only_if_all_are_swapped(tmp_path: Path) -> None:
    network = """
def act():
    return nn.Tanh()

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), act())

    def forward(self, x):
        return self.left(x) * self.right(x)

model = nn.Sequential(nn.Linear(8, 16), act(), Gate(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
"""
    _, told = run(tmp_path, HEAD + network + LOOP, "--apply", "activation=relu")
    assert [edit["text"] for edit in told["edits"]] == ["nn.ReLU()"]
    assert sum("left as it is" in line for line in told["applied"]) == 1
    assert sum("-> ReLU" in line for line in told["applied"]) == 2


def test_a_network_that_is_validated_before_its_optimizer_exists_is_treated(tmp_path: Path) -> None:
    early = FUNCTIONAL.replace("optimizer =", "with torch.no_grad():\n    model(inputs)\noptimizer =")
    _, told = run(tmp_path, HEAD + early.format(**OLD) + LOOP, "--apply", "activation=relu")
    assert len([line for line in told["applied"] if "->" in line]) == 3


def test_nothing_stays_in_torchs_classes() -> None:
    import torch
    from torch import nn

    from desat.cure import origins

    before = nn.Module.__init__, torch.optim.Optimizer.__init__
    origins.install()
    origins.install()
    assert nn.Module.__init__ is not before[0]
    origins.uninstall()
    assert (nn.Module.__init__, torch.optim.Optimizer.__init__) == before
