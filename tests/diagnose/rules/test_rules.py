import re

from desat.diagnose.rules import RULES, all_thresholds


def test_every_rule_has_its_own_code_and_thresholds_with_a_source() -> None:
    assert len({rule.code for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.code)
        assert rule.thresholds
        for threshold in rule.thresholds:
            assert threshold.unit
            assert threshold.meaning
            assert threshold.source


def test_a_key_names_one_threshold() -> None:
    named = {threshold for rule in RULES for threshold in rule.thresholds}
    assert len({threshold.key for threshold in named}) == len(named)
    assert {threshold.key for threshold in named} <= set(all_thresholds())


def test_every_rule_explains_itself_in_sentences() -> None:
    for rule in RULES:
        for text in (rule.meaning, rule.measured, rule.helps):
            assert text.endswith(".")
            assert "  " not in text
