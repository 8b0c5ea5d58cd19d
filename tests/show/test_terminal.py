import io
from pathlib import Path

import pytest
from rich.console import Console

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.health import health
from desat.diagnose.link_budget import Link, LinkBudget, measure_link_budget
from desat.record.reader import Record
from desat.record.rows import Site
from desat.show.summary import summarize
from desat.show.terminal import LAYERS_SHOWN, LINKS_SHOWN, listed_links, print_comparison, print_diagnosis
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


def test_it_begins_with_health_and_summary(sick: Record) -> None:
    head, _, rest = printed(sick).lstrip().partition("\n")
    assert head == f"Sick · health {health(diagnose(sick)):.2f} of 1"
    told = " ".join(line.rstrip() for line in rest.splitlines())
    assert told.startswith(" ".join(summarize(sick, diagnose(sick))))


def test_a_healthy_run_is_told_so(tmp_path: Path) -> None:
    text = printed(write_record(tmp_path / "run", deep_network(operation="ReLU")))
    assert text.lstrip().startswith("Healthy · health 1.00 of 1\n")
    assert "of the layers" not in text


def test_of_many_sick_layers_the_sickest_are_listed(sick: Record) -> None:
    found = (
        Finding("dead-units", "error", "net.3", ("net.3",), None, 0, 1, "", ""),
        Finding(
            "dead-units", "warning", "net.7", tuple(f"net.{number}" for number in range(5, 15)), None, 0, 1, "", ""
        ),
    )
    file = io.StringIO()
    print_diagnosis(sick, Diagnosis("run", 1, 1, 0.0, found), None, Console(file=file, width=80))
    lines = file.getvalue().partition("Health of the layers")[2].splitlines()[1:]
    assert [line.split()[0] for line in lines[:-1]] == ["net.3", *(f"net.{number}" for number in range(5, 12))]
    assert len(lines) - 1 == LAYERS_SHOWN
    assert lines[0].split()[2:4] == ["0.10", "██······················"]
    assert lines[-1] == "  and 3 layers more, none of them sicker"


def test_long_and_hostile_names_of_layers_keep_to_the_width(tmp_path: Path) -> None:
    name = "[red]" + "encoder." * 30 + "\x1b[2J"
    rows = [row._replace(name=name) if isinstance(row, Site) and row.id == 1 else row for row in deep_network()]
    with write_record(tmp_path / "run", rows) as record:
        finding = Finding("dead-units", "error", name, (name,), None, 0, 1, name, "off")
        file = io.StringIO()
        console = Console(file=file, width=80, force_terminal=True, color_system=None)
        print_diagnosis(record, Diagnosis("run", 1, 1, 0.0, (finding,)), None, console)
    assert all(len(line) <= 80 for line in file.getvalue().splitlines())
    assert "\x1b[2J" not in file.getvalue()
    assert "[red]encoder" in file.getvalue().partition("Health of the layers")[2]


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
