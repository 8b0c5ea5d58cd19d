import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.zoo.__main__ import main, parse, select
from benchmarks.zoo.cases import Case, all_cases, case_named, sample_of, with_twins
from benchmarks.zoo.catalogue import CODES, FAULTS
from benchmarks.zoo.parts import ARCHITECTURES, DATA_SETS, SPLIT
from benchmarks.zoo.render import render
from benchmarks.zoo.results import Result, harm_of, harmful, is_at, learns, read_results, siblings_of, write_result
from benchmarks.zoo.runner import Zoo, plan
from benchmarks.zoo.versions import measured_by

from desat.record.reader import Record

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
PLAIN = "mlp-shallow_digits_plain_s0"
SAMPLE = (PLAIN, "autoencoder_blobs_plain_s0", "mlp-deep_circles_sgd_s0")


def result(name: str = PLAIN, validation: float | None = 0.95, **changes: object) -> Result:
    case = case_named(name)
    made = Result(name, case.describe(), 0, 1.0, 1.0, validation, False, f"runs/{name}", "s", "m", "c")
    return replace(made, **changes)


def zoo(folder: Path, *words: str, wait: bool = True) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.zoo",
        "--folder",
        str(folder),
        "--data",
        str(DATA),
        "--jobs",
        "2",
        *words,
    ]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if wait:
        process.stdout_text, process.stderr_text = process.communicate()  # type: ignore[attr-defined]
    return process


def names(words: tuple[str, ...]) -> list[str]:
    return [word for name in words for word in ("--case", name)]


# The cases


def test_every_case_renders_and_compiles_to_a_script_of_its_own() -> None:
    scripts: dict[str, str] = {}
    for case in all_cases():
        script = render(case.recipe)
        compile(script, case.name, "exec")
        assert "desat" not in script
        assert script not in scripts, f"{case.name} is {scripts[script]}"
        scripts[script] = case.name


def test_names_are_unique_and_fit_for_files() -> None:
    counts = Counter(case.name for case in all_cases())
    assert max(counts.values()) == 1
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in counts)


def test_there_are_enough_of_both_kinds() -> None:
    healthy = sum(case.fault is None for case in all_cases())
    assert healthy >= 300
    assert len(all_cases()) - healthy >= 300


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_cases_in_both_splits(code: str) -> None:
    counts = Counter(case.split for case in all_cases() if case.code == code)
    assert counts["tune"] >= 2
    assert counts["held-out"] >= 2


def test_the_codes_are_those_of_the_design() -> None:
    design = ROOT.parent / "shared" / "DESIGN.md"
    if not design.exists():
        pytest.skip(f"no {design}")
    section = design.read_text().split("## Finding codes")[1].split("A finding, as JSON")[0]
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", section)) == set(CODES)


def test_the_codes_that_faults_name_exist() -> None:
    for fault in FAULTS:
        assert {fault.code, *fault.also} <= set(CODES), fault.key


def test_the_split_is_by_architecture_and_by_data() -> None:
    for (architecture, data), split in SPLIT.items():
        assert ARCHITECTURES[architecture].split == split
        assert DATA_SETS[data].split == split
    for case in all_cases():
        assert case.split == SPLIT[case.recipe.architecture, case.recipe.data]
    counts = Counter(case.split for case in all_cases())
    assert 0.4 < counts["tune"] / len(all_cases()) < 0.6


def test_a_twin_is_healthy_and_differs_by_the_fault_alone() -> None:
    for case in all_cases():
        twin = case_named(case.twin)
        assert twin.fault is None
        if case.fault is None:
            assert twin is case
            continue
        assert case.strength is not None
        same = dataclasses.asdict(twin.recipe)
        differing = {key for key, value in dataclasses.asdict(case.recipe).items() if value != same[key]}
        assert differing
        assert differing <= set(case.fault.changes(case.strength, twin.recipe))


def test_every_fault_says_where_it_sits() -> None:
    for case in all_cases():
        if case.fault is not None and case.fault.place != "network":
            assert case.sites, case.name


def test_a_jump_begins_within_the_run() -> None:
    jumps = [case for case in all_cases() if case.fault and case.fault.starts == "jump"]
    assert jumps
    for case in jumps:
        assert case.begins is not None
        assert 0 < case.begins < case.recipe.steps


def test_a_sample_is_always_the_same_and_has_its_twins() -> None:
    sample = sample_of(all_cases(), 10)
    assert sample == sample_of(tuple(reversed(all_cases())), 10)
    assert {case.twin for case in sample} <= {case.name for case in sample}
    assert 10 <= len(sample) <= 20


def test_options_select() -> None:
    for case in select(parse(["--fault", "dead-units", "--split", "tune"])):
        assert case.split == "tune"
        assert case.code in ("dead-units", None)
    only_healthy = select(parse(["--fault", "none", "--architecture", "gru"]))
    assert {case.code for case in only_healthy} == {None}
    assert {case.recipe.architecture for case in only_healthy} == {"gru"}


def test_the_list_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--list", "--case", PLAIN, "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["held-out", "-", PLAIN]
    assert not list(tmp_path.iterdir())
    assert main(["--list", "--case", "no such case"]) == 2


# What is true


def test_harm_needs_points_and_errors() -> None:
    twin = result(validation=0.95)
    assert harmful(result(validation=0.5), twin)
    assert not harmful(result(validation=0.94), twin)  # less than three points
    assert not harmful(result(validation=0.915), twin)  # more, but within the noise of 450 samples
    assert not harmful(result(validation=0.99), twin)


def test_harm_looks_at_the_spread_over_seeds() -> None:
    twin, faulty = result(validation=0.95), result(validation=0.80)
    calm = [result(validation=0.94), result(validation=0.96)]
    wild = [result(validation=0.85), result(validation=0.99)]
    assert harmful(faulty, twin, calm)
    assert not harmful(faulty, twin, wild)


def test_a_script_that_fails_is_harmed() -> None:
    assert harmful(result(validation=None, exit_code=1), result())
    assert harmful(result(validation=float("nan")), result())


def test_of_a_twin_that_does_not_learn_nothing_is_said() -> None:
    assert harm_of(result(validation=0.1), result(validation=0.3)) == "unknown"
    assert harm_of(result(validation=0.1), result()) == "harmful"
    assert harm_of(result(validation=0.95), result()) == "harmless"


def test_learning_is_judged_by_the_data() -> None:
    assert learns(result(validation=0.9))
    assert not learns(result(validation=0.8))
    assert learns(result("autoencoder_blobs_plain_s0", 0.5))
    assert not learns(result("autoencoder_blobs_plain_s0", float("nan")))


def test_siblings_are_the_same_script_with_other_seeds() -> None:
    stems = (PLAIN, "mlp-shallow_digits_plain_s1", "mlp-shallow_digits_sgd_s0", "gru_digits_plain_s1")
    results = {name: result(name) for name in stems}
    assert [other.name for other in siblings_of(results[PLAIN], results)] == ["mlp-shallow_digits_plain_s1"]


@pytest.mark.parametrize(
    ("site", "patterns", "expected"),
    [
        ("layers.3", ["layers.*"], True),
        ("output", ["layers.*"], False),
        ("train.py:37 torch.relu after first", ["first*"], True),
        ("train.py:37 torch.relu after first", ["second*"], False),
        ("body.1 (ReLU)", ["body.1"], True),
        ("anything", [], True),
    ],
)
def test_sites_are_matched_by_module_path(site: str, patterns: list[str], expected: bool) -> None:
    assert is_at(site, patterns) is expected


def test_results_outlive_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    write_result(path, result(validation=0.5))
    write_result(path, result(validation=0.9))
    path.write_text(path.read_text() + '{"name": "half')
    assert read_results(path)[PLAIN].validation == 0.9


# The runner


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the small sample has run."""
    folder = tmp_path_factory.mktemp("zoo")
    process = zoo(folder, *names(SAMPLE))
    assert process.returncode == 0, process.stderr_text  # type: ignore[attr-defined]
    return folder


def test_a_sample_runs_and_learns(ran: Path) -> None:
    results = read_results(ran / "results.jsonl")
    assert set(results) == set(SAMPLE)
    for name in SAMPLE:
        assert results[name].exit_code == 0
        assert learns(results[name]), name
        with Record(ran / results[name].run) as record:
            assert len(record.steps()["step"]) == case_named(name).recipe.steps


def test_a_fork_does_what_a_fresh_interpreter_does(ran: Path, tmp_path: Path) -> None:
    process = zoo(tmp_path, "--fresh", "--case", PLAIN)
    assert process.returncode == 0, process.stderr_text  # type: ignore[attr-defined]
    outputs = [(folder / "output" / f"{PLAIN}.txt").read_text() for folder in (ran, tmp_path)]
    assert outputs[0] == outputs[1]
    losses = []
    for folder in (ran, tmp_path):
        with Record(folder / "runs" / PLAIN) as record:
            losses.append(record.steps()["loss"].tolist())
    assert losses[0] == losses[1]


def test_what_is_done_is_kept_until_asked_for_again(ran: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / PLAIN).mkdir(parents=True)
    done = replace(read_results(ran / "results.jsonl")[PLAIN], measured_by=measured_by())
    here, cases = Zoo(tmp_path, DATA), (case_named(PLAIN), case_named("mlp-shallow_digits_plain_s1"))
    write_result(here.results_path, done)
    assert [case.name for case in plan(here, cases, again=True).due] == ["mlp-shallow_digits_plain_s1"]
    write_result(here.results_path, replace(done, script="another"))
    assert [case.name for case in plan(here, cases).stale] == [PLAIN]
    assert len(plan(here, cases, again=True).due) == 2


def test_missing_data_is_said(tmp_path: Path) -> None:
    cases = with_twins((case_named("lstm_mnist_plain_s0"), case_named(PLAIN)))
    work = plan(Zoo(tmp_path, tmp_path), cases)
    assert [case.name for case in work.due] == [PLAIN]
    assert list(work.skipped.values()) == [1]
    assert "mnist-10k" in next(iter(work.skipped))


def test_a_time_limit_ends_a_script(tmp_path: Path) -> None:
    process = zoo(tmp_path, "--time-limit", "0.05", "--case", PLAIN)
    assert process.returncode == 0
    ended = read_results(tmp_path / "results.jsonl")[PLAIN]
    assert ended.timed_out
    assert ended.exit_code == -signal.SIGKILL
    assert ended.validation is None


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    few: list[Case] = [case for case in all_cases() if case.recipe.data == "breast-cancer" and case.fault is None][:12]
    process = zoo(tmp_path, *names(tuple(case.name for case in few)), wait=False)
    results, limit = tmp_path / "results.jsonl", time.monotonic() + 30
    while not results.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert 0 < len(read_results(results)) < len(few)
    for line in results.read_text().splitlines():
        assert json.loads(line)["exit_code"] == 0
