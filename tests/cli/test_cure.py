"""`desat cure` on whole scripts, as a user runs it."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from desat.cli.application import application
from desat.cure.proof import Result as Cure
from desat.cure.proof import choose, look_into, prove
from desat.cure.trial import Outcome, Plan, run_here
from desat.errors import DesatError
from desat.watch.script import Script
from tests.cli.test_run import SCRIPTS, STYLES
from tests.warm import desat, python

SICK = """
import os, sys, torch
torch.set_num_threads(1)
torch.manual_seed(0)
inputs = torch.randn(256, 8)
labels = (inputs[:, :2].sum(1) > 0).long()
layers = [torch.nn.Linear(8, 32), torch.nn.Sigmoid()]
for _ in range(7):
    layers += [torch.nn.Linear(32, 32), torch.nn.Sigmoid()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(1, 400):
    batch = torch.randint(0, 256, (32,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
    optimizer.step()
    {extra}
"""
HEALTHY = """
import torch
torch.manual_seed(0)
inputs = torch.randn(256, 8)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(1, 400):
    optimizer.zero_grad()
    (model(inputs)[:, 0] - inputs[:, 0]).square().mean().backward()
    optimizer.step()
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
FAST = ("--steps", "50", "--seeds", "2", "--max-steps", "300", "--quiet")


def write(code: str, tmp_path: Path, extra: str = "pass") -> Path:
    script = tmp_path / "train.py"
    script.write_text(code.replace("{extra}", extra))
    return script


def left_behind(mark: str) -> list[str]:
    """Command lines of processes that name `mark`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line:
            found.append(line)
    return found


def test_a_sick_script_is_cured_with_proof_and_stays_as_it_is(tmp_path: Path) -> None:
    script = write(SICK, tmp_path)
    before = script.read_text()
    done = desat("cure", *FAST, "--json", "--keep", "kept", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert found["baseline"]["verdict"] == "error"
    assert found["chosen"] == found["trials"][0]["apply"]
    best = found["trials"][0]
    assert best["accepted"] is True
    assert best["seeds"] == [0, 1]
    assert 0 < best["interval"][0] <= best["effect"] <= best["interval"][1]
    assert found["applied"]
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "kept"}
    assert (tmp_path / "kept" / "001" / "record" / "run.sqlite").exists()
    assert script.read_text() == before
    kept = json.loads((tmp_path / "kept" / "cure.json").read_text())
    assert {name: kept[name] for name in found} == found
    assert kept["script"] == "train.py"
    assert [one["apply"] for one in kept["curves"]] == [[], *(trial["apply"] for trial in found["trials"])]
    assert [len(one["losses"]) for one in kept["curves"][0]["runs"]] == [50, 50]
    again = desat("cure", *FAST, "--keep", "kept", "train.py", cwd=tmp_path)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


def test_the_metric_that_the_script_prints_is_taken(tmp_path: Path) -> None:
    write(
        SICK, tmp_path, "step % 10 or print('val accuracy:', (model(inputs).argmax(1) == labels).float().mean().item())"
    )
    options = ("--steps", "50", "--seeds", "1", "--max-steps", "150", "--quiet")
    done = desat("cure", *options, "train.py", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # whether so few trials find a cure is not the question here
    assert "the metric is" in done.stdout
    assert "better by" in done.stdout
    assert done.stderr == ""


def test_the_metric_that_the_script_logs_is_taken_without_a_word_of_it(tmp_path: Path) -> None:
    tell = "step % 10 or desat.log(val_accuracy=(model(inputs).argmax(1) == labels).float().mean())"
    write("import desat\n" + SICK, tmp_path, tell)
    options = ("--steps", "50", "--seeds", "1", "--max-steps", "150", "--quiet", "--json")
    done = desat("cure", *options, "train.py", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # whether so few trials find a cure is not the question here
    found = json.loads(done.stdout)
    assert found["baseline"]["measure"] == "metric"
    assert 0.0 < found["baseline"]["metric"] < 1.0
    assert done.stderr == ""


def test_a_healthy_script_is_left_alone(tmp_path: Path) -> None:
    write(HEALTHY, tmp_path)
    done = desat("cure", "--steps", "100", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The network is healthy" in done.stdout
    assert "baseline" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        ("print('a'); print('b'); 1 / 0", [], "exit code 1 before its first step: ZeroDivisionError"),
        ("import time; time.sleep(99)", ["--time", "12"], "stopped after 3 s, before its first step"),
        ("import os; os._exit(0)", [], "without a training step"),
        ("import os; os.kill(os.getpid(), 9)", [], "was ended by SIGKILL before its first step, without a word"),
        ("print('hello')", [], "without a training step"),
        ("import torch; torch.ones(1).to('cuda:99')", [], "before its first step: "),
        ("input('name? ')", [], "it asks for input, and a trial has no keyboard"),
        (None, [], "no script at "),
        (HEALTHY, ["--metric", "("], "no regular expression"),
        (HEALTHY, ["--metric", "score: [0-9.]+"], "0 groups: put one around the number"),
        (HEALTHY, ["--steps", "10", "--metric", "f1"], "the script logs no such metric within the steps of a trial"),
        (HEALTHY, ["--minimize"], "give both"),
        (HEALTHY, ["--overwrite"], "give both"),
        (HEALTHY, ["--report", "train.py/cure.html"], "cannot write the report to train.py/cure.html: "),
        (HEALTHY, ["--report", "train.py"], "train.py exists: choose another name, or pass --overwrite"),
        (HEALTHY, ["--report", "."], "is a folder: --report takes the name of a file"),
    ],
    ids=[
        "crash",
        "hang",
        "says nothing",
        "killed",
        "no training",
        "needs a GPU",
        "asks",
        "missing",
        "bad pattern",
        "no group",
        "not logged",
        "minimize what",
        "overwrite what",
        "report in no folder",
        "report on a file",
        "report on a folder",
    ],
)
def test_a_script_that_cannot_be_tried_ends_in_one_clear_line(
    code: str | None, options: list[str], message: str, tmp_path: Path
) -> None:
    if code is not None:
        write(code, tmp_path)
    # By its full name, by which a trial that was left behind would be found.
    done = desat("cure", "--quiet", *options, tmp_path / "train.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    *said, last = done.stderr.splitlines()
    assert last.startswith("desat: ")
    assert message in last
    assert all(line.startswith("  ") for line in said)
    assert left_behind(str(tmp_path)) == []


CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", __file__], stdin=subprocess.DEVNULL)
"""


def test_a_child_of_the_script_does_not_outlive_its_trial(tmp_path: Path) -> None:
    script = write(CHILD + HEALTHY, tmp_path)
    done = desat("cure", "--quiet", "--steps", "12", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert left_behind(str(script)) == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *((SCRIPTS / f"{style}.py", arguments) for style, (arguments, _, _) in STYLES.items()),
        (EXAMPLES / "sick_digits.py", []),
    ],
    ids=[*STYLES, "example"],
)
def test_every_style_of_script_is_searched_to_a_sound_end(script: Path, arguments: list[str], tmp_path: Path) -> None:
    own = shutil.copy(script, tmp_path / script.name)
    options = ("--steps", "12", "--seeds", "1", "--time", "400", "--max-steps", "24", "--force", "--quiet", "--json")
    done = desat("cure", *options, own, *arguments, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["baseline"]["steps"] == 12
    assert found["baseline"]["metric"] > 0
    assert found["trials"]
    assert all(trial["ending"] in ("stopped", "pruned") for trial in found["trials"]), found["trials"]
    assert found["chosen"] == next((trial["apply"] for trial in found["trials"] if trial["accepted"]), None)
    assert found["steps"] <= 24
    assert left_behind(str(tmp_path)) == []
    assert Path(own).read_bytes() == script.read_bytes()


# What is written. The search is left out: one trial stands for it.

WRITABLE = """# -*- coding: latin-1 -*-
import torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
größe = 16


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(größe, größe) for _ in range(3)])
        self.acts = nn.ModuleList([nn.Sigmoid(), nn.Sigmoid()])
        self.out = nn.Linear(größe, 2)

    def forward(self, x):
        for layer, act in zip(self.layers, self.acts):
            x = act(layer(x))
        return self.out(torch.sigmoid(self.layers[2](x)))


inputs = torch.randn(64, größe)
labels = (inputs[:, 0] > 0).long()
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
# here
for _ in range(12):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    print(loss.item())
"""


class Searched:
    """`desat cure` in this process, with a search that finds the remedies it is told, by one trial of them."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "train.py"
        self.before = WRITABLE.replace("\n", "\r\n").encode("latin-1")
        self.remedies: tuple[str, ...] = ()
        self._outcomes: dict[tuple[str, ...], Outcome] = {}

    def __call__(self, *options: str, remedies: tuple[str, ...], answer: str = "") -> Result:
        self.remedies = remedies
        return CliRunner().invoke(application, ["cure", "--quiet", *options, "train.py"], input=answer)

    @property
    def losses(self) -> list[float]:
        """Those of the trial."""
        return self._outcomes[self.remedies].losses.tolist()

    def printed(self) -> list[float]:
        """The losses of the script as it is now."""
        return [float(line) for line in python(self.script, cwd=self.script.parent).stdout.split()]

    def search(self, script: Script, *arguments: Any, **options: Any) -> Cure:
        if self.remedies not in self._outcomes:
            place = self.script.parent / "+".join(self.remedies)
            plan = Plan(script, self.remedies, 0, 12, 120.0)
            self._outcomes[self.remedies] = run_here(plan, place, lambda losses: False, threading.Event())
        outcome = self._outcomes[self.remedies]
        without = look_into(outcome, (0.5,))
        one = prove(self.remedies, {0: look_into(outcome, (0.9,))}, {0: without})
        assert without.diagnosis is not None
        return Cure(without.diagnosis, {0: without}, (one,), choose([one]), False, 1.0, 24)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("searched"))


@pytest.fixture
def searched(trials: Searched, monkeypatch: pytest.MonkeyPatch) -> Searched:
    trials.script.write_bytes(trials.before)
    monkeypatch.chdir(trials.script.parent)
    monkeypatch.setattr("desat.cli.cure.search_cure", trials.search)
    monkeypatch.setattr("desat.cli.cure._can_ask", lambda: True)
    return trials


def test_what_is_written_runs_as_the_trial_did(searched: Searched) -> None:
    done = searched("--write", "--yes", remedies=("activation=relu",))
    assert done.exit_code == 0, done.output
    assert "+        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU()])\n" in done.stdout
    assert "By hand" not in done.stdout
    assert done.stderr == "desat: wrote train.py\n"
    expected = searched.before.replace(b"nn.Sigmoid()", b"nn.ReLU()").replace(b"torch.sigmoid", b"nn.functional.relu")
    assert searched.script.read_bytes() == expected
    assert searched.printed() == searched.losses


def test_what_a_diff_does_not_hold_is_told_and_done_by_what_is_told(searched: Searched) -> None:
    remedies = ("activation=relu", "initialization=he")
    done = searched("--write", "--yes", remedies=remedies)
    assert done.exit_code == 0, done.output
    assert "The diff holds only part of it. By hand: initialization=he\n" in done.stdout
    assert done.stderr == "desat: wrote train.py\ndesat: still to be done by hand: initialization=he\n"
    snippet = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ") and "desat" in line]
    assert len(snippet) == 2
    text = searched.script.read_text(encoding="latin-1")
    searched.script.write_text(text.replace("# here", "\n".join(snippet)), encoding="latin-1")
    assert searched.printed() == searched.losses


def test_a_change_is_asked_for_and_not_made_without_a_yes(searched: Searched) -> None:
    done = searched("--write", remedies=("activation=relu",), answer="n\n")
    assert done.exit_code == 0
    assert "Write this change?" in done.stderr
    assert searched.script.read_bytes() == searched.before


def test_nothing_is_written_without_being_asked_for(searched: Searched) -> None:
    done = searched("--yes", "--json", remedies=("activation=relu", "initialization=he"))
    found = json.loads(done.stdout)
    assert found["by_hand"] == ["initialization=he"]
    assert "nn.ReLU()" in found["diff"]
    assert searched.script.read_bytes() == searched.before


def test_a_change_that_no_diff_can_say_is_an_error_to_write(searched: Searched) -> None:
    done = searched("--write", "--yes", remedies=("initialization=he",))
    assert isinstance(done.exception, DesatError)
    assert "cannot be written as a diff" in str(done.exception)
    assert "No diff can say it. By hand: initialization=he\n" in done.stdout
    assert searched.script.read_bytes() == searched.before


def test_a_script_that_was_changed_meanwhile_is_left_alone(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_search(*arguments: Any, **options: Any) -> Cure:
        found = searched.search(*arguments, **options)
        searched.script.write_bytes(b"# new\r\n" + searched.before)
        return found

    monkeypatch.setattr("desat.cli.cure.search_cure", slow_search)
    done = searched("--write", "--yes", remedies=("activation=relu",))
    assert isinstance(done.exception, DesatError)
    assert "the script has changed since it was tried" in done.stderr
    assert searched.script.read_bytes() == b"# new\r\n" + searched.before


def test_without_a_terminal_to_ask_in_nothing_is_begun(tmp_path: Path) -> None:
    script = write(SICK, tmp_path)
    before = script.read_text()
    done = desat("cure", "--write", "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("desat: --write asks before it changes a file")
    assert done.stderr.count("\n") == 1
    assert script.read_text() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_every_trial_and_gives_the_best_so_far(number: int, code: int, tmp_path: Path) -> None:
    script = write(SICK, tmp_path, "step < 50 or __import__('time').sleep(0.5)")
    command = [sys.executable, "-m", "desat", "cure", "--json", "--steps", "60", str(script)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "remedies of the findings" in line:
                break
        assert left_behind(str(script))
        time.sleep(1.0)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert json.loads(output)["interrupted"] is True
    assert left_behind(str(script)) == []


def test_a_search_without_a_terminal_says_in_plain_lines_how_far_it_is(tmp_path: Path) -> None:
    write(HEALTHY, tmp_path)
    options = ("--steps", "30", "--seeds", "1", "--max-steps", "60", "--force", "--jobs", "1")
    done = desat("cure", *options, "train.py", cwd=tmp_path, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("desat: 0 of 1 trials done; baseline: the script as it is\n")
    assert "general remedies" in done.stderr
    assert "\x1b" not in done.stderr


def test_the_page_is_written_and_not_twice(searched: Searched, tmp_path: Path) -> None:
    page = tmp_path / "new" / "cure.html"
    done = searched("--json", "--report", str(page), remedies=("activation=relu",))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["chosen"] == ["activation=relu"]
    assert done.stderr == f"desat: wrote {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "What helps: activation=relu, metric 0.5" in text
    assert "+        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU()])" in text
    assert [path.name for path in page.parent.iterdir()] == ["cure.html"]
    page.write_text("mine")
    again = searched("--report", str(page), remedies=("activation=relu",))
    assert "exists: choose another name, or pass --overwrite" in str(again.exception)
    assert page.read_text() == "mine"
    done = searched("--report", str(page), "--overwrite", remedies=("activation=relu",))
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8") == text


def test_what_is_kept_is_reported_as_it_was_found(searched: Searched, tmp_path: Path) -> None:
    kept, page = tmp_path / "kept", tmp_path / "cure.html"
    done = searched("--keep", str(kept), "--report", str(page), remedies=("activation=relu",))
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(application, ["report", str(kept)])
    assert (done.exit_code, done.stdout) == (0, f"{kept / 'report.html'}\n")
    assert (kept / "report.html").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    again = CliRunner().invoke(application, ["report", str(kept / "cure.json"), "-o", str(page)])
    assert "exists: choose another name, or pass --overwrite" in str(again.exception)
    (kept / "cure.json").write_text("{}")
    broken = desat("report", kept, cwd=tmp_path)
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.startswith(f"desat: {kept / 'cure.json'} is not the result of a search")
    assert broken.stderr.count("\n") == 1
