from pathlib import Path

import pytest

from desat.cure.remedy import parse_all
from desat.deck.page import remedy_meaning
from desat.deck.slide import Slide
from desat.deck.slides import SLIDES
from desat.deck.table import table_page
from desat.diagnose.rules import RULES

ROOT = Path(__file__).parents[2]
CODES = {rule.code for rule in RULES}


def test_numbers_and_keys_are_unique_and_in_order() -> None:
    assert [slide.number for slide in SLIDES] == sorted({slide.number for slide in SLIDES})
    assert len({slide.key for slide in SLIDES}) == len(SLIDES)


@pytest.mark.parametrize("slide", SLIDES, ids=lambda slide: slide.key)
def test_a_slide_names_rules_and_remedies_that_exist(slide: Slide) -> None:
    assert set(slide.rules) <= CODES
    for remedy in slide.remedies:
        assert parse_all([remedy])
        assert remedy_meaning(remedy)


@pytest.mark.parametrize("slide", SLIDES, ids=lambda slide: slide.key)
def test_each_slide_has_a_test_of_its_own(slide: Slide) -> None:
    module = slide.build.__module__.rpartition(".")[2]
    assert (ROOT / "tests" / "deck" / f"test_{module}.py").is_file()


def test_the_table_in_the_docs_is_what_the_slides_say() -> None:
    assert (ROOT / "docs" / "deck.md").read_text(encoding="utf-8") == table_page(SLIDES)


def test_the_table_s_links_lead_somewhere() -> None:
    findings = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    for slide in SLIDES:
        assert all(f"\n## {code}\n" in findings for code in slide.rules)
        assert (ROOT / "src" / f"{slide.build.__module__.replace('.', '/')}.py").is_file()
