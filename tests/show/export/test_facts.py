from pathlib import Path

from desat.diagnose.engine import diagnose
from desat.record.process import identity
from desat.show.export.facts import facts_of
from tests.records import deep_network, write_record


def test_facts_are_plain_words_and_numbers_without_those_of_the_machine(tmp_path: Path) -> None:
    told = identity() | {
        "script": "tr\x1bain.py", "arguments": ["--lr", 0.1], "asked": [], "edits": [{"file": "secret"}],
        "is_module": False, "budget": 0.01, "every": None, "width": float("nan"), "steps": 91, "overhead": 0.02,
    }  # fmt: skip
    sick = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    with write_record(tmp_path / "run", sick, **told) as record:
        facts = facts_of(record)
        diagnosis = diagnose(record)
    assert facts.settings() == {
        "run": "run", "script": "tr\N{REPLACEMENT CHARACTER}ain.py", "arguments": "--lr 0.1", "asked": "",
        "is_module": False, "budget": 0.01, "width": "nan",
    }  # fmt: skip
    results = facts.results()
    assert (results["status"], results["steps"], results["overhead"]) == ("finished", 91, 0.02)
    assert (results["verdict"], results["findings"]) == ("error", ", ".join(diagnosis.codes("error", "warning")))


def test_a_run_in_which_nothing_was_measured_has_no_verdict(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", []) as record:
        assert "verdict" not in facts_of(record).results()
