"""Cells as a notebook runs them, in IPython's own shell."""

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import desat
from desat.watch.listeners import listeners
from tests.watch.test_neutral import installed

TRAINING = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(12):
    loss = (model(torch.randn(16, 4)) - 1).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

Cell = Callable[[str], Any]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A shell with the extension, in a folder of its own; what it publishes is in `display_pub.outputs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell(config=config, user_module=module)
    shell.display_pub = CapturingDisplayPublisher()
    assert shell.run_cell("%load_ext desat").success
    yield shell
    listeners.clear()


@pytest.fixture
def cell(shell: InteractiveShell) -> Cell:
    return lambda text: shell.run_cell(text, store_history=True)


def cards(shell: InteractiveShell) -> list[str]:
    return [output["data"]["text/html"] for output in shell.display_pub.outputs]


def status(directory: str | Path) -> str:
    with desat.open(directory) as record:
        return record.information["status"]


def test_a_session(shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    before = installed()
    done = cell(f"%%desat first --every 2\n{TRAINING}\nstep + 1")
    assert done.success
    assert done.result == 12
    assert "Out[1]: 12" in capsys.readouterr().out
    assert installed() == before
    assert not listeners
    assert shell.user_ns["step"] == 11  # the cell's variables live on
    run = shell.user_ns["first"]
    assert isinstance(run, desat.Run)
    assert "12 steps" in cards(shell)[0]
    with run.record() as record:
        assert record.steps(sampled=True)["step"].tolist() == [0, 2, 4, 6, 8, 10]

    assert cell("%%desat\nfor _ in range(3):\n    model(torch.randn(1, 4)).sum().backward(); optimizer.step()").success
    second = shell.user_ns["_desat"]
    assert second.directory != run.directory
    assert "3 steps" in cards(shell)[1]
    assert [status(each.directory) for each in (run, second)] == ["finished", "finished"]
    assert repr(second) == f"<desat.Run '{second.directory}': finished, 3 steps>"
    assert cell("first").result is run
    assert installed() == before


def test_the_weights_are_the_same_bit_for_bit(shell: InteractiveShell, cell: Cell) -> None:
    assert cell(TRAINING).success
    plain = [parameter.detach().clone() for parameter in shell.user_ns["model"].parameters()]
    state = torch.random.get_rng_state()
    assert cell(f"%%desat --every 1 --curvature\n{TRAINING}").success
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, plain, shell.user_ns["model"].parameters()))
    assert any(site.kind == "curvature" for site in shell.user_ns["_desat"].record().sites())


def test_an_error_is_shown_as_always_and_the_record_is_closed(
    shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    before = installed()
    text = f"%%desat run --run-dir here\n{TRAINING}\ndef divide():\n    return 1 / 0\n\ndivide()"
    done = cell(text)
    assert isinstance(done.error_in_exec, ZeroDivisionError)
    shown = capsys.readouterr().out
    for line in ("    return 1 / 0", "divide()"):  # numbered as the notebook counts, with the magic's line
        assert f"> {text.splitlines().index(line) + 1} {line}\n" in shown
    assert "notebook.py" not in shown
    assert "run_cell_magic" not in shown
    assert status("here") == "failed"
    assert len(cards(shell)) == 1
    assert installed() == before


def test_ctrl_c_leaves_a_record_and_no_hook(shell: InteractiveShell, cell: Cell) -> None:
    before = installed()
    done = cell(f"%%desat --run-dir here\n{TRAINING}\nimport signal\nsignal.raise_signal(signal.SIGINT)")
    assert isinstance(done.error_in_exec, KeyboardInterrupt)
    assert status("here") == "interrupted"
    assert len(cards(shell)) == 1
    assert installed() == before
    assert cell("%%desat\n2").result == 2


@pytest.mark.parametrize(("leaving", "ending"), [("sys.exit()", "finished"), ("sys.exit(3)", "failed")])
def test_a_cell_that_exits(leaving: str, ending: str, cell: Cell) -> None:
    with pytest.warns(UserWarning, match="To exit"):
        cell(f"%%desat --run-dir here\nimport sys\n{leaving}")
    assert status("here") == ending


def test_a_cell_that_trains_nothing_says_so_in_a_line(
    shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cell("%%desat\nvalue = 2").success
    said = capsys.readouterr().out
    assert said.startswith("desat: nothing was measured")
    assert said.count("\n") == 1
    assert shell.user_ns["value"] == 2
    assert not cards(shell)


def test_quiet_shows_nothing(shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cell(f"%%desat --quiet\n{TRAINING}").success
    assert cell("%%desat --quiet\nvalue = 2").success
    assert capsys.readouterr().out == ""
    assert not cards(shell)


def test_the_run_can_be_looked_at_while_it_trains(shell: InteractiveShell, cell: Cell) -> None:
    assert cell(f"%%desat run\nearly, told = run._repr_html_(), repr(run)\n{TRAINING}").success
    assert "nothing was measured" in shell.user_ns["early"]
    assert "0 steps" in shell.user_ns["told"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--every 0", "every counts steps"),
        ("--budget 2", "budget is a share"),
        ("--every two", "invalid int"),
        ("--unknown", "unrecognized arguments"),
        ("two names", "unrecognized arguments"),
        ("1st", "no name for a variable"),
        ("class", "no name for a variable"),
        ("--run-dir taken", "holds a run already"),
        ("--run-dir file", "cannot write the record"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_the_cell_is_not_run(
    options: str, words: str, shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cell("%%desat --run-dir taken\n1").success
    Path("file").touch()
    capsys.readouterr()
    assert not cell(f"%%desat {options}\nran = True").success
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err.startswith("UsageError: ")
    assert words in said.err
    assert "ran" not in shell.user_ns


def test_overwrite_replaces_a_run(shell: InteractiveShell, cell: Cell) -> None:
    assert cell("%%desat --run-dir here\n1").success
    assert cell(f"%%desat --run-dir here --overwrite\n{TRAINING}").success
    assert "12 steps" in repr(shell.user_ns["_desat"])


def test_a_cell_that_cannot_be_parsed_makes_no_run(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    assert not cell("%%desat --run-dir here\nx = = 1").success
    assert "invalid syntax" in capsys.readouterr().out
    assert not Path("here").exists()


def test_one_is_refused_within_another(shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    before = installed()
    assert not cell("%%desat\n%%desat\nran = True").success
    assert "watched already" in capsys.readouterr().err
    assert "ran" not in shell.user_ns
    assert installed() == before


def test_a_watch_in_the_cell_has_a_record_of_its_own(shell: InteractiveShell, cell: Cell) -> None:
    before = installed()
    body = TRAINING.replace("for step", "with desat.watch(model, every=1, run_dir='inner'):\n  for step")
    body = body.replace("\n    ", "\n      ")
    assert cell(f"%%desat --run-dir outer --every 1\nimport desat{body}").success
    assert installed() == before
    weights = [parameter.detach().clone() for parameter in shell.user_ns["model"].parameters()]
    for directory in ("inner", "outer"):
        with desat.open(directory) as record:
            assert len(record.steps(sampled=True)["loss"]) == 12
    assert cell(TRAINING).success
    assert all(map(torch.equal, weights, shell.user_ns["model"].parameters()))


def test_the_last_expression_counts_as_the_shell_is_set_to(
    shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for setting, shown in (("last_expr", ["'b'"]), ("all", ["'a'", "'b'"]), ("none", [])):
        shell.ast_node_interactivity = setting
        cell("%%desat --quiet\n'a'\n'b'")
        told = capsys.readouterr().out
        assert [line.rpartition(" ")[2] for line in told.splitlines() if line] == shown, setting


def test_a_semicolon_keeps_the_last_expression_from_being_shown(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cell("%%desat --quiet\nx = 1\nx + 1;  # a comment").result is None
    assert capsys.readouterr().out == ""


def test_the_help_and_the_removal(shell: InteractiveShell, cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    described = shell.find_cell_magic("desat").__doc__
    for option in ("--every", "--budget", "--run-dir", "--overwrite", "--curvature", "--quiet", "NAME"):
        assert option in described
    assert "%%desat" in described
    assert "%%%" not in described
    assert cell("%unload_ext desat").success
    capsys.readouterr()
    assert not cell("%%desat\n1").success
    assert "not found" in capsys.readouterr().err
    assert cell("%load_ext desat").success
    assert cell("%%desat\n1").result == 1


def test_the_folder_is_called_as_the_notebook(
    shell: InteractiveShell, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/digits.ipynb")
    assert cell("%%desat --quiet\n1").success
    assert cell("%%desat mine --quiet\n1").success
    names = sorted(path.name for path in Path("desat-runs").iterdir())
    assert names[0].startswith("digits-")
    assert names[1].startswith("mine-")


def test_an_interrupted_watch_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), desat.watch(torch.nn.Linear(1, 1), run_dir=tmp_path / "run"):
        raise KeyboardInterrupt
    assert status(tmp_path / "run") == "interrupted"


def test_a_run_that_cannot_be_read_is_told_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "<b>").mkdir()
    (tmp_path / "<b>" / "run.sqlite").write_bytes(b"no database" * 100)
    for name in ("nowhere", "<b>"):
        run = desat.Run(tmp_path / name)
        assert "no record that can be read" in repr(run)
        assert "<section" in run._repr_html_()
        assert "<b>" not in run._repr_html_()


BEFORE_TORCH = f"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
finders = list(sys.meta_path)
shell.run_cell("%load_ext desat")
shell.run_cell("%%desat\\n1")
assert "torch" not in sys.modules
assert sys.meta_path == finders, sys.meta_path
shell.run_cell('''%%desat run --every 1
assert "torch" not in __import__("sys").modules
{TRAINING}''')
assert shell.user_ns["step"] == 11
print(repr(shell.user_ns["run"]))
"""


def test_torch_is_imported_by_the_cell_that_does_so(tmp_path: Path) -> None:
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_TORCH], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("finished, 12 steps>")
    assert "desat: nothing was measured" in done.stdout


LIGHT = """
import sys
import desat
loaded = {"torch", "IPython", "jinja2", "plotly", "rich"} & set(sys.modules)
assert not loaded, loaded
desat.Run("nowhere")._repr_html_()
loaded = {"torch", "IPython", "plotly"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_extension_makes_importing_no_heavier(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_page_names_every_option(shell: InteractiveShell) -> None:
    page = (Path(__file__).parent.parent / "docs" / "notebook.md").read_text()
    options = set(re.findall(r"--[a-z-]+", shell.find_cell_magic("desat").__doc__))
    assert len(options) == 6
    assert options == set(re.findall(r"`(--[a-z-]+)", page)) - {"--"}
