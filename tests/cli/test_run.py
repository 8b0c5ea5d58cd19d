"""Whole user scripts, run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from desat.cli import application
from desat.record.reader import Record

SCRIPTS = Path(__file__).parent.parent / "scripts"


def python(*arguments: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


def desat(*arguments: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return python("-m", "desat", *arguments, cwd=cwd, **options)


STYLES: dict[str, tuple[list[str], int, list[str]]] = {
    "sequential": ([], 60, ["1", "3"]),
    "functional": ([], 60, ["torch.relu after bn1", "F.gelu after bn2", "own", "Tensor.tanh after own"]),
    "trainer_class": (["--width", "24", "60"], 60, ["1"]),
    "validated": ([], 32, ["features.2"]),
    "compiled": ([], 60, ["1", "3"]),
}


@pytest.mark.parametrize("style", STYLES)
def test_scripts_of_every_style_run_unchanged_and_give_a_sound_record(style: str, tmp_path: Path) -> None:
    arguments, steps, nonlinearities = STYLES[style]
    plain = python(SCRIPTS / f"{style}.py", *arguments, cwd=tmp_path)
    watched = desat("run", "--run-dir", "run", SCRIPTS / f"{style}.py", *arguments, cwd=tmp_path)
    assert plain.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout == plain.stdout
    assert watched.stderr.startswith("desat: "), watched.stderr
    assert watched.stderr.count("\n") == 1

    record = Record(tmp_path / "run")
    table = record.steps()
    assert table["step"].tolist() == list(range(steps))
    assert np.isfinite(table["loss"]).all()
    sampled = record.steps(sampled=True)["step"]
    assert len(sampled) >= 5
    sites = record.sites("nonlinearity")
    assert [site.name.removeprefix(f"{site.source} ") for site in sites] == nonlinearities
    for site in sites:
        pre_activations = record.tensor(site, "input")
        assert pre_activations["step"].tolist() == sampled.tolist()
        assert (pre_activations["calls"] == 1).all()
        assert (pre_activations["rms"] < 100).all()
        assert record.tensor(site, "gradient")["step"].tolist() == sampled.tolist()
    for site in record.sites("parameter"):
        assert (record.parameter(site)["update_rms"] >= 0).all()
    assert record.information["status"] == "finished"
    assert {site.name.rpartition(".")[0] for site in record.sites("parameter")} <= {
        site.name for site in record.sites("module")
    }


def test_a_script_is_run_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "neighbour.py").write_text("name = 'neighbour'\n")
    (tmp_path / "scripts" / "show.py").write_text(
        "import os, sys, pickle, neighbour\n"
        "class Point: pass\n"
        "print(sys.argv, __name__, __file__, sys.path[0], os.getcwd(), neighbour.name, __spec__, __doc__)\n"
        "print(type(pickle.loads(pickle.dumps(Point()))).__module__, sys.modules['__main__'].Point is Point)\n"
        "print('torch' in sys.modules, sys.stdin.read())\n"
    )
    arguments = ["scripts/show.py", "--a", "-m", "b", "--help"]
    plain = python(*arguments, cwd=tmp_path, input="typed")
    watched = desat("run", "-q", *arguments, cwd=tmp_path, input="typed")
    assert watched.stdout == plain.stdout
    assert watched.returncode == plain.returncode == 0


def test_a_module_is_run_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "train.py").write_text(
        "import sys\nfrom . import __name__ as parent\nprint(sys.argv, __name__, parent, sys.path[0])\n"
    )
    plain = python("-m", "package.train", "--lr", "1", cwd=tmp_path)
    watched = desat("run", "-q", "-m", "package.train", "--lr", "1", cwd=tmp_path)
    assert watched.stdout == plain.stdout
    assert watched.returncode == 0


@pytest.mark.parametrize(
    "ending",
    [
        "import sys; sys.exit(3)",
        "raise SystemExit",
        "raise SystemExit('a message')",
        "assert False, 'no'",
        "1 / 0",
        "x =",
    ],
)
def test_the_exit_code_and_the_traceback_are_the_scripts_own(ending: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"def work():\n    {ending}\nwork()\n")
    plain = python("train.py", cwd=tmp_path)
    watched = desat("run", "-q", "train.py", cwd=tmp_path)
    assert watched.returncode == plain.returncode
    assert watched.stderr == plain.stderr


WITHOUT_A_LINE = """
def stop():
    raise KeyboardInterrupt
size = len(stop.__code__.co_code) // 2
nowhere = b"".join(bytes([0xF8 | (min(8, size - start) - 1)]) for start in range(0, size, 8))
stop.__code__ = stop.__code__.replace(co_linetable=nowhere)
stop()
"""
"""Ctrl-C may come at an instruction that no line of the source has made."""

A_HOOK_THAT_FAILS = """
import sys
def hook(*told):
    raise ValueError("in the hook")
sys.excepthook = hook
1 / 0
"""

A_HOOK_THAT_LEAVES = """
import sys
sys.excepthook = lambda *told: sys.exit(7)
1 / 0
"""


@pytest.mark.parametrize(
    ("text", "status"),
    [(WITHOUT_A_LINE, "interrupted"), (A_HOOK_THAT_FAILS, "failed"), (A_HOOK_THAT_LEAVES, "failed")],
    ids=["without a line", "a hook that fails", "a hook that leaves"],
)
def test_an_ending_that_is_hard_to_tell_is_told_as_python_tells_it(text: str, status: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    plain = python("train.py", cwd=tmp_path)
    watched = desat("run", "-q", "--run-dir", "run", "train.py", cwd=tmp_path)
    assert watched.returncode == plain.returncode
    assert watched.stderr == plain.stderr
    assert Record(tmp_path / "run").information["status"] == status


def test_ctrl_c_before_the_script_begins_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("desat.cli.run.live_panel", interrupted)
    (tmp_path / "train.py").write_text("")
    done = CliRunner().invoke(application, ["run", "--run-dir", str(tmp_path / "run"), str(tmp_path / "train.py")])
    assert done.exit_code == 130
    assert Record(tmp_path / "run").information["status"] == "interrupted"


def test_an_error_in_the_forward_pass_shows_no_frame_of_desat(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "model = torch.nn.Linear(3, 2)\n"
        "model(torch.ones(1, 3)).sum().backward()\n"
        "model(torch.ones(1, 3)).backward()\n"
    )
    watched = desat("run", "--run-dir", "run", "train.py", cwd=tmp_path)
    assert watched.returncode == 1
    assert "grad can be implicitly created only for scalar outputs" in watched.stderr
    assert str(Path("desat") / "watch") not in watched.stderr
    assert Record(tmp_path / "run").information["status"] == "failed"


def test_ctrl_c_ends_the_script_as_python_ends_it_and_keeps_the_record(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch, time\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "while True:\n"
        "    model(torch.ones(4, 3)).sum().backward()\n"
        "    optimizer.step()\n"
        "    print('step', flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "desat", "run", "--run-dir", "run", "train.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell without job control starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr
    record = Record(tmp_path / "run")
    assert record.information["status"] == "interrupted"
    assert len(record.steps()["step"]) >= 19
    assert os.listdir(tmp_path / "run") == ["run.sqlite"]


def test_a_killed_training_leaves_a_record_that_opens(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch, time\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "step = 0\n"
        "while True:\n"
        "    model(torch.ones(4, 3)).sum().backward()\n"
        "    optimizer.step()\n"
        "    print(step, time.time(), flush=True)\n"
        "    step += 1\n"
        "    time.sleep(0.005)\n"
    )
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "desat", "run", "-q", "--run-dir", "run", "train.py"], cwd=tmp_path, stdout=log
        )
        deadline = time.monotonic() + 60
        while (tmp_path / "log").read_text().count("\n") < 100 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(3)
        process.kill()
        killed = time.time()
        process.wait()
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    before = [int(line[0]) for line in lines if len(line) == 2 and float(line[1]) < killed - 1.5]
    with Record(tmp_path / "run") as record:
        steps = record.steps()["step"].tolist()
        assert record.information["status"] == "running"
    assert len(before) > 50
    assert steps[-1] >= before[-1]


def test_a_full_disk_ends_the_record_and_not_the_training(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch, time, resource, os\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for step in range(300):\n"
        "    if step == 20:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    model(torch.ones(4, 3)).sum().backward()\n"
        "    optimizer.step()\n"
        "    time.sleep(0.01)\n"
        "print('trained to the end')\n"
    )
    watched = desat("run", "--run-dir", "run", "train.py", cwd=tmp_path)
    assert watched.returncode == 0
    assert watched.stdout == "trained to the end\n"
    assert watched.stderr.count("the training goes on") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "no script at missing.py"),
        (["--apply", "activation=rlu", "train.py"], "activation"),
        (["--apply", "cooling=1", "train.py"], "cooling"),
        (["--apply", "activation=gelu", "--apply", "activation=relu", "train.py"], "one activation at a time"),
        (["--every", "0", "train.py"], "every"),
        (["--budget", "7", "train.py"], "budget"),
        (["--run-dir", "train.py/run", "train.py"], "cannot write the record"),
        (["-m", "no_such_module"], "no_such_module"),
        ([], "SCRIPT"),
    ],
)
def test_wrong_input_is_one_clear_message_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('ran')\n")
    watched = desat("run", *arguments, cwd=tmp_path)
    assert watched.returncode == 2
    assert message in watched.stderr
    assert "Traceback" not in watched.stderr
    assert "ran" not in watched.stdout


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('ran')", "never imported torch"),
        ("import torch\nprint('ran')", "no backward pass"),
    ],
)
def test_a_script_that_trains_nothing_ends_well_with_a_warning(code: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(code)
    watched = desat("run", "--run-dir", "run", "train.py", cwd=tmp_path)
    assert (watched.returncode, watched.stdout) == (0, "ran\n")
    assert message in watched.stderr
    assert watched.stderr.count("\n") == 1
    diagnosed = desat("diagnose", "run", cwd=tmp_path)
    assert diagnosed.returncode == 2
    assert diagnosed.stderr.startswith("desat: ")
    assert diagnosed.stderr.count("\n") == 1


TELLING = """
import torch, desat
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(30):
    optimizer.zero_grad()
    loss = model(torch.randn(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    desat.log(batch_loss=loss, odd="a text")
    if step % 10 == 9:
        desat.log(validation_accuracy=step / 30)
print(model.weight.tolist(), torch.rand(1).item())
"""


def test_a_script_tells_its_metrics_where_it_is_watched_and_runs_the_same_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TELLING)
    plain = python("train.py", cwd=tmp_path)
    watched = desat("run", "--quiet", "--run-dir", "run", "train.py", cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert (watched.returncode, watched.stdout) == (0, plain.stdout)
    assert watched.stderr.count("UserWarning: desat.log: odd is not recorded") == 1
    assert "train.py:11: UserWarning" in watched.stderr

    record = Record(tmp_path / "run")
    metrics = record.metrics()
    assert list(metrics) == ["batch_loss", "validation_accuracy"]
    assert metrics["batch_loss"]["step"].tolist() == list(range(30))
    assert metrics["batch_loss"]["value"].tolist() == record.steps()["loss"].tolist()
    assert metrics["validation_accuracy"]["step"].tolist() == [9, 19, 29]
    assert metrics["validation_accuracy"]["value"].tolist() == [9 / 30, 19 / 30, 29 / 30]


def test_a_check_lets_the_script_tell(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TELLING)
    checked = desat("check", "--steps", "5", "train.py", cwd=tmp_path)
    assert checked.returncode in (0, 1), checked.stderr
    assert checked.stderr.count("odd is not recorded") == 1


def test_a_model_without_a_nonlinearity_is_diagnosed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "model = torch.nn.Linear(3, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
        "for _ in range(20):\n"
        "    optimizer.zero_grad()\n"
        "    model(torch.ones(4, 3)).square().mean().backward()\n"
        "    optimizer.step()\n"
    )
    assert desat("run", "--run-dir", "run", "train.py", cwd=tmp_path).returncode == 0
    diagnosed = desat("diagnose", "--json", "run", cwd=tmp_path)
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert json.loads(diagnosed.stdout)["verdict"] == "healthy"


def test_a_remedy_is_applied_and_noted(tmp_path: Path) -> None:
    watched = desat(
        "run", "--run-dir", "run", "--apply", "activation=relu", "--apply", "initialization=he",
        SCRIPTS / "sequential.py", cwd=tmp_path,
    )  # fmt: skip
    assert watched.returncode == 0, watched.stderr
    record = Record(tmp_path / "run")
    assert {site.operation for site in record.sites("nonlinearity")} == {"ReLU"}
    assert any("Tanh" in change for change in record.information["applied"])
