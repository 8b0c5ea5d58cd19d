"""`desat run --curvature` on a whole script."""

import json
from pathlib import Path

import numpy as np

from desat.record.reader import Record
from tests.warm import desat, python

TRAINING = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
inputs, labels = torch.randn(64, 5), torch.randint(0, 3, (64,))
for _ in range(40):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
print(*(f"{value.hex()}" for value in torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()))
"""


def test_a_script_is_measured_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    plain = python("train.py", cwd=tmp_path)
    watched = desat("run", "--curvature", "--every", 1, "--run-dir", "run", "train.py", cwd=tmp_path)
    assert (plain.returncode, watched.returncode) == (0, 0), watched.stderr
    assert watched.stdout == plain.stdout
    assert watched.stderr.count("\n") == 1, watched.stderr

    with Record(tmp_path / "run") as record:
        (site,) = record.sites("curvature")
        readings = record.readings(site)
    assert site.name == "loss"
    assert site.source == "train.py:9"
    assert readings["sharpness"]["step"][0] == 0
    assert len(readings["sharpness"]["step"]) >= 5
    assert (readings["sharpness"]["value"] > 0).all()
    np.testing.assert_allclose(readings["stability_limit"]["value"], (2 + 2 * 0.5) / 0.2)
    assert desat("diagnose", "run", cwd=tmp_path).returncode in (0, 1)


def test_without_the_option_there_is_no_curvature(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    assert desat("run", "-q", "--run-dir", "run", "train.py", cwd=tmp_path).returncode == 0
    with Record(tmp_path / "run") as record:
        assert record.sites("curvature") == ()
    diagnosed = desat("diagnose", "--json", "run", cwd=tmp_path)
    assert json.loads(diagnosed.stdout)["steps"] == 40


def test_a_script_without_an_optimizer_is_measured_and_has_no_limit(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "torch.set_default_device('cpu')\n"
        "model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))\n"
        "for _ in range(6):\n"
        "    model(torch.ones(4, 5)).square().sum().backward()\n"
        "    with torch.no_grad():\n"
        "        for parameter in model.parameters():\n"
        "            parameter -= 0.01 * parameter.grad\n"
        "            parameter.grad = None\n"
    )
    watched = desat("run", "--curvature", "--every", 2, "--run-dir", "run", "train.py", cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    with Record(tmp_path / "run") as record:
        (site,) = record.sites("curvature")
        readings = record.readings(site)
        assert record.steps()["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(readings) == {"sharpness", "sharpness_residual"}
    assert readings["sharpness"]["step"].tolist() == [0, 2, 4]
