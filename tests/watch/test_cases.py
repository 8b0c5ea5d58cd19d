"""The hard cases: whole training scripts, run with and without desat, and compared to what is true of them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from desat.record.reader import Record
from desat.record.rows import Site

LOGGED_BY_TORCH = re.compile(r"[VIWE]\d{4} \d\d:\d\d")

CASES = Path(__file__).parent.parent / "scripts" / "cases"

Case = Callable[..., Record]


def started(*command: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        # Both at once, one on each core.
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(tmp_path: Path, case: str, *arguments: str, every: int = 1, **environment: str) -> tuple[str, str]:
    """What the script printed without desat and with it, which also said nothing but its closing line."""
    script = [CASES / f"{case}.py", *arguments]
    processes = [
        started(*script, cwd=tmp_path, **environment),
        started("-m", "desat", "run", "--every", every, "--run-dir", "run", *script, cwd=tmp_path, **environment),
    ]
    printed = [process.communicate(timeout=200) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors
    said = [line for line in printed[1][1].splitlines() if not LOGGED_BY_TORCH.match(line)]
    assert len(said) == 1, printed[1][1]
    assert said[0].startswith("desat: "), said
    return printed[0][0], printed[1][0]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Runs a script with and without desat, which must print the same, and gives the record."""

    def run(name: str, *arguments: str, every: int = 1) -> Record:
        plain, watched = both(tmp_path, name, *arguments, every=every)
        assert plain
        assert watched == plain
        record = Record(tmp_path / "run")
        assert record.information["status"] == "finished"
        return record

    return run


def names(record: Record, *kinds: str) -> list[str]:
    """The sites of these kinds in order of execution; functional ones without their file and line."""
    sites = [site for site in record.sites() if site.kind in kinds]
    return [site.name.removeprefix(f"{site.source} ") for site in sites]


def site(record: Record, name: str, kind: str | None = None) -> Site:
    return next(found for found in record.sites(kind) if found.name.removeprefix(f"{found.source} ") == name)


def calls(record: Record, name: str, quantity: str = "output") -> list[float]:
    return record.tensor(site(record, name), quantity)["calls"].tolist()


def steps(record: Record, name: str, quantity: str = "output") -> list[float]:
    return record.tensor(site(record, name), quantity)["step"].tolist()


def assert_every_parameter_is_seen(record: Record, expected: dict[str, list[int]]) -> None:
    """expected: by the name of a parameter the steps at which it was trained."""
    found = {one.name: record.parameter(one) for one in record.sites("parameter")}
    assert {name: series["step"].tolist() for name, series in found.items()} == expected
    for name, series in found.items():
        assert (series["update_rms"] > 0).all(), name


def layers(steps: int | range, *names: str) -> dict[str, list[int]]:
    where = list(range(steps) if isinstance(steps, int) else steps)
    return {f"{name}.{kind}": where for name in names for kind in ("weight", "bias")}


def test_gradient_accumulation_parameter_groups_and_validations(case: Case) -> None:
    record = case("accumulation")
    assert record.steps()["step"].tolist() == list(range(6))
    assert names(record, "module", "nonlinearity") == ["body.0", "body.1", "body.2", "head"]
    for name in names(record, "module", "nonlinearity"):
        for quantity in ("output", "gradient"):
            # Four passes; neither of the two validations, whose inputs are a thousand times as large.
            assert calls(record, name, quantity) == [4] * 6
            assert (record.tensor(site(record, name), quantity)["rms"] < 10).all()
    assert (record.tensor(site(record, "body.0"), "output")["elements"] == 4 * 10 * 32).all()
    assert_every_parameter_is_seen(record, layers(6, "body.0", "head"))
    # The second group learns ten times as fast.
    body, head = (record.parameter(site(record, name)) for name in ("body.0.weight", "head.weight"))
    assert (body["update_rms"] / body["gradient_rms"])[0] == pytest.approx(0.05, rel=1e-3)
    assert (head["update_rms"] / head["gradient_rms"])[0] == pytest.approx(0.5, rel=0.1)


def test_a_gan_is_one_step_for_both_of_its_networks(case: Case) -> None:
    record = case("gan")
    assert record.steps()["step"].tolist() == list(range(8))
    assert names(record, "module", "nonlinearity") == [
        "0", "1", "2", "3", "generator.0", "generator.1", "generator.2", "generator.3",
    ]  # fmt: skip
    # Of real images, of fake ones, and of fake ones again for the generator.
    for name in ("0", "1", "2", "3"):
        assert calls(record, name) == calls(record, name, "gradient") == [3] * 8
    # The generator runs before the discriminator steps, and is given its gradient after that.
    for name in ("generator.0", "generator.1", "generator.2", "generator.3"):
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 8
    assert_every_parameter_is_seen(record, layers(8, "0", "3", "generator.0", "generator.2"))


def test_an_update_by_hand_with_shared_weights_and_operations_in_place(case: Case) -> None:
    record = case("by_hand")
    assert record.steps()["step"].tolist() == list(range(6))
    assert np.isfinite(record.steps()["loss"]).all()
    assert names(record, "module", "nonlinearity") == [
        "inward", "rectifier", "cell", "torch.tanh after cell", "Tensor.relu_ after cell", "outward",
    ]  # fmt: skip
    for name in ("inward", "rectifier", "Tensor.relu_ after cell", "outward"):
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 6
    for name in ("cell", "torch.tanh after cell"):
        assert calls(record, name) == calls(record, name, "gradient") == [5] * 6
    for name in ("rectifier", "Tensor.relu_ after cell"):
        # The input is measured before it is overwritten.
        assert (record.tensor(site(record, name), "input")["minimum"] < 0).all()
        assert (record.tensor(site(record, name), "output")["minimum"] == 0).all()


def test_checkpointed_blocks_count_once_and_nests_are_looked_into(case: Case) -> None:
    record = case("checkpointed")
    assert record.steps()["step"].tolist() == list(range(5))
    blocks = ("plain", "kept", "entered")
    assert names(record, "module", "nonlinearity") == [
        "first",
        *(name for block in blocks for name in (*(f"{block}.inner.{number}" for number in range(3)),
                                                f"torch.tanh after {block}.inner.2")),
        "pair", "stack.0", "stack.1", "stack.2", "stack.3", "head",
    ]  # fmt: skip
    for name in names(record, "module", "nonlinearity"):
        assert calls(record, name) == [1] * 5, name
        # A reentrant checkpoint keeps no graph of its inside.
        assert calls(record, name, "gradient") == ([] if "entered" in name else [1] * 5), name
    pair, stream = (record.tensor(site(record, name), "output")["rms"] for name in ("pair", "first"))
    assert (pair > stream).all(), "the first tensor of what the pair returns is doubled"
    weights = [f"{block}.inner.0" for block in blocks]
    assert_every_parameter_is_seen(record, layers(5, "first", *weights, "stack.0", "stack.2", "head"))


def test_one_training_after_another_in_every_precision_and_with_empty_batches(case: Case) -> None:
    record = case("precisions")
    assert record.steps()["step"].tolist() == list(range(20))
    assert names(record, "module", "nonlinearity") == ["0", "1", "2", "3", "4", "5"]
    trained = [step for step in range(20) if step % 5 != 4]
    for name in names(record, "module", "nonlinearity"):
        for quantity in ("output", "gradient"):
            assert steps(record, name, quantity) == trained, "an empty batch has nothing to measure"
            assert calls(record, name, quantity) == [1] * 16
    assert not record.last_sample("output")
    rectified = record.tensor(site(record, "2"), "output")
    assert rectified["rms"][:4] == pytest.approx(rectified["rms"][4:8], rel=0.01)
    assert rectified["rms"][:4] == pytest.approx(rectified["rms"][8:12], rel=0.05)
    # Whether channels lie first or last in memory.
    assert rectified["rms"][:4] == pytest.approx(rectified["rms"][12:], rel=1e-4)
    assert rectified["zeros"][:4] == pytest.approx(rectified["zeros"][12:], abs=1e-3)


def test_sparse_gradients_and_a_closure_that_runs_several_times(case: Case) -> None:
    record = case("embeddings")
    assert record.steps()["step"].tolist() == list(range(10))
    for name in ("words", "bag", "torch.tanh after bag", "head"):
        assert steps(record, name) == list(range(5))
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 5
    for name in ("regressor.0", "regressor.1", "regressor.2"):
        assert steps(record, name) == list(range(5, 10))
        assert calls(record, name) == calls(record, name, "gradient") == [4] * 5
    words = record.parameter(site(record, "words.weight"))
    assert words["step"].tolist() == list(range(5))
    # 192 draws of 200 words leave a share of about 1 / e without a gradient.
    assert (abs(words["gradient_zeros"] - 0.38) < 0.08).all()
    head = record.parameter(site(record, "head.weight"))
    assert head["step"].tolist() == list(range(5)), "of the second optimizer of each step"
    assert record.parameter(site(record, "regressor.2.weight"))["step"].tolist()[-4:] == [6, 7, 8, 9]


def test_a_network_that_changes_while_it_is_trained(case: Case) -> None:
    record = case("changing")
    assert record.steps()["step"].tolist() == list(range(12))
    for name in ("body.0", "body.2", "body.3"):
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 12
    sigmoid, relu = site(record, "body.1"), site(record, "body.1 (ReLU)")
    assert (sigmoid.operation, relu.operation) == ("Sigmoid", "ReLU")
    assert sigmoid.curve != relu.curve
    assert steps(record, "body.1", "input") == [0, 1, 2]
    assert steps(record, "body.1 (ReLU)", "input") == list(range(3, 12))
    assert steps(record, "head") == list(range(9))
    assert steps(record, "head.1", "input") == [9, 10, 11]
    assert record.parameter(site(record, "body.0.weight"))["step"].tolist() == list(range(12))
    assert record.parameter(site(record, "head.weight"))["step"].tolist() == list(range(9))
    assert record.parameter(site(record, "head.2.weight"))["step"].tolist() == [9, 10, 11]


def test_worker_processes_and_threads(case: Case) -> None:
    record = case("threads")
    assert record.steps()["step"].tolist() == list(range(8))
    # Neither the network that the workers run, nor the one that is evaluated in another thread.
    assert names(record, "module", "nonlinearity") == ["0", "1", "2"]
    for name in ("0", "1", "2"):
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 8
        assert (record.tensor(site(record, name), "output")["elements"] == 16 * (4 if name == "2" else 16)).all()
    assert_every_parameter_is_seen(record, layers(8, "0", "2"))


def test_transforms_and_hooks_and_modes_of_the_users_own(case: Case) -> None:
    record = case("transforms")
    assert record.steps()["step"].tolist() == list(range(4))
    # What runs under torch.func is no site: not the ensemble, and not the second call of a layer.
    assert names(record, "module", "nonlinearity") == ["first", "act", "second", "torch.sigmoid after second", "head"]
    for name in names(record, "module", "nonlinearity"):
        assert calls(record, name) == calls(record, name, "gradient") == [1] * 4
    # The user's hook on the first layer clamps what the second gets; the mode doubles what sigmoid gives.
    assert (record.tensor(site(record, "act"), "input")["maximum"] == 0.5).all()
    assert (record.tensor(site(record, "torch.sigmoid after second"), "output")["maximum"] > 1).all()


@pytest.mark.parametrize("every", [1, 2])
def test_a_trainer_that_is_a_module_and_passes_that_fail(case: Case, every: int) -> None:
    record = case("trainer_module", every=every)
    assert record.steps()["step"].tolist() == list(range(8))
    sampled = list(range(0, 8, every))
    for name in ("model.0", "model.1.act", "model.2", "model.3"):
        assert steps(record, name) == steps(record, name, "gradient") == sampled
        assert calls(record, name, "gradient") == [1] * len(sampled)
    assert_every_parameter_is_seen(record, dict.fromkeys(layers(8, "model.0", "model.3"), sampled))


def test_weights_that_are_made_of_others_and_lazy_modules(case: Case) -> None:
    record = case("reparametrized")
    assert record.steps()["step"].tolist() == list(range(4))
    assert names(record, "module", "nonlinearity") == ["0", "1", "2", "3", "4.cell", "5", "6", "7", "8"]
    operations = [site(record, name, kind).operation for name, kind in
                  (("0", "module"), ("2", "module"), ("3", "module"), ("5", "module"), ("7", "module"))]  # fmt: skip
    assert operations == ["Conv1d", "BatchNorm1d", "Conv1d", "Linear", "LayerNorm"]
    for name in names(record, "module", "nonlinearity"):
        assert calls(record, name) == calls(record, name, "gradient") == [4 if name == "4.cell" else 1] * 4
    trained = {found.name for found in record.sites("parameter")}
    assert {"0.parametrizations.weight.original0", "3.parametrizations.weight.original", "5.weight"} <= trained


def test_compiled_code_is_neither_broken_nor_compiled_again(case: Case) -> None:
    # The script prints the weights, and what the compiler counted: graphs, operations and breaks.
    record = case("compiled", every=3)
    assert record.steps()["step"].tolist() == list(range(24))
    assert record.steps(sampled=True)["step"].tolist() == list(range(0, 24, 3))
    assert steps(record, "1", "input") == [0, 3]
    assert steps(record, "network.1", "input") == list(range(6, 24, 3))


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_code_compiled_by_inductor_is_not_compiled_again(tmp_path: Path) -> None:
    plain, watched = both(tmp_path, "compiled", "--inductor", every=3)

    # Inductor's code rounds in other places, so that the weights of sampled steps agree to that only.
    def told(printed: str) -> list[str]:
        return [line.rpartition(" ")[0] for line in printed.splitlines()]

    assert told(plain) == told(watched)
    assert told(plain)[-1].startswith("inductor")


ALLOWANCE = 96.0
"""MiB that watching may add to the largest memory of a process.

What it imports takes about 60, and a part of a large tensor, 16, is laid out anew to be read. One activation of the
script is 59, and a step has four of them.
"""


def test_memory_does_not_grow_with_the_activations(tmp_path: Path) -> None:
    # The allocator gives memory back at once, so that what is held is what is used.
    plain, watched = both(tmp_path, "large_activations", MALLOC_MMAP_THRESHOLD_="1000000")
    assert float(watched) - float(plain) < ALLOWANCE
