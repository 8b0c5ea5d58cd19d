from graphlib import TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.diagnose.finding import SEVERITIES, Finding, Severity
from desat.diagnose.folding import EXPLANATIONS, fold, order
from desat.diagnose.rules import RULES

CODES = [rule.code for rule in RULES]


def finding(code: str, severity: Severity = "error", first_step: int = 0, **evidence: float) -> Finding:
    return Finding(
        code, severity, None, (), None, first_step, 100, "its own cause", "Message.", evidence, (f"{code}=1",)
    )


def folded(*findings: Finding) -> dict[str, Finding]:
    return {finding.code: finding for finding in fold(findings)}


def test_what_an_error_explains_becomes_a_note_with_the_errors_remedies() -> None:
    found = folded(finding("saturated-activation"), finding("loss-plateau"))
    assert found["saturated-activation"] == finding("saturated-activation")
    assert found["loss-plateau"].severity == "note"
    assert found["loss-plateau"].cause == "a consequence of saturated-activation"
    assert found["loss-plateau"].remedies == ("saturated-activation=1",)


def test_a_warning_explains_no_error() -> None:
    assert (
        folded(finding("saturated-activation", "warning"), finding("loss-plateau"))["loss-plateau"].severity == "error"
    )


def test_what_began_after_the_effect_was_over_explains_nothing() -> None:
    assert folded(finding("saturated-activation", first_step=101), finding("loss-plateau"))["loss-plateau"].cause == (
        "its own cause"
    )


def test_dead_units_and_lost_gradient_are_one_disease_named_by_where_the_gradient_is_lost() -> None:
    in_units = folded(finding("dead-units"), finding("vanishing-gradient", nonlinearity_share=0.9))
    assert (in_units["dead-units"].severity, in_units["vanishing-gradient"].severity) == ("error", "note")
    in_weights = folded(finding("dead-units"), finding("vanishing-gradient", nonlinearity_share=0.3))
    assert (in_weights["dead-units"].severity, in_weights["vanishing-gradient"].severity) == ("note", "error")


def test_an_overflow_joins_the_explosion_before_it() -> None:
    (explosion,) = fold([finding("exploding-gradient", "warning", 10), finding("non-finite", first_step=20)])
    assert (explosion.code, explosion.severity) == ("exploding-gradient", "error")
    assert explosion.evidence["nonfinite_since"] == 20
    assert "overflowed at step 20" in explosion.message


def test_an_overflow_before_the_explosion_stays_by_itself() -> None:
    assert len(fold([finding("exploding-gradient", first_step=20), finding("non-finite", first_step=10)])) == 2
    assert len(fold([finding("exploding-gradient"), finding("non-finite", "note")])) == 2


def test_explanations_name_rules_and_none_explains_itself() -> None:
    assert {explanation.effect for explanation in EXPLANATIONS} <= set(CODES)
    assert {explanation.cause for explanation in EXPLANATIONS} <= set(CODES)
    assert all(explanation.effect != explanation.cause for explanation in EXPLANATIONS)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_of_any_errors_one_is_left_to_fix(share: float) -> None:
    """Of all sets of findings at once: where no chain leads back, each set has one that nothing in it explains."""
    findings = {code: finding(code, nonlinearity_share=share) for code in CODES}
    causes: dict[str, set[str]] = {code: set() for code in CODES}
    for explanation in EXPLANATIONS:
        if explanation.applies(findings[explanation.effect], findings[explanation.cause]):
            causes[explanation.effect].add(explanation.cause)
    assert len(list(TopologicalSorter(causes).static_order())) == len(CODES)


@given(st.lists(st.tuples(st.sampled_from([*CODES, "a-new-code"]), st.sampled_from(SEVERITIES))))
def test_the_gravest_come_first_and_then_what_to_fix_first(pairs: list[tuple[str, Severity]]) -> None:
    findings = order([finding(code, severity) for code, severity in pairs], CODES)
    ranks = [(SEVERITIES.index(each.severity), [*CODES, "a-new-code"].index(each.code)) for each in findings]
    assert ranks == sorted(ranks)
    assert len(findings) == len(pairs)
