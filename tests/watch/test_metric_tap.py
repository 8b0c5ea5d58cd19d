"""What a loop tells by desat.log, and what of it is in the record."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import desat
from desat.record.reader import Record
from desat.watch.listeners import listeners
from desat.watch.metric_tap import LONGEST_NAME, MOST_NAMES
from tests.watch.loops import classify

Watched = Callable[..., Record]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def telling(tell: Callable[[int], object], steps: int = 3) -> Callable[..., None]:
    """A loop that tells something before its first step, as step -1, and after each."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        tell(-1)
        for step in range(steps):
            classify(steps=1)(model, optimizer)
            tell(step)

    return loop


def told(watched: Watched, **values: Any) -> dict[str, float]:
    """The values that are in the record of a run which tells them once."""
    metrics = watched(network(), telling(lambda step: desat.log(**values) if step == 0 else None)).metrics()
    return {name: series["value"].item() for name, series in metrics.items()}


@pytest.mark.parametrize("every", [1, 100])
def test_a_metric_has_the_number_of_the_last_step_done(every: int, watched: Watched) -> None:
    record = watched(network(), telling(lambda step: desat.log(accuracy=step / 4)), every=every)
    series = record.metrics()["accuracy"]
    assert series["step"].tolist() == [-1, 0, 1, 2]
    assert series["value"].tolist() == [-0.25, 0.0, 0.25, 0.5]
    assert (np.diff(series["time"]) > 0).all()
    ends = record.steps()["time"]
    assert series["time"][0] < ends[0]
    assert np.isclose(series["time"][1:], ends, atol=0.5).all()


def test_of_several_values_at_a_step_the_last_one_counts(watched: Watched) -> None:
    def tell(step: int) -> None:
        for value in (1.0, 3.0, 2.0):
            desat.log(score=value)

    assert watched(network(), telling(tell)).metrics()["score"]["value"].tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.25), 0.25),
        (np.array([[0.25]]), 0.25),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([3]), 3.0),
        (torch.ones(1, requires_grad=True) * 0.5, 0.5),
        (nn.Parameter(torch.tensor(0.5)), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (float("inf"), np.inf),
        (float("nan"), np.nan),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_one_number_is_taken(value: Any, number: float, watched: Watched) -> None:
    np.testing.assert_equal(told(watched, accuracy=value), {"accuracy": number})


class Unwilling:
    def __float__(self) -> float:
        raise ZeroDivisionError


class OperationsOfItsOwn(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a tensor of several processes was read")


@pytest.mark.parametrize(
    "value",
    [
        "0.93",
        b"1",
        None,
        [0.5],
        1j,
        10**400,
        torch.ones(2),
        np.ones(2),
        torch.tensor(1j),
        torch.ones(1, device="meta"),
        torch.ones(1).as_subclass(OperationsOfItsOwn),
        Unwilling(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_warned_of_once_at_the_users_line_and_left_out(value: Any, watched: Watched) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = watched(network(), telling(lambda step: desat.log(accuracy=value, other=1)))
    assert [str(one.message) for one in caught] == [
        f"desat.log: accuracy is not recorded: expected one number, got {type(value).__name__}"
    ]
    assert caught[0].filename == __file__
    assert list(record.metrics()) == ["other"]
    assert len(record.metrics()["other"]["step"]) == 4


def test_each_name_has_its_own_warning(watched: Watched) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told(watched, first="a", second="b")
    assert len(caught) == 2


def test_a_warning_that_the_script_has_made_an_error_does_not_reach_it(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(watched, accuracy="high", other=1) == {"other": 1.0}
    assert caplog.messages == ["desat: desat.log: accuracy is not recorded: expected one number, got str"]


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "\ud800", "a\0b", "n" * (LONGEST_NAME + 1)])
def test_a_name_that_cannot_be_shown_is_refused_and_the_record_goes_on(name: str, watched: Watched) -> None:
    with pytest.warns(UserWarning, match="can be printed was expected"):
        assert told(watched, **{name: 1.0, "after": 2.0}) == {"after": 2.0}


@pytest.mark.parametrize("name", ["val/acc@5", "précision", "'); DROP TABLE metric; --", "n" * LONGEST_NAME])
def test_any_other_name_is_kept_as_it_is(name: str, watched: Watched) -> None:
    assert told(watched, **{name: 1.0}) == {name: 1.0}


def test_the_number_of_names_is_bounded_with_one_warning(watched: Watched) -> None:
    def tell(step: int) -> None:
        desat.log(**{f"metric{number}": number for number in range(2 * MOST_NAMES)})

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = watched(network(), telling(tell)).metrics()
    assert list(metrics) == [f"metric{number}" for number in range(MOST_NAMES)]
    assert all(len(series["step"]) == 4 for series in metrics.values())
    assert len(caught) == 1
    assert f"only the first {MOST_NAMES} names" in str(caught[0].message)


def test_values_that_come_faster_than_the_disk_are_all_there(watched: Watched) -> None:
    steps = 300

    def tell(step: int) -> None:
        for _ in range(20):
            desat.log(loss=0.0, accuracy=step)

    record = watched(network(), telling(tell, steps), every=1000)
    assert record.metrics()["accuracy"]["value"].tolist() == list(range(-1, steps))
    assert record.information["dropped"] == 0


def test_a_metric_that_is_told_while_the_disk_is_idle_is_there_within_a_second(tmp_path: Path) -> None:
    model = network()
    with desat.watch(model, run_dir=tmp_path / "run") as run:
        classify(steps=1)(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for value in (1.0, 2.0):
            desat.log(accuracy=value)
            threading.Event().wait(1.2)
            assert run.record().metrics()["accuracy"]["value"].tolist() == [value]


def test_where_nothing_watches_nothing_is_looked_at() -> None:
    desat.log(accuracy="whatever", other=Unwilling())  # pyright: ignore[reportArgumentType]
    assert listeners == []


def test_nobody_listens_after_a_run_however_it_ends(tmp_path: Path) -> None:
    heard = []

    def fail() -> None:
        heard.extend(listeners)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), desat.watch(network(), run_dir=tmp_path / "run"):
        fail()
    assert (len(heard), listeners) == (1, [])


def test_two_runs_at_once_each_hear_it_with_their_own_steps(tmp_path: Path) -> None:
    first, second = network(), network()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (first, second)]
    with desat.watch(first, optimizers[0], run_dir=tmp_path / "a"):
        classify(steps=3)(first, optimizers[0])
        with desat.watch(second, optimizers[1], run_dir=tmp_path / "b"):
            classify(steps=2)(second, optimizers[1])
            desat.log(accuracy=0.5)
    steps = [desat.open(tmp_path / name).metrics()["accuracy"]["step"].tolist() for name in "ab"]
    assert steps == [[2], [1]]


def test_the_process_that_is_not_the_first_tells_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert told(watched, accuracy=0.5) == {}


def test_the_first_process_does(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert told(watched, accuracy=0.5) == {"accuracy": 0.5}


def test_a_forked_process_tells_nothing(watched: Watched) -> None:
    def tell(step: int) -> None:
        child = os.fork()
        if not child:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                desat.log(child="a text, which the parent's process would warn of")  # pyright: ignore[reportArgumentType]
            os._exit(len(caught))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        desat.log(parent=1)

    assert list(watched(network(), telling(tell, steps=1)).metrics()) == ["parent"]


def test_the_users_function_mode_does_not_see_that_a_value_is_read(watched: Watched) -> None:
    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def tell(step: int) -> None:
        value = torch.tensor(0.5)
        with Counting():
            desat.log(accuracy=value)

    seen: list[Any] = []
    assert watched(network(), telling(tell)).metrics()["accuracy"]["value"].tolist() == [0.5] * 4
    assert seen == []


def test_compiled_code_stays_whole(tmp_path: Path) -> None:
    code = """
import sys, torch, desat
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

@torch.compile(fullgraph=True, backend="eager")
def doubled(x):
    desat.log(inside=0.5)
    return 2 * x

def train():
    for _ in range(4):
        optimizer.zero_grad()
        model(doubled(torch.ones(2, 3))).sum().backward()
        optimizer.step()
        desat.log(outside=1)

train()
with desat.watch(model, optimizer, every=100, run_dir=sys.argv[1]):
    train()
print(desat.open(sys.argv[1]).metrics()["outside"]["step"].tolist())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[0.0, 1.0, 2.0, 3.0]\n"), done.stderr


def test_desat_and_its_log_are_there_without_torch() -> None:
    code = "import sys, desat; desat.log(accuracy=0.5); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
