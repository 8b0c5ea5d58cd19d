import json
from pathlib import Path

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import SEVERITIES, Diagnosis, Finding
from desat.errors import DesatError
from desat.record.rows import Row
from tests.records import deep_network, write_record


def flat(step: int) -> float:
    return 2.3 + 0.001 * (step % 3)


def findings(directory: Path, rows: list[Row]) -> dict[str, Finding]:
    return {finding.code: finding for finding in diagnose(write_record(directory / "run", rows)).findings}


def test_a_sick_deep_network_has_one_error_and_its_consequence_is_a_note(tmp_path: Path) -> None:
    found = findings(tmp_path, deep_network(layers=10, steps=range(0, 300, 10), layer_gain=0.2, loss=flat))
    assert found["vanishing-gradient"].severity == "error"
    assert found["loss-plateau"].severity == "note"
    assert "vanishing-gradient" in found["loss-plateau"].cause


def test_a_healthy_network_gets_no_finding_above_a_note(tmp_path: Path) -> None:
    diagnosis = diagnose(write_record(tmp_path / "run", deep_network(operation="ReLU", saturated_low=0.5)))
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize(
    ("code", "sick"),
    [
        ("vanishing-gradient", {"layers": 10, "layer_gain": 0.2}),
        ("exploding-gradient", {"layers": 10, "layer_gain": 5.0, "operation": "ReLU"}),
        ("saturated-activation", {"saturated_high": 0.5, "saturated_low": 0.3}),
        ("dead-units", {"operation": "ReLU", "dead_units": 60}),
    ],
)
def test_a_symptom_is_an_error_with_harm_only(tmp_path: Path, code: str, sick: dict) -> None:
    harmed = findings(tmp_path / "harmed", deep_network(steps=range(0, 300, 10), loss=flat, **sick))
    assert harmed[code].severity == "error", harmed
    assert 0 < harmed[code].confidence <= 1
    assert harmed[code].evidence
    assert harmed[code].remedies
    assert harmed[code].first_step == 0
    learning = findings(tmp_path / "learning", deep_network(steps=range(0, 300, 10), **sick))
    assert code not in learning or learning[code].severity != "error"


def test_where_the_loss_is_unknown_a_symptom_is_no_healthy_sign(tmp_path: Path) -> None:
    found = findings(tmp_path, deep_network(layers=10, layer_gain=0.2, loss=lambda step: None))
    assert found["vanishing-gradient"].severity in ("error", "warning")


def test_overflow_is_one_finding_with_the_first_place(tmp_path: Path) -> None:
    rows = deep_network(layers=3, nonfinite_from=50, loss=lambda step: 2.3 if step < 50 else None)
    found = findings(tmp_path, rows)
    assert found["non-finite"].severity == "error"
    assert found["non-finite"].first_step == 50
    assert found["non-finite"].site == "net.0"


def test_an_explosion_that_ends_in_overflow_is_one_error(tmp_path: Path) -> None:
    rows = deep_network(
        layers=8, operation="ReLU", layer_gain=5.0, nonfinite_from=20, loss=lambda step: 9.0 if step < 20 else None
    )
    diagnosis = diagnose(write_record(tmp_path / "run", rows))
    assert [finding.code for finding in diagnosis.findings if finding.severity == "error"] == ["exploding-gradient"]
    assert diagnosis.findings[0].evidence["nonfinite_since"] == 20


def test_an_overhead_that_is_no_number_counts_as_none(tmp_path: Path) -> None:
    for place, overhead in enumerate([None, "much", float("nan")]):
        record = write_record(tmp_path / str(place), deep_network(), overhead=overhead)
        assert diagnose(record).overhead == 0.0


def test_a_flat_loss_in_a_sound_network_is_a_plateau(tmp_path: Path) -> None:
    found = findings(tmp_path, deep_network(operation="ReLU", steps=range(0, 300, 10), loss=flat))
    assert found["loss-plateau"].severity == "error"


@pytest.mark.parametrize(
    "rows",
    [
        deep_network(layers=1, steps=[0], layer_gain=0.2),
        deep_network(layers=6, steps=[0], layer_gain=0.2, saturated_high=0.9),
        deep_network(layers=3, nonfinite_from=0, loss=lambda step: None),
        deep_network(layers=2, steps=[]),
    ],
    ids=["one layer", "one sample", "nothing finite", "no sample"],
)
def test_poor_records_are_diagnosed_without_a_crash(tmp_path: Path, rows: list[Row]) -> None:
    document = diagnose(write_record(tmp_path / "run", rows)).to_json()
    json.dumps(document, allow_nan=False)


def test_few_samples_lower_the_confidence(tmp_path: Path) -> None:
    few = findings(tmp_path / "few", deep_network(layers=10, steps=[0], layer_gain=0.2))
    many = findings(tmp_path / "many", deep_network(layers=10, steps=range(40), layer_gain=0.2))
    assert few["vanishing-gradient"].confidence < many["vanishing-gradient"].confidence


def test_an_empty_record_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DesatError, match="nothing was measured"):
        diagnose(write_record(tmp_path / "run", []))


def test_the_document_is_the_public_contract(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=10, layer_gain=0.2, loss=flat))
    document = json.loads(json.dumps(diagnose(record).to_json(), allow_nan=False))
    assert list(document) == ["schema", "run", "verdict", "steps", "sampled_steps", "overhead", "findings"]
    assert document["schema"] == 1
    assert document["run"] == "run"
    assert (document["steps"], document["sampled_steps"], document["overhead"]) == (91, 10, 0.01)
    assert list(document["findings"][0]) == [
        "code", "severity", "site", "sites", "source", "first_step", "last_step", "cause", "message", "evidence",
        "remedies", "confidence",
    ]  # fmt: skip


@pytest.mark.parametrize("gravest", [*SEVERITIES, None])
def test_verdict_and_exit_follow_the_gravest_finding(gravest) -> None:
    found = () if gravest is None else (Finding("x", gravest, None, (), None, 0, 1, "", "", {"n": float("nan")}),)
    diagnosis = Diagnosis("run", 1, 1, 0.0, found)
    assert diagnosis.verdict == ("healthy" if gravest in ("note", None) else gravest)
    reached = [diagnosis.reaches(level) for level in SEVERITIES]
    assert reached == [gravest is not None and SEVERITIES.index(gravest) <= index for index in range(3)]
    assert all(finding["evidence"]["n"] is None for finding in diagnosis.to_json()["findings"])
