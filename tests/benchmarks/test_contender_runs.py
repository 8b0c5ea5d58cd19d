import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks.contender_runs import CONTENDERS, Run, main, read_contenders
from benchmarks.contender_tools import GRAVE, MEANING, MODULES, Said, codes_of, is_installed
from benchmarks.zoo.cases import case_named
from benchmarks.zoo.catalogue import CODES
from benchmarks.zoo.render import render

ROOT = Path(__file__).parents[2]
TOLD = {
    "torchmortem": ("mlp-shallow_breast-cancer_update-too-large_learning-rate_severe_s2", "vanishing-gradient"),
    "torch-audit": ("mlp-shallow_digits_non-finite_bad-row_severe_s1", "non-finite"),
}
"""A case with a severe fault, and what each tool says of it, and does not of its healthy twin."""
HEALTHY = "mlp-shallow_digits_plain_s1"
UNSCALED = "mlp-shallow_breast-cancer_unscaled-input_raw-features_severe_s1"
"""Each of its batches, and its validation set, have values that torch-audit finds suspicious."""


def needs(tool: str) -> None:
    if not is_installed(tool):
        pytest.skip(f"{tool} is not installed: `make bench-contenders` installs it")


def command(folder: Path, tool: str, *words: str) -> list[str]:
    options = ["--folder", str(folder), "--data", str(folder), "--tool", tool, "--jobs", "1"]
    return [sys.executable, "-m", "benchmarks.contender_runs", *options, *words]


def contend(folder: Path, tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, tool, *words), cwd=ROOT, text=True, capture_output=True, check=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / CONTENDERS).read_text().splitlines()]


@pytest.mark.parametrize("tool", MODULES)
def test_a_tool_judges_a_script(tool: str, tmp_path: Path) -> None:
    needs(tool)
    faulty, code = TOLD[tool]
    twin = case_named(faulty).twin
    ended = contend(tmp_path, tool, "--case", faulty)
    assert ended.returncode == 0, ended.stderr
    by_name = {line["name"]: line for line in lines(tmp_path)}
    assert set(by_name) == {faulty, twin}
    for line in by_name.values():
        assert (line["tool"], line["failure"]) == (tool, None)
        assert 0.0 < line["seconds"] < 120.0
    found = read_contenders(tmp_path / CONTENDERS)
    assert code in found[faulty][tool]
    assert code not in found[twin][tool]
    raw = by_name[faulty]["raw"]
    assert {one["severity"] for one in raw} - GRAVE[tool], "findings that are less grave are kept"
    assert any(one["sites"] == ["first", "output", "second"] for one in raw)

    script = tmp_path / "plain.py"
    script.write_text(render(case_named(twin).recipe))
    plain = subprocess.run([sys.executable, str(script), "."], text=True, capture_output=True, check=True).stdout
    printed = (tmp_path / "contenders" / f"{twin}.{tool}.txt").read_text().splitlines()
    assert [line for line in printed if line.startswith(("epoch", "validation"))] == plain.splitlines()


def test_each_step_is_audited_and_the_evaluation_is_not(tmp_path: Path) -> None:
    needs("torch-audit")
    case = case_named(UNSCALED)
    assert contend(tmp_path, "torch-audit", "--case", UNSCALED).returncode == 0
    (line,) = (line for line in lines(tmp_path) if line["name"] == UNSCALED)
    (counted,) = (one["count"] for one in line["raw"] if one["id"] == "TA301")
    assert counted == case.recipe.steps


def test_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torch-audit")
    asked: list[Run] = []
    monkeypatch.setattr("benchmarks.contender_runs._run_all", lambda due, *rest: asked.extend(due))
    words = ["--folder", str(tmp_path), "--tool", "torch-audit", "--case", HEALTHY]
    assert main(words) == 0
    (run,) = asked
    name, tool, version, script = run.key
    line = {"name": name, "tool": tool, "version": version, "script": script, "codes": []}
    for changed, due in (({}, 0), ({"script": "another"}, 1), ({"version": "0"}, 1), ({"tool": "torchmortem"}, 1)):
        asked.clear()
        (tmp_path / CONTENDERS).write_text(json.dumps({**line, **changed}) + "\n")
        assert main(words) == 0
        assert len(asked) == due, changed


def test_a_time_limit_is_a_failure_and_a_half_written_line_is_passed_over(tmp_path: Path) -> None:
    needs("torch-audit")
    (tmp_path / CONTENDERS).write_text('{"name": "half')
    assert contend(tmp_path, "torch-audit", "--case", HEALTHY, "--time-limit", "0.05").returncode == 0
    half, line = (tmp_path / CONTENDERS).read_text().splitlines()
    assert half == '{"name": "half'
    assert json.loads(line)["failure"] == "over the time limit"
    assert read_contenders(tmp_path / CONTENDERS) == {HEALTHY: {"torch-audit": set()}}


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    needs("torch-audit")
    words = command(tmp_path, "torch-audit", "--fault", "none", "--architecture", "mlp-tapered", "--split", "held-out")
    process = subprocess.Popen(words, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not (tmp_path / CONTENDERS).exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "goes on" in errors
    assert "Traceback" not in errors
    assert [line["failure"] for line in lines(tmp_path)] == [None] * len(lines(tmp_path))


def test_missing_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("torch-audit")
    words = ["--folder", str(tmp_path), "--data", str(tmp_path), "--tool", "torch-audit", "--case"]
    assert main([*words, "lstm_mnist_plain_s0"]) == 0
    assert "no mnist-10k" in capsys.readouterr().err


def test_a_tool_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.contender_runs.is_installed", lambda tool: False)
    with pytest.raises(SystemExit) as leaving:
        main([])
    assert leaving.value.code == 2
    assert "torchmortem is not installed" in capsys.readouterr().err


def test_only_the_gravest_count() -> None:
    for tool, name, grave, lesser, codes in (
        ("torchmortem", "Dead units", "CRITICAL", "WARNING", ["dead-units"]),
        ("torch-audit", "TA301", "ERROR", "WARN", ["unscaled-input"]),
    ):
        assert codes_of(tool, [Said(name, grave, 1, ())]) == codes
        assert codes_of(tool, [Said(name, lesser, 1, ())]) == []
        assert codes_of(tool, [Said("of next year's version", grave, 1, ())]) == []


def test_the_meanings_are_codes() -> None:
    for meanings in MEANING.values():
        assert {code for codes in meanings.values() for code in codes} <= set(CODES)


def test_every_finding_of_torch_audit_has_its_meaning() -> None:
    needs("torch-audit")
    assert set(re.findall(r'\bid="(TA\d+)"', sources("torch_audit"))) == set(MEANING["torch-audit"])


def test_every_finding_of_torchmortem_has_its_meaning() -> None:
    needs("torchmortem")
    titles = re.findall(r"severity=[^,]*,\s*category=[^,]*,\s*title=f?\"([^\"]+)\"", sources("torchmortem.detectors"))
    assert {title.split(" in ")[0] for title in titles} == set(MEANING["torchmortem"])


def sources(module: str) -> str:
    found = find_spec(module)
    assert found is not None
    folders: Sequence[str] = found.submodule_search_locations or ()
    return "\n".join(path.read_text() for folder in folders for path in sorted(Path(folder).rglob("*.py")))


def test_the_last_line_holds_and_no_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / CONTENDERS
    assert read_contenders(path) == {}
    told = [
        {"name": "a", "tool": "torch-audit", "codes": ["non-finite"]},
        {"name": "a", "tool": "torch-audit", "codes": ["dead-units", "no code"]},
        {"name": "a", "tool": "torchmortem", "codes": []},
        {"name": "b"},
        ["a", "torchmortem"],
    ]
    path.write_text("\n".join(json.dumps(line) for line in told) + '\n{"name": "half')
    assert read_contenders(path) == {"a": {"torch-audit": {"dead-units"}, "torchmortem": set()}}
