import io
from pathlib import Path

import pytest
from rich.console import Console

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.link_budget import Link, LinkBudget, measure_link_budget
from desat.record.reader import Record
from desat.show.terminal import LINKS_SHOWN, listed_links, print_comparison, print_diagnosis
from tests.records import deep_network, write_record


def flat(step: int) -> float:
    return 2.3 + 0.001 * (step % 3)


def printed(record: Record, width: int = 80) -> str:
    file = io.StringIO()
    print_diagnosis(record, diagnose(record), measure_link_budget(record), Console(file=file, width=width))
    return file.getvalue()


@pytest.fixture
def sick(tmp_path: Path) -> Record:
    return write_record(tmp_path / "sick", deep_network(layers=12, layer_gain=0.2, loss=flat))


@pytest.mark.parametrize("width", [80, 120])
def test_a_diagnosis_says_what_where_since_when_why_how_sure_and_what_to_change(sick: Record, width: int) -> None:
    text = printed(sick, width)
    for word in ("vanishing-gradient", "where", "since", "why", "how sure", "desat run --apply", "Link budget", "dB"):
        assert word in text
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text


def test_a_healthy_run_is_told_so(tmp_path: Path) -> None:
    assert "Healthy" in printed(write_record(tmp_path / "run", deep_network(operation="ReLU")))


def test_text_of_a_record_is_shown_and_not_obeyed(sick: Record) -> None:
    hostile = "[red]x[/red]\x1b[2J\n"
    finding = Finding("dead-units", "error", hostile, (hostile,), hostile, 0, 1, hostile, hostile)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    print_diagnosis(sick, Diagnosis(hostile, 1, 1, 0.0, (finding,)), None, console)
    assert "[red]x[/red]" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()


def test_a_long_budget_is_summed_up_and_still_adds_up() -> None:
    links = tuple(Link(f"layer.{index}", "Linear", "weight", -0.1 * index) for index in range(60))
    rows = listed_links(LinkBudget(0, links, "first"))
    assert len(rows) == LINKS_SHOWN
    assert sum(gain for _, _, gain in rows) == pytest.approx(-0.1 * sum(range(60)))


def test_two_runs_stand_side_by_side(sick: Record, tmp_path: Path) -> None:
    cured = write_record(tmp_path / "cured", deep_network(operation="ReLU"), metrics={"accuracy": 0.97})
    file = io.StringIO()
    print_comparison([sick, cured], [diagnose(sick), diagnose(cured)], Console(file=file, width=80))
    (accuracy,) = [line for line in file.getvalue().splitlines() if line.startswith("accuracy")]
    assert accuracy.split() == ["accuracy", "–", "0.97"]
    assert all(len(line) <= 80 for line in file.getvalue().splitlines())
