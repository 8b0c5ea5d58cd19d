"""Single trials of small scripts, as processes."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from desat.cure.metric import Logged, metric_series, settle_source
from desat.cure.trial import Outcome, Plan, run_here, why_failed
from desat.watch.script import Script

TRAINING = """
import time, torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(1, {steps} + 1):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    {extra}
print("the end")
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
print(os.getpid(), child.pid, flush=True)
time.sleep(99)
"""


def training(steps: int, extra: str = "pass") -> str:
    return TRAINING.format(steps=steps, extra=extra)


def trial(
    code: str,
    tmp_path: Path,
    *remedies: str,
    steps: int = 12,
    seed: int = 0,
    time_limit: float = 100.0,
    watch=lambda losses: False,
    stop: threading.Event | None = None,
) -> Outcome:
    script = tmp_path / "train.py"
    script.write_text(code)
    place = tmp_path / f"trial-{len(list(tmp_path.iterdir()))}"
    plan = Plan(Script(str(script), False), remedies, seed, steps, time_limit, one_thread=True)
    return run_here(plan, place, watch, stop or threading.Event())


def is_running(process: int) -> bool:
    """Whether a process is alive; one that has ended and waits to be noticed is not."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_trial_stops_at_its_limit_with_a_loss_for_each_step_and_its_remedies(tmp_path: Path) -> None:
    outcome = trial(training(1000), tmp_path, "activation=relu")
    assert (outcome.ending, outcome.exit_code, outcome.steps) == ("stopped", 0, 12)
    assert np.isfinite(outcome.losses).all()
    assert any("Tanh" in change for change in outcome.applied)
    assert outcome.said == ()


def test_the_same_seed_gives_the_same_losses_and_another_one_others(tmp_path: Path) -> None:
    first, again, other = (trial(training(1000), tmp_path, steps=4, seed=seed).losses for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_script_that_logs_and_prints_nothing_reports_its_metric_up_to_the_last_step(tmp_path: Path) -> None:
    code = "import desat\n" + training(1000, "desat.log(loss=1 / step, test_accuracy=step / 1000, step=step)")
    outcome = trial(code, tmp_path)
    assert (outcome.ending, outcome.output.read_text()) == ("stopped", "")
    source = settle_source(outcome.directory, outcome.output, None)
    assert source == Logged("test_accuracy")
    # The trial is stopped within its twelfth step, before the script can tell of it.
    assert metric_series(outcome.directory, outcome.output, source) == tuple(step / 1000 for step in range(1, 12))


def test_a_script_that_ends_earlier_has_finished(tmp_path: Path) -> None:
    outcome = trial(training(5), tmp_path)
    assert (outcome.ending, outcome.steps, outcome.said) == ("finished", 5, ("the end",))


@pytest.mark.parametrize(
    ("code", "ending", "reason"),
    [
        ("1 / 0", "failed", "exit code 1 before its first step: ZeroDivisionError: division by zero"),
        (training(9, "assert step < 5"), "failed", "exit code 1 after 5 steps: AssertionError"),
        ("raise SystemExit(3)", "failed", "exit code 3 before its first step, without a word"),
        ("input('which data? ')", "failed", "it asks for input, and a trial has no keyboard"),
        ("import os; os.abort()", "failed", "was ended by SIGABRT"),
        ("print('no network here')", "no steps", "without a training step"),
    ],
    ids=["crash", "crash later", "silent", "asks", "killed", "trains nothing"],
)
def test_how_it_ended_is_told_with_its_last_words(code: str, ending: str, reason: str, tmp_path: Path) -> None:
    outcome = trial(code, tmp_path)
    assert outcome.ending == ending
    assert reason in why_failed(outcome)


def test_a_script_that_hangs_and_will_not_go_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    outcome = trial(STUBBORN, tmp_path, time_limit=8.0)
    assert outcome.ending == "timed out"
    assert "stopped after 8 s, before its first step" in why_failed(outcome)
    processes = [int(word) for word in outcome.output.read_text().split()]
    assert len(processes) == 2
    assert not any(map(is_running, processes))
    assert time.monotonic() - began < 30


def test_a_child_that_outlives_the_script_is_ended(tmp_path: Path) -> None:
    code = "import subprocess\nchild = subprocess.Popen(['sleep', '99'])\nprint(child.pid)"
    outcome = trial(code, tmp_path)
    assert outcome.ending == "no steps"
    assert not is_running(int(outcome.output.read_text()))


def test_the_losses_are_seen_while_it_runs_and_can_end_it(tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(losses: np.ndarray) -> bool:
        seen.append(len(losses))
        return len(losses) >= 10

    outcome = trial(training(10_000, "time.sleep(0.02)"), tmp_path, steps=10_000, watch=watch)
    assert outcome.ending == "pruned"
    assert seen == sorted(seen)
    assert 10 <= outcome.steps < 1000


def test_an_interrupted_trial_ends_its_process(tmp_path: Path) -> None:
    stop = threading.Event()
    timer = threading.Timer(4.0, stop.set)
    timer.start()
    outcome = trial("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(99)", tmp_path, stop=stop)
    timer.join()
    assert outcome.ending == "interrupted"
    assert not any(is_running(int(word)) for word in outcome.output.read_text().split()[:1])


def test_an_error_in_the_watching_leaves_no_process(tmp_path: Path) -> None:
    def watch(losses: np.ndarray) -> bool:
        if len(losses):
            raise ZeroDivisionError
        return False

    code = "import os\nprint(os.getpid(), flush=True)\n" + training(10_000, "time.sleep(0.02)")
    with pytest.raises(ZeroDivisionError):
        trial(code, tmp_path, steps=10_000, watch=watch)
    output = next(tmp_path.glob("trial-*/output.txt"))
    assert not any(is_running(int(word)) for word in output.read_text().split()[:1])


def test_the_users_threads_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os\nprint(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert trial(code, tmp_path).said == ("1",)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert trial(code, tmp_path).said == ("3",)
    assert os.environ["OMP_NUM_THREADS"] == "3"
