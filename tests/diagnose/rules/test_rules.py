import re

from desat.diagnose.rules import RULES


def test_every_rule_has_its_own_code_and_thresholds_with_a_source() -> None:
    assert len({rule.code for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.code)
        assert rule.thresholds
        for threshold in rule.thresholds:
            assert threshold.unit
            assert threshold.meaning
            assert threshold.source
