import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.diagnose.finding import SEVERITIES, Diagnosis, Finding
from desat.diagnose.health import WEIGHTS, health, health_of_layers


def diagnosis(*findings: tuple[str, float, tuple[str, ...]]) -> Diagnosis:
    made = (
        Finding("x", severity, None, sites, None, 0, 0, "", "", confidence=sure) for severity, sure, sites in findings
    )  # type: ignore[arg-type]
    return Diagnosis("run", 1, 1, 0.0, tuple(made))


def test_a_run_without_a_finding_is_healthy() -> None:
    assert health(diagnosis()) == 1.0


@given(st.lists(st.tuples(st.sampled_from(SEVERITIES), st.floats(0, 1), st.just(("a",))), max_size=8))
def test_health_is_a_share_and_falls_with_each_finding(findings: list) -> None:
    values = [health(diagnosis(*findings[:number])) for number in range(len(findings) + 1)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values == sorted(values, reverse=True)


def test_all_codes_as_notes_look_better_than_one_error() -> None:
    assert health(diagnosis(*[("note", 1.0, ())] * 26)) > health(diagnosis(("error", 1.0, ())))


def test_a_layer_has_the_findings_of_its_own_sites_and_parameters() -> None:
    found = diagnosis(("error", 1.0, ("net.1", "net.2.weight")), ("note", 1.0, ("net.10",)))
    layers = health_of_layers(found, ["net.1", "net.2", "net.10", "net.3"])
    assert layers == pytest.approx(
        {"net.1": 1 - WEIGHTS["error"], "net.2": 1 - WEIGHTS["error"], "net.10": 1 - WEIGHTS["note"], "net.3": 1.0}
    )
