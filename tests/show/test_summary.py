import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.rules import RULES
from desat.record.rows import Reading, Row, Site
from desat.show.summary import summarize
from tests.records import deep_network, write_record

FINDING = Finding("dead-units", "error", "net.3", ("net.3",), None, 1234, 2000, "killed by an update", "38 units.")
HOSTILE = "</script><b>`x`\x1b[2J\n[red]"


def flat(step: int) -> float:
    return 2.3 + 0.001 * (step % 3)


def told(directory: Path, rows: list[Row], diagnosis: Diagnosis | None = None) -> tuple[str, str, str]:
    with write_record(directory / "run", rows) as record:
        return summarize(record, diagnosis or diagnose(record))


def of(*findings: Finding) -> Diagnosis:
    return Diagnosis("run", 100, 20, 0.01, findings)


def test_a_sick_network_is_told_with_its_place_its_reason_and_what_to_type(tmp_path: Path) -> None:
    learns, wrong, first = told(tmp_path, deep_network(layers=12, layer_gain=0.2, loss=flat))
    assert learns == "The network does not learn: its loss stayed at 2.301 in 91 steps."
    assert wrong.startswith("The only problem is at layer net.23 (Sigmoid) and 12 more, since step 0: so much of the")
    assert "; why: the slope of the nonlinearities shrinks it" in wrong
    assert "vanishing-gradient" not in wrong
    assert "`desat run --apply activation=relu --apply initialization=he train.py`" in first
    assert "tries the changes" in first


def test_a_healthy_network_is_left_alone(tmp_path: Path) -> None:
    learns, wrong, first = told(tmp_path, deep_network(operation="ReLU"))
    assert learns == "The network learns: its loss fell from 2.164 to 0.1781 in 91 steps."
    assert wrong == "Nothing wrong was found in what was measured."
    assert first == "Nothing needs to be done."


@pytest.mark.parametrize(("notes", "words"), [(1, "1 small thing was noted"), (2, "2 small things were noted")])
def test_notes_are_no_problems(tmp_path: Path, notes: int, words: str) -> None:
    noted = of(*[replace(FINDING, severity="note")] * notes)
    _, wrong, first = told(tmp_path, deep_network(operation="ReLU"), noted)
    assert words in wrong
    assert first == "Nothing needs to be done."


@pytest.mark.parametrize(
    ("steps", "loss", "words"),
    [
        (
            100,
            lambda step: 2.3 - 0.01 * step if step < 50 else math.inf,
            "its loss went from 2.28 to 1.84, then became nan or infinite at step 50.",
        ),
        (100, lambda step: 2.3 if step < 2 else math.inf, "its loss became nan or infinite at step 2."),
        (100, lambda step: None, "cannot be told: no loss was recorded."),
        (0, lambda step: 2.3, "too early to tell whether the network learns: only 1 loss was recorded."),
        (2, lambda step: 2.3, "only 3 losses were recorded."),
        (
            20,
            lambda step: 2.3 * 0.99**step,
            "too early to tell whether the network learns: its loss went from 2.254 to",
        ),
        (1000, lambda step: 2.3 - 1e-4 * step, "learns, but slowly: its loss fell from 2.3 to 2.207 in 1,001 steps."),
        (300, lambda step: 0.9 + 2.0 * 0.7**step + 0.001 * (step % 3), "may be done: its loss fell from"),
        (300, lambda step: 2.0 + 0.5 * 0.7**step + 0.001 * (step % 3), "has stopped learning: its loss went from"),
        (100, lambda step: 1.0 + 0.05 * step, "gets worse instead of better: its loss rose from 1.1 to"),
    ],
    ids=["nan", "nan at once", "none", "one", "three", "short", "slow", "settled", "stopped", "diverging"],
)
def test_the_first_sentence_is_of_the_loss(
    tmp_path: Path, steps: int, loss: Callable[[int], float | None], words: str
) -> None:
    rows = deep_network(operation="ReLU", steps=sorted({0, steps // 2, steps}), loss=loss)
    assert re.search(words, told(tmp_path, rows)[0])


def test_a_loss_above_that_of_guessing_is_no_learning(tmp_path: Path) -> None:
    loss = Site(90, "loss", "loss", "NllLoss <- LogSoftmax", None, 90, None)
    rows = [
        *deep_network(operation="ReLU", loss=lambda step: 4.0 - 0.01 * step),
        loss,
        Reading(90, "guessing", 0, 2.303),
    ]
    learns = told(tmp_path, rows)[0]
    assert "no better than guessing: its loss went from 3.98 to 3.16" in learns
    assert learns.endswith("in 91 steps, where guessing costs 2.303.")


def test_a_run_that_is_too_short_is_to_be_trained_on(tmp_path: Path) -> None:
    rows = deep_network(operation="ReLU", steps=range(20))
    assert told(tmp_path, rows)[2] == "Nothing needs to be done yet: train for 50 steps or more, and ask again."


def test_a_harm_that_nothing_explains_is_not_called_well(tmp_path: Path) -> None:
    first = told(tmp_path, deep_network(operation="ReLU", loss=flat), of())[2]
    assert first.startswith("Nothing that was measured explains it: look at the learning rate")


def test_of_several_problems_the_first_is_told(tmp_path: Path) -> None:
    _, wrong, _ = told(tmp_path, deep_network(), of(FINDING, replace(FINDING, site="net.5"), FINDING))
    assert wrong.startswith(
        "The first of 3 problems is at layer net.3 (Sigmoid), since step 1,234: rectifier units are"
    )


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (None, "concerns the whole run, since"),
        ("input", "is at the input, since"),
        ("net.2.weight", "is at parameter net.2.weight (Linear) and 1 more, since"),
        ("train.py:37 torch.tanh", "is at train.py:37 torch.tanh and 1 more, since"),
    ],
)
def test_each_kind_of_place_is_named(tmp_path: Path, site: str | None, words: str) -> None:
    rows = [
        *deep_network(),
        Site(90, "input", "input", "float32", "train.py:36", -1, None),
        Site(91, "train.py:37 torch.tanh", "nonlinearity", "torch.tanh", "train.py:37", 91, None),
    ]
    sites = () if site is None else (site, "net.1")
    assert words in told(tmp_path, rows, of(replace(FINDING, site=site, sites=sites)))[1]


@pytest.mark.parametrize(
    ("remedies", "words"),
    [
        (("initialization=he",), "--apply initialization=he train.py` first; it tries the change and"),
        (
            ("clipping=1.0", "optimizer=adam"),
            "--apply clipping=1.0 --apply optimizer=adam train.py` first; it tries the",
        ),
        (("more data",), "First change the script by this: more data."),
        (("more data", "less noise"), "First change the script by one of these: more data, less noise."),
        ((), "What helps: an activation with a slope on both sides"),
    ],
)
def test_what_to_do_first_is_what_can_be_typed_else_advice(
    tmp_path: Path, remedies: tuple[str, ...], words: str
) -> None:
    assert words in told(tmp_path, deep_network(), of(replace(FINDING, remedies=remedies)))[2]


def test_a_code_without_a_rule_is_told_all_the_same(tmp_path: Path) -> None:
    _, wrong, first = told(tmp_path, deep_network(), of(replace(FINDING, code="lost-marbles")))
    assert ": lost marbles; why:" in wrong
    assert first


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_makes_sentences(tmp_path: Path, rule) -> None:
    sentences = told(tmp_path, deep_network(), of(replace(FINDING, code=rule.code)))
    assert all(re.fullmatch(r"[A-Z][^\n]*[^ .]\.", sentence) for sentence in sentences)
    assert rule.code not in sentences[1]


def test_text_of_a_record_cannot_command_a_terminal(tmp_path: Path) -> None:
    rows = [row._replace(name=HOSTILE) if isinstance(row, Site) and row.id == 1 else row for row in deep_network()]
    found = of(replace(FINDING, site=HOSTILE, sites=(HOSTILE,), cause=HOSTILE, remedies=("activation=relu", HOSTILE)))
    with write_record(tmp_path / "run", rows, script=HOSTILE) as record:
        sentences = summarize(record, found)
    assert "</script><b>" in sentences[1]
    assert all(sentence.isprintable() for sentence in sentences)
