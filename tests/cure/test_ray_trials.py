"""Trials on a Ray cluster of this machine, and the leash that holds them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from desat.cure.leash import END, ENDING, plan_from_line, plan_to_line
from desat.cure.ray_trials import RayTrials, import_ray, ray_trials
from desat.cure.trial import Outcome, Plan, Watch, why_failed
from desat.errors import DesatError
from desat.record.reader import Record
from desat.watch.script import Script
from tests.cli.test_cure import SICK, left_behind
from tests.cure.test_trial import is_running, training

SLOW = "import os\nprint(os.getpid(), flush=True)\n" + training(10_000, "time.sleep(0.02)")


@pytest.fixture(scope="module")
def trials() -> Iterator[RayTrials]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        with ray_trials(1) as executor:
            yield executor


def plan_of(code: str, tmp_path: Path, *remedies: str, steps: int = 12) -> Plan:
    script = tmp_path / "train.py"
    script.write_text(code)
    return Plan(Script(str(script), False, ("--rate", "1")), remedies, 0, steps, 100.0, one_thread=True)


def trial(
    trials: RayTrials,
    plan: Plan,
    tmp_path: Path,
    watch: Watch = lambda losses: False,
    stop: threading.Event | None = None,
) -> Outcome:
    return trials(plan, tmp_path / "trial", watch, stop or threading.Event())


def comes_true(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()


def folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("desat-trial-*")}


def test_what_a_trial_leaves_comes_back_and_nothing_stays_on_the_node(trials: RayTrials, tmp_path: Path) -> None:
    before = folders()
    code = "import sys\nprint(sys.argv[1:])\n" + training(1000)
    outcome = trial(trials, plan_of(code, tmp_path, "activation=relu"), tmp_path)
    assert (outcome.ending, outcome.exit_code, outcome.steps) == ("stopped", 0, 12)
    assert np.isfinite(outcome.losses).all()
    assert any("Tanh" in change for change in outcome.applied)
    assert outcome.notes["edits"]
    assert outcome.said == ("['--rate', '1']",)
    with Record(outcome.directory) as record:
        assert record.steps()["loss"].tolist() == outcome.losses.tolist()
    assert 0 < outcome.seconds < 100
    assert folders() <= before


def test_one_that_is_beaten_is_ended_with_its_process(trials: RayTrials, tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(losses: np.ndarray) -> bool:
        seen.append(len(losses))
        return len(losses) >= 10

    outcome = trial(trials, plan_of(SLOW, tmp_path, steps=10_000), tmp_path, watch)
    assert outcome.ending == "pruned"
    assert seen == sorted(seen)
    assert 10 <= outcome.steps < 1000
    assert not is_running(int(outcome.output.read_text().split()[0]))


def test_an_interrupted_one_ends_its_process_and_its_losses_are_kept(trials: RayTrials, tmp_path: Path) -> None:
    stop = threading.Event()

    def watch(losses: np.ndarray) -> bool:
        if len(losses) >= 3:
            stop.set()
        return False

    outcome = trial(trials, plan_of(SLOW, tmp_path, steps=10_000), tmp_path, watch, stop)
    assert outcome.ending == "interrupted"
    assert outcome.steps >= 3
    assert not is_running(int(outcome.output.read_text().split()[0]))


def test_a_script_that_fails_is_told_with_its_last_words(trials: RayTrials, tmp_path: Path) -> None:
    outcome = trial(trials, plan_of(training(9, "assert step < 5"), tmp_path), tmp_path)
    assert outcome.ending == "failed"
    assert "exit code 1 after 5 steps: AssertionError" in why_failed(outcome)


def test_when_the_actor_is_killed_its_process_ends_too(trials: RayTrials, tmp_path: Path) -> None:
    before = folders()
    mark = tmp_path / "process"
    code = f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\n" + SLOW

    def watch(losses: np.ndarray) -> bool:
        if len(losses):
            raise ZeroDivisionError
        return False

    with pytest.raises(ZeroDivisionError):
        trial(trials, plan_of(code, tmp_path, steps=10_000), tmp_path, watch)
    assert comes_true(lambda: not is_running(int(mark.read_text())))
    assert comes_true(lambda: folders() <= before)


def test_an_actor_that_is_lost_is_a_trial_that_failed(trials: RayTrials, tmp_path: Path) -> None:
    def watch(losses: np.ndarray) -> bool:
        if len(losses):
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if line.read_bytes().startswith(b"ray::Node"):
                        os.kill(int(line.parent.name), signal.SIGKILL)
        return False

    outcome = trial(trials, plan_of(SLOW, tmp_path, steps=10_000), tmp_path, watch)
    assert outcome.ending == "failed"
    assert "its Ray worker was lost: " in why_failed(outcome)


def test_a_folder_that_the_node_does_not_have_is_named(
    trials: RayTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("desat.cure.ray_trials.os.getcwd", lambda: "/only/here")
    with pytest.raises(DesatError, match="runs no trial: No such file or directory: /only/here on "):
        trial(RayTrials(import_ray(), 1), plan_of(SLOW, tmp_path), tmp_path)


def test_no_more_trials_at_once_than_the_cluster_has_cores() -> None:
    class Ray:
        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 6.0, "GPU": 2.0}

        def remote(self, **options: float) -> Callable[[type], type]:
            asked.append(options["num_gpus"])
            return lambda actor: actor

    asked: list[float] = []
    assert [RayTrials(Ray(), jobs).jobs for jobs in (None, 4, 100, 1)] == [6, 4, 6, 1]
    assert asked == [1 / 3, 1 / 2, 1 / 3, 1]


def test_without_ray_or_without_a_cluster_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("desat.cure.ray_trials.import_ray", lambda: type("Ray", (), {"is_initialized": lambda: False}))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DesatError, match=r"no Ray cluster at 127\.0\.0\.1:1 \(RAY_ADDRESS\): "), ray_trials():
        pass
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DesatError, match=r"pip install 'desat\[ray\]'"), ray_trials():
        pass


def test_a_refusal_by_the_cluster_is_one_line_that_tells_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        def is_initialized(self) -> bool:
            return False

        def init(self, **options: object) -> None:
            raise ConnectionError("a long\nstory\nit was refused\n")

    monkeypatch.setattr("desat.cure.ray_trials.import_ray", Ray)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    message = "^no Ray cluster at ray://head: it was refused; .* needs RAY_AUTH_MODE=token here, too$"
    with pytest.raises(DesatError, match=message), ray_trials():
        pass


def test_a_plan_survives_its_way_to_the_node(tmp_path: Path) -> None:
    plan = plan_of("", tmp_path, "activation=relu", "clipping=1.0")
    assert plan_from_line(plan_to_line(plan)) == plan


@pytest.mark.parametrize("ended_first", [True, False])
def test_a_leash_that_is_let_go_ends_the_trial_and_removes_its_folder(ended_first: bool, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    plan = plan_of(SLOW, tmp_path, steps=10_000)
    command = [sys.executable, "-m", "desat.cure.leash", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(plan_to_line(plan))
        process.stdin.flush()
        output = folder / "trial" / "output.txt"
        assert comes_true(lambda: output.exists() and output.read_text().endswith("\n"))
        script = int(output.read_text())
        if ended_first:
            process.stdin.write(END)
            process.stdin.flush()
            assert comes_true((folder / ENDING).exists)
            assert json.loads((folder / ENDING).read_text())["ending"] == "interrupted"
            assert not is_running(script)
        process.stdin.close()
        assert process.stdout.read() == b""  # once it is gone
    assert not is_running(script)
    assert not folder.exists()


def test_the_command_searches_on_a_cluster(trials: RayTrials, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SICK.replace("{extra}", "pass"))
    options = ["--on", "ray", "--steps", "50", "--seeds", "1", "--max-steps", "150", "--quiet", "--json"]
    environment = os.environ | {"RAY_ADDRESS": import_ray().get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "desat", "cure", *options, "--keep", "kept", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stderr  # whether so few trials find a cure is not the question here
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["baseline"]["verdict"] == "error"
    assert found["baseline"]["ending"] == "stopped"
    assert len(found["trials"]) == 2
    assert all(one["steps"] and one["effect"] is not None for one in found["trials"])
    assert (tmp_path / "kept" / "002" / "record" / "run.sqlite").exists()
    assert left_behind(str(tmp_path)) == []
