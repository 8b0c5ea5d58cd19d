import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from desat.errors import DesatError
from desat.record import kept_cure
from desat.record.kept_cure import find_kept, read_kept, write_kept


def document() -> dict[str, Any]:
    trial = {
        "apply": ["activation=relu"], "metric": 0.5, "effect": 1.8, "interval": [1.5, 2.1], "accepted": True,
        "measure": "loss", "without": 2.3, "reason": None, "findings_gone": ["dead-units"], "findings_new": [],
        "seeds": [0, 1], "steps": 200, "seconds": 12.0, "ending": "stopped",
    }  # fmt: skip
    finding = {"code": "dead-units", "severity": "error", "site": None, "cause": "too deep"}
    baseline = {
        "verdict": "error", "findings": [finding], "metric": 2.3, "measure": "loss", "steps": 200, "seconds": 9.5,
        "seeds": [0, 1], "ending": "stopped",
    }  # fmt: skip
    return {
        "schema": 1, "script": "train.py", "baseline": baseline, "trials": [trial], "chosen": ["activation=relu"],
        "diff": None, "by_hand": [], "applied": [], "interrupted": False, "seconds": 60.0, "steps": 800,
        "curves": [{"apply": [], "runs": [{"seed": 0, "steps": [0, 2], "losses": [2.3, None]}]}],
    }  # fmt: skip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_kept(tmp_path, document())
    assert find_kept(tmp_path) == find_kept(path) == path
    assert read_kept(path) == document()


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert find_kept(tmp_path) is find_kept(tmp_path / "other.json") is find_kept(tmp_path / "cure.json") is None


def change(*place: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(found: Any) -> None:
        for step in place[:-1]:
            found = found[step]
        found[place[-1]] = to

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("schema", to=2), "schema should be 1, and is 2"),
        (change("schema", to=True), "schema should be 1, and is True"),
        (change("script", to=3), "script should be text, and is 3"),
        (change("script", to=["x"]), "script should be text, and is a list"),
        (change("baseline", "metric", to="2.3"), "baseline.metric should be a finite number, and is '2.3'"),
        (change("baseline", "metric", to=10**400), "baseline.metric should be a finite number"),
        (change("baseline", "verdict", to="<script>"), "baseline.verdict should be error or warning or healthy"),
        (change("baseline", "verdict", to=["error"]), "baseline.verdict should be error or warning or healthy"),
        (change("baseline", "findings", 0, "severity", to="fatal"), "baseline.findings[0].severity should be error"),
        (change("trials", 0, "interval", to=[1.0]), "trials[0].interval should be a list of 2"),
        (change("trials", 0, "interval", to=[1.0, None]), "trials[0].interval[1] should be a finite number"),
        (change("trials", 0, "accepted", to=1), "trials[0].accepted should be true or false"),
        (change("trials", 0, "steps", to=-1), "trials[0].steps should be a whole number from 0, and is -1"),
        (change("trials", 0, "steps", to=1.5), "trials[0].steps should be a whole number from 0"),
        (change("trials", 0, to={}), "trials[0].apply is missing"),
        (change("trials", to={}), "trials should be a list, and is a dict"),
        (change("chosen", to=["a=b"]), "chosen should be one of the trials"),
        (change("curves", 0, "runs", 0, "losses", to=[1.0]), "should have as many losses as steps, and has 1 of 2"),
        (change("curves", 0, "runs", 0, "losses", to=[1.0, "2"]), "losses[1] should be a finite number"),
        (change("curves", 0, "runs", 0, "steps", to=[2, 2]), "curves[0].runs[0].steps should rise"),
        (lambda found: found.pop("curves"), "curves is missing"),
    ],
)
def test_what_is_broken_is_said_in_one_line(
    spoil: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    found = document()
    spoil(found)
    path = write_kept(tmp_path, found)
    with pytest.raises(DesatError, match=re.escape(message)) as raised:
        read_kept(path)
    assert str(raised.value).startswith(f"{path} is not the result of a search")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b"nonsense\n\n", b"\xff\xfe", b"[" * 200_000, b'{"schema": ' + b"1" * 9000 + b"}",
        json.dumps(document()).replace("2.3", "NaN").encode(), json.dumps(document()).replace("2.3", "1e999").encode(),
    ],
    ids=["empty", "list", "cut", "no JSON", "no text", "deep", "long number", "NaN", "infinite"],
)  # fmt: skip
def test_a_file_that_is_none_is_said_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cure.json"
    path.write_bytes(content)
    with pytest.raises(DesatError, match="is not the result of a search") as raised:
        read_kept(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(path))


def test_a_file_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_kept(tmp_path, document())
    monkeypatch.setattr(kept_cure, "LARGEST_FILE", 100)
    with pytest.raises(DesatError, match="too large"):
        read_kept(path)


def test_a_folder_that_takes_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DesatError, match=r"cannot write .*cure.json: No such file"):
        write_kept(tmp_path / "gone", document())
