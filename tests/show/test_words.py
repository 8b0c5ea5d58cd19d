from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.finding import Finding
from desat.show.words import advice, command, count, health, script_of
from tests.records import write_record

FINDING = Finding("symmetric-units", "error", None, (), None, 0, 1, "", "")


def test_a_command_has_one_remedy_of_a_family_and_two_at_most() -> None:
    remedies = ("initialization=orthogonal", "initialization=he", "clipping=1.0", "optimizer=adam")
    finding = replace(FINDING, remedies=remedies)
    typed = "desat run --apply initialization=orthogonal --apply clipping=1.0 train.py"
    assert command(finding, "train.py") == typed
    assert command(finding, None) == 'desat.apply(model, optimizer, "initialization=orthogonal", "clipping=1.0")'
    assert advice(finding) == "initialization=he, optimizer=adam"
    assert command(FINDING, "train.py") is None
    assert advice(FINDING) is None


@pytest.mark.parametrize(
    ("information", "typed"),
    [
        ({"script": "train.py"}, "train.py"),
        (
            {"script": "my train.py", "arguments": ["--name", "a b", "-n", "1"]},
            "'my train.py' --name 'a b' -n 1",
        ),
        ({"script": "package.train", "is_module": True, "arguments": []}, "-m package.train"),
        ({"script": "x\n; rm -rf ~", "arguments": "no list"}, "'x\ufffd; rm -rf ~'"),
        ({"script": None}, None),
    ],
)
def test_a_script_is_told_as_it_is_typed(information: dict[str, Any], typed: str | None, tmp_path: Path) -> None:
    with write_record(tmp_path / "run", [], **information) as record:
        assert script_of(record) == typed


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.00"), (0.9975, "0.99"), (0.118, "0.12"), (0.0096, "<0.01"), (0.0, "0.00")]
)
def test_a_health_is_not_rounded_to_its_ends(value: float, text: str) -> None:
    assert health(value) == text


def test_one_is_no_plural() -> None:
    assert [count(1, "step"), count(1290, "step"), count(2, "loss", "losses")] == ["1 step", "1,290 steps", "2 losses"]
