"""What the rules name can be applied: a remedy is spelled in `diagnose`, which knows nothing of `cure`."""

import re
from pathlib import Path

import pytest

from desat.cure.candidates import GENERAL
from desat.cure.remedies import FAMILIES
from desat.cure.remedy import parse

RULES = Path(__file__).parents[2] / "src" / "desat" / "diagnose"
SPELLED = re.compile(rf'"((?:{"|".join(family.name for family in FAMILIES)})=[a-z0-9_.:-]+)"')
NAMED = sorted({found for path in RULES.rglob("*.py") for found in SPELLED.findall(path.read_text())})


def test_the_rules_name_remedies_of_most_families() -> None:
    assert {name.partition("=")[0] for name in NAMED} >= {
        "activation", "normalization", "initialization", "clipping", "optimizer", "attention", "input", "loss",
    }  # fmt: skip


@pytest.mark.parametrize("text", [*NAMED, *GENERAL])
def test_each_of_them_can_be_applied(text: str) -> None:
    assert parse(text).family == text.partition("=")[0]
