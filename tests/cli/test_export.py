"""`desat export` and `desat run --mirror` as a user runs them."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from desat.cli import main
from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.export.exporter import check_library
from desat.show.export.tensorboard_events import event_files
from tests.records import write_record
from tests.show.export.runs import small_run
from tests.show.export.test_tensorboard import read, scalars
from tests.warm import desat, python

TRAINING = """
import pathlib, time, torch, desat
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Sigmoid(), torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range({steps}):
    optimizer.zero_grad()
    loss = model(torch.randn(32, 8)).pow(2).mean()
    loss.backward()
    optimizer.step()
    desat.log(double=2.0 * step)
    {every_step}
print(f"loss {{loss.item():.12f}}")
"""
"""Goes on until it is told to end, by a file, if it is to be looked at while it runs."""

UNTIL_TOLD = "time.sleep(0.05)\n    if pathlib.Path('end').exists(): break"

WITHIN = 2.0
"""Seconds after which a value that was recorded is to be in the mirror, on an idle machine."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_record(tmp_path / "run", small_run()).close()
    return tmp_path


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Runs the command in this process, in the folder; gives its exit code, output and errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["desat", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    monkeypatch.chdir(folder)
    return command


def test_the_default_place_is_in_the_runs_folder_and_is_printed(folder: Path, here: Callable[..., tuple]) -> None:
    done = desat("export", "run", "--to", "json", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run/export.json\n", "")
    code, told, error = here("export", "run", "--to", "json")
    assert (code, told, error.count("\n")) == (2, "", 1)
    assert here("export", "run", "--to", "json", "--overwrite") == (0, "run/export.json\n", "")
    code, printed, _ = here("export", "run/run.sqlite", "--to", "json", "-o", "-")
    assert code == 0
    assert json.loads(printed) == json.loads((folder / "run" / "export.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--to", "excel"], "no format 'excel': expected one of tensorboard, wandb, mlflow, parquet, csv, json"),
        (["nowhere", "--to", "csv"], "no run at nowhere"),
        (["run", "--to", "csv", "-o", "-"], "only json goes to standard output"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, here: Callable[..., tuple]) -> None:
    code, told, error = here("export", *arguments)
    assert (code, told, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize(
    ("name", "library"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("parquet", "pyarrow")],
)
def test_a_library_that_is_not_there_is_named_with_how_to_get_it(
    name: str, library: str, here: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    told = f"desat: {name} is written by {library}, which is not installed: `pip install 'desat[{name}]'`\n"
    assert here("export", "run", "--to", name) == (2, "", told)


def test_a_folder_of_the_name_of_a_library_is_no_library(
    folder: Path, here: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wandb_of_runs").mkdir()
    monkeypatch.syspath_prepend(str(folder))
    assert importlib.util.find_spec("wandb_of_runs") is not None
    with pytest.raises(DesatError, match="not installed"):
        check_library("wandb", "wandb_of_runs")


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("mlflow", "expected one of tensorboard, wandb"),
        ("tensorboard=", "nothing stands behind the ="),
        ("tensorboard=taken", "holds an export already"),
        ("wandb", "pip install 'desat[wandb]'"),
    ],
)
def test_a_mirror_that_cannot_be_is_told_before_the_script_starts(
    mirror: str, message: str, folder: Path, here: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    (folder / "taken").mkdir()
    (folder / "taken" / "events.out.tfevents.1.desat").write_bytes(b"")
    (folder / "train.py").write_text("print('started')")
    code, told, error = here("run", "--mirror", mirror, "train.py")
    assert (code, told, error.count("\n")) == (2, "", 1)
    assert message in error
    assert not (folder / "desat-runs").exists()


def test_a_mirrored_training_is_the_training_and_its_mirror_is_whole(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING.format(steps=200, every_step=""))
    (tmp_path / "tensorboard.py").write_text("raise RuntimeError('this is a file of the user, and not the library')\n")
    alone = python("train.py", cwd=tmp_path)
    done = desat("run", "--every", "10", "--run-dir", "run", "--mirror", "tensorboard", "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, alone.stdout)
    (tmp_path / "tensorboard.py").unlink()
    place = tmp_path / "run" / "tensorboard"
    assert done.stderr.startswith(f"desat: tensorboard: {place}\n")
    assert done.stderr.count("\n") == 2
    mirrored = scalars(read(place))
    exported = desat("export", "run", "--to", "tensorboard", "-o", "events", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert mirrored == scalars(read(tmp_path / "events"))
    assert [value for _, _, value in mirrored["metric/double"]] == [2.0 * step for step in range(200)]
    assert "saturated/1" in mirrored


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    (tmp_path / "train.py").write_text(TRAINING.format(steps=2000, every_step=UNTIL_TOLD))
    command = [sys.executable, "-m", "desat", "run", "--run-dir", "run", "--mirror", "tensorboard=events", *options]
    return subprocess.Popen([*command, "train.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                            stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def steps_of(place: Path) -> list[int]:
    return [step for _, step, _ in scalars(read(place)).get("loss", [])] if event_files(place) else []


def mirrors_of(run: Path) -> list[int]:
    """The processes that mirror a run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"desat.show.export.mirror" in words and os.fsencode(run) in words:
            found.append(int(process.name))
    return found


def test_events_appear_while_the_script_runs(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        wait_for(lambda: len(steps_of(tmp_path / "events")) > 3)
        assert process.poll() is None
        with Record(tmp_path / "run") as record:
            recorded = int(record.last_steps(1)["step"][0])
        began = time.monotonic()
        wait_for(lambda: steps_of(tmp_path / "events")[-1] >= recorded)
        assert time.monotonic() - began < 5 * WITHIN
        assert process.poll() is None
        (tmp_path / "end").touch()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    with Record(tmp_path / "run") as record:
        assert steps_of(tmp_path / "events") == record.steps()["step"].astype(int).tolist()
    assert mirrors_of(tmp_path / "run") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_training_that_is_ended_leaves_its_mirror_whole_and_no_orphan(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "--quiet")
    try:
        wait_for(lambda: len(steps_of(tmp_path / "events")) > 3)
        assert len(mirrors_of(tmp_path / "run")) == 1
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -number
    wait_for(lambda: not mirrors_of(tmp_path / "run"))
    with Record(tmp_path / "run") as record:
        assert steps_of(tmp_path / "events") == record.steps()["step"].astype(int).tolist()
    assert "desat/findings" in read(tmp_path / "events").Tags()["tensors"]


def test_a_mirror_that_fails_is_one_line_and_the_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING.format(steps=20, every_step=""))
    (tmp_path / "file").write_text("")
    done = desat("run", "--run-dir", "run", "--mirror", "tensorboard=file/events", "train.py", cwd=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"loss \d+\.\d+\n", done.stdout)
    assert "the mirror to tensorboard ended, the training is not touched by it: cannot write" in done.stderr
    assert done.stderr.count("\n") == 2


def test_a_process_that_the_script_leaves_behind_does_not_hold_the_mirror_up(tmp_path: Path) -> None:
    fork = "import os\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\n"
    (tmp_path / "train.py").write_text(TRAINING.format(steps=20, every_step="") + fork)
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "desat", "run", "--run-dir", "run", "--mirror", "tensorboard"]
    done = subprocess.run([*command, "train.py"], cwd=tmp_path, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False)  # fmt: skip
    assert done.returncode == 0
    assert time.monotonic() - began < 55
    assert "loss" in scalars(read(tmp_path / "run" / "tensorboard"))
