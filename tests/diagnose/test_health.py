from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.diagnose.finding import SEVERITIES, Diagnosis, Finding
from desat.diagnose.health import WEIGHTS, findings_of_layers, health, health_of_layers, layers_of
from desat.record.rows import Site
from tests.records import write_record


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


def test_a_finding_counts_for_the_innermost_layer_and_once() -> None:
    found = diagnosis(("error", 1.0, ("encoder.0.weight", "encoder.0.bias", "encoder.0")), ("note", 1.0, ("nowhere",)))
    layers = findings_of_layers(found, ["encoder", "encoder.0"])
    assert layers == {"encoder": (), "encoder.0": found.findings[:1]}


def test_layers_are_what_runs_or_has_parameters(tmp_path: Path) -> None:
    sites = [
        Site(0, "input", "input", "float32", None, -1, None),
        Site(1, "rnn", "module", "LSTM", None, 2, None),
        Site(2, "rnn.l0.forget", "gate", "LSTM gate", None, 3, None),
        Site(3, "rnn.weight_hh_l0", "parameter", "LSTM", None, 2, None),
        Site(4, "train.py:37 torch.tanh after rnn", "nonlinearity", "torch.tanh", "train.py:37", 4, None),
        Site(5, "unused.0.weight", "parameter", "Linear", None, 9, None),
        Site(6, "unused.0.bias", "parameter", "Linear", None, 9, None),
        Site(7, "scale", "parameter", "Net", None, 9, None),
        Site(8, "block.attention", "attention", "softmax", None, 5, None),
        Site(9, "loss", "loss", "MseLoss", None, 10, None),
        Site(10, "optimizer", "optimizer", "Adam", None, 11, None),
    ]
    with write_record(tmp_path / "run", sites) as record:
        assert layers_of(record) == (
            "rnn", "train.py:37 torch.tanh after rnn", "block.attention", "unused.0", "scale",
        )  # fmt: skip
