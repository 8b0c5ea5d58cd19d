"""`desat check` on whole scripts."""

import json
import time
from pathlib import Path

import pytest

from desat.cli.examples import EXAMPLES
from tests.cli.test_run import SCRIPTS, STYLES
from tests.warm import desat

TRAINING = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(10_000):
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    print("step", step)
    {extra}
"""


def test_a_sick_script_is_stopped_and_refused(tmp_path: Path) -> None:
    began = time.monotonic()
    done = desat("check", EXAMPLES / "sick_digits.py", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    for words in ("vanishing-gradient", "Signal propagation", "deeper than they can be", "20 steps"):
        assert words in done.stdout
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []


def test_a_healthy_script_passes(tmp_path: Path) -> None:
    done = desat("check", "--json", EXAMPLES / "healthy_digits.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["steps"]) == ("healthy", 20)


@pytest.mark.parametrize("style", ["validated", "trainer_class"])
def test_other_styles_of_script_are_stopped_as_well(style: str, tmp_path: Path) -> None:
    done = desat("check", "--steps", 5, "--json", SCRIPTS / f"{style}.py", *STYLES[style][0], cwd=tmp_path)
    assert json.loads(done.stdout)["steps"] == 5, done.stderr


def test_what_the_script_prints_goes_to_standard_error_and_its_finally_blocks_run(tmp_path: Path) -> None:
    body = "\n".join(f"    {line}" for line in TRAINING.format(extra="").splitlines())
    (tmp_path / "train.py").write_text(f"try:\n{body}\nfinally:\n    print('tidied up')\n")
    done = desat("check", "--steps", 3, "--json", "train.py", cwd=tmp_path)
    assert json.loads(done.stdout)["steps"] == 3
    assert "step 1\n" in done.stderr
    assert "step 3\n" not in done.stderr
    assert "tidied up" in done.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("import torch", [], "nothing was measured"),
        ("1 / 0", [], "exit code 1 before its first step"),
        (TRAINING.format(extra="assert step < 2"), [], "exit code 1 after 3 of 20 steps"),
        ("import time; time.sleep(60)", ["--timeout", "3"], "stopped after 3 s"),
        (None, [], "no script at train.py"),
    ],
    ids=["nothing", "crash", "crash later", "endless", "missing"],
)
def test_what_cannot_be_told_is_one_clear_line_and_exit_code_2(
    text: str | None, arguments: list[str], message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "train.py").write_text(text)
    done = desat("check", *arguments, "train.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("desat: ")
    assert message in done.stderr
