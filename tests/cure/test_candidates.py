import pytest

from desat.cure import candidates
from desat.cure.candidates import (
    combinations,
    existing,
    general_candidates,
    named_candidates,
    one_of_each_family,
    without_doubles,
)
from desat.cure.remedy import Remedy
from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.errors import DesatError


@pytest.fixture(autouse=True)
def only_four_families(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: str) -> Remedy:
        family, _, value = text.partition("=")
        if family not in ("activation", "initialization", "normalization", "optimizer"):
            raise DesatError(f"no remedy {text!r}")
        return Remedy(family, value)

    monkeypatch.setattr(candidates, "parse", parse)
    monkeypatch.setattr(candidates, "GENERAL", ("optimizer=adam", "activation=relu", "magic=wand"))


def finding(severity: Severity, *remedies: str) -> Finding:
    return Finding("dead-units", severity, None, (), None, 0, 1, "cause", "message", remedies=remedies)


def of(*findings: Finding) -> Diagnosis:
    return Diagnosis("run", 100, 20, 0.0, findings)


def test_remedies_of_errors_come_first_and_those_of_notes_not_at_all() -> None:
    diagnosis = of(
        finding("note", "normalization=group"),
        finding("warning", "normalization=batch"),
        finding("error", "activation=relu", "clipping=1.0", "initialization=he"),
    )
    assert named_candidates(diagnosis) == [
        ("activation=relu",),
        ("initialization=he",),
        ("normalization=batch",),
        ("activation=relu", "initialization=he"),
    ]


def test_general_remedies_are_those_that_no_finding_names() -> None:
    diagnosis = of(finding("error", "activation=relu", "clipping=1.0"))
    assert general_candidates(named_candidates(diagnosis)) == [("optimizer=adam",)]


def test_remedies_that_do_not_exist_are_left_out() -> None:
    assert existing(["magic=wand", "optimizer=adam"]) == ["optimizer=adam"]


def test_of_each_family_the_first_is_taken() -> None:
    assert one_of_each_family(["a=1", "a=2", "b=1", "c=1", "d=1"]) == ("a=1", "b=1", "c=1")


def test_twos_and_threes_are_of_different_families_and_the_best_first() -> None:
    ranked = [("a=1",), ("b=1",), ("a=2",), ("c=1",)]
    assert combinations(ranked) == [
        ("a=1", "b=1"),
        ("a=1", "c=1"),
        ("b=1", "a=2"),
        ("b=1", "c=1"),
        ("a=2", "c=1"),
        ("a=1", "b=1", "c=1"),
        ("b=1", "a=2", "c=1"),
    ]


def test_candidates_that_are_combinations_grow_and_what_was_tried_does_not_come_again() -> None:
    assert combinations([("a=1", "b=1"), ("c=1",), ("a=1",)], tried=[("c=1", "a=1"), ("b=1", "a=1")]) == [
        ("a=1", "b=1", "c=1")
    ]


def test_doubles_are_told_by_what_they_hold() -> None:
    assert without_doubles([("a=1", "b=1"), ("b=1", "a=1")]) == [("a=1", "b=1")]
