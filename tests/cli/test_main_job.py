"""The main job on real data: the sick example, its healthy twin, the cure, the demo."""

import json
import re
from pathlib import Path

import pytest

from desat.cli.examples import EXAMPLES
from desat.record.reader import Record
from tests.warm import desat


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sick")
    assert desat("run", "--run-dir", "run", EXAMPLES / "sick_digits.py", cwd=directory).returncode == 0
    return directory / "run"


def test_the_sick_example_is_diagnosed_with_the_right_modules(sick: Path) -> None:
    diagnosed = desat("diagnose", "--json", sick, cwd=sick)
    assert diagnosed.returncode == 1
    document = json.loads(diagnosed.stdout)
    assert document["verdict"] == "error"
    (error,) = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert error["code"] in ("saturated-activation", "vanishing-gradient")
    assert {"0", "1", "3", "5", "7", "9", "11", "13", "15"} <= set(error["sites"])
    assert "activation=relu" in error["remedies"]
    assert re.search(r"sick_digits\.py:\d+$", error["source"])


def test_the_exit_code_follows_the_level(sick: Path) -> None:
    assert desat("diagnose", "--fail-on", "note", sick, cwd=sick).returncode == 1
    assert desat("diagnose", "--fail-on", "fatal", sick, cwd=sick).returncode == 2


@pytest.mark.parametrize("epochs", [3, 10])
def test_the_healthy_twin_gets_no_error(tmp_path: Path, epochs: int) -> None:
    script = EXAMPLES / "healthy_digits.py"
    assert desat("run", "--run-dir", "run", script, "--epochs", epochs, cwd=tmp_path).returncode == 0
    diagnosed = desat("diagnose", "--json", "run", cwd=tmp_path)
    assert diagnosed.returncode == 0, diagnosed.stdout
    assert json.loads(diagnosed.stdout)["verdict"] == "healthy"


def test_the_remedy_heals_the_same_script(tmp_path: Path) -> None:
    script = EXAMPLES / "sick_digits.py"
    remedies = ["--apply", "activation=relu", "--apply", "initialization=he"]
    cured = desat("run", "--run-dir", "run", *remedies, script, "--seed", 1, cwd=tmp_path)
    accuracy = re.search(r"test accuracy: ([0-9.]+)", cured.stdout)
    assert accuracy is not None
    assert float(accuracy.group(1)) > 0.95
    assert desat("diagnose", "run", cwd=tmp_path).returncode == 0


def test_a_report_is_written_and_not_overwritten_without_asking(sick: Path) -> None:
    written = desat("report", sick, "-o", "page.html", cwd=sick)
    assert (written.returncode, written.stdout) == (0, "page.html\n")
    again = desat("report", sick, "-o", "page.html", cwd=sick)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert desat("report", sick, "-o", "page.html", "--overwrite", cwd=sick).returncode == 0


@pytest.mark.parametrize("command", ["diagnose", "report"])
def test_a_run_that_does_not_exist_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    done = desat(command, "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("desat: no run at nowhere")
    assert done.stderr.count("\n") == 1


def test_the_demo_goes_from_watching_to_cure(tmp_path: Path) -> None:
    done = desat("demo", "--run-dir", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("vanishing-gradient", "Link budget", "accuracy", "report.html"):
        assert word in done.stdout
    sick, cured = (Record(tmp_path / "demo" / name).information["metrics"]["accuracy"] for name in ("sick", "cured"))
    assert sick < 0.2
    assert cured > 0.95
    assert (tmp_path / "demo" / "report.html").stat().st_size < 6_000_000
    again = desat("demo", "--run-dir", "demo", cwd=tmp_path)
    assert again.returncode == 2
    assert "choose another" in again.stderr


def test_help_names_every_command(tmp_path: Path) -> None:
    text = desat("--help", cwd=tmp_path).stdout
    assert all(command in text for command in ("run", "diagnose", "report", "demo"))
    assert re.match(r"desat \d+\.\d+", desat("--version", cwd=tmp_path).stdout)
