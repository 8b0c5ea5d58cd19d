from dataclasses import replace

import pytest

from desat.cure.remedies import FAMILIES
from desat.diagnose.finding import Finding
from desat.show.words import APPLICABLE, advice, command, count, health

FINDING = Finding("symmetric-units", "error", None, (), None, 0, 1, "", "")


def test_what_is_called_applicable_is_what_can_be_applied() -> None:
    assert {family.name: set(family.values) for family in FAMILIES} == {
        family: set(values) for family, values in APPLICABLE.items()
    }


def test_a_command_has_one_remedy_of_a_family_and_none_that_does_not_exist() -> None:
    finding = replace(
        FINDING, remedies=("initialization=orthogonal", "initialization=he", "initialization=xavier", "clipping=1.0")
    )
    assert command(finding, "train.py") == "desat run --apply initialization=he train.py"
    assert advice(finding) == "initialization=orthogonal, initialization=xavier, clipping=1.0"
    assert command(replace(FINDING, remedies=("initialization=orthogonal",)), "train.py") is None


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.00"), (0.9975, "0.99"), (0.118, "0.12"), (0.0096, "<0.01"), (0.0, "0.00")]
)
def test_a_health_is_not_rounded_to_its_ends(value: float, text: str) -> None:
    assert health(value) == text


def test_one_is_no_plural() -> None:
    assert [count(1, "step"), count(1290, "step"), count(2, "loss", "losses")] == ["1 step", "1,290 steps", "2 losses"]
