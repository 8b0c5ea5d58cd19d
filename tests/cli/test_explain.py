from pathlib import Path

import pytest

from desat.diagnose.rules import RULES
from tests.warm import desat

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"


def test_every_code_is_listed(tmp_path: Path) -> None:
    text = desat("explain", cwd=tmp_path).stdout
    assert all(rule.code in text for rule in RULES)


def test_a_code_is_explained_with_thresholds_and_sources(tmp_path: Path) -> None:
    text = desat("explain", "vanishing-gradient", cwd=tmp_path).stdout
    for word in ("What it means", "What helps", "lost-gradient", "-60", "AUTOTRAINER"):
        assert word in text


@pytest.mark.parametrize(("code", "hint"), [("vanishing-gradients", "mean vanishing-gradient?"), ("x", "lists")])
def test_an_unknown_code_is_one_line_and_exit_code_2(tmp_path: Path, code: str, hint: str) -> None:
    done = desat("explain", code, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert hint in done.stderr


def test_the_page_of_findings_is_what_the_rules_say(tmp_path: Path) -> None:
    assert desat("explain", "--markdown", cwd=tmp_path).stdout == PAGE.read_text(encoding="utf-8")
