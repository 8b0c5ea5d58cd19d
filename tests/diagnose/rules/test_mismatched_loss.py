from dataclasses import replace
from pathlib import Path

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.mismatched_loss import MISMATCHED_LOSS
from desat.record.rows import Row, Site
from tests.diagnose.rules.cases import HALF_WAY, HARMED, LEARNED, SAMPLES, UNKNOWN, examine
from tests.records import deep_network

TWICE = "NllLoss <- LogSoftmax <- Mul <- Softmax <- Addmm"
SLOWLY = replace(HALF_WAY, end=1.9, fall=0.2)


def network(*chains: str, layers: int = 2) -> list[Row]:
    rows = deep_network(layers=layers, steps=SAMPLES)
    return rows + [
        Site(90 + n, f"loss {n}", "loss", chain, "train.py:9", 90 + n, None) for n, chain in enumerate(chains)
    ]


@pytest.mark.parametrize(
    ("chain", "cause"),
    [
        (TWICE, "a softmax is applied before the cross entropy"),
        ("LogSoftmax <- Softmax <- Addmm", "a softmax is applied before the cross entropy"),
        ("NllLoss2D <- LogSoftmax <- Sigmoid <- Convolution", "a sigmoid is applied before the cross entropy"),
        ("BinaryCrossEntropyWithLogits <- Sigmoid <- Addmm", "before a loss that applies a sigmoid itself"),
        ("NllLoss <- Addmm", "plain output of a layer"),
        ("NllLoss <- Softmax <- Addmm", "nll_loss is given probabilities"),
        ("NllLoss <- Relu <- Addmm", "output of a nonlinearity"),
        ("NllLoss <- LogSoftmax <- Relu <- Addmm", "a rectifier is applied to the logits"),
        ("BinaryCrossEntropy <- Softmax <- Addmm", "softmax over classes"),
        ("MseLoss <- Softmax <- Addmm", "squared error"),
        ("Pow <- Sub <- Softmax <- Addmm", "squared error"),
    ],
)
def test_a_mismatch_with_harm_is_an_error_that_names_it(tmp_path: Path, chain: str, cause: str) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network(chain))
    assert found is not None
    assert found.severity == "error"
    assert cause in found.cause
    assert (found.site, found.sites, found.source) == ("net.3", ("net.3", "loss 0"), "train.py:9")
    assert (found.first_step, found.last_step) == (0, 290)


@pytest.mark.parametrize(
    "chain",
    [
        "NllLoss <- LogSoftmax <- Addmm",
        "BinaryCrossEntropyWithLogits <- Addmm",
        "BinaryCrossEntropy <- Sigmoid <- Addmm",
        "MseLoss <- Sigmoid <- Addmm",
        "NllLoss <- LogSoftmax <- Mul <- Tanh <- Div <- Addmm",  # logits with a soft cap
        "NllLoss <- LogSoftmax <- Sum <- Mul",
        "NllLoss <- Log <- Clamp <- Addmm",
        "NllLoss <- FusedCrossEntropy",
        "LogSoftmax <- Relu6Custom <- Addmm",
        "Addmm",
    ],
)
def test_sound_losses_are_left_alone(tmp_path: Path, chain: str) -> None:
    assert examine(MISMATCHED_LOSS, tmp_path, network(chain)) is None


@pytest.mark.parametrize(
    ("learning", "severity"), [(LEARNED, "warning"), (HALF_WAY, "error"), (SLOWLY, "error"), (UNKNOWN, "warning")]
)
def test_without_harm_it_is_an_error_while_the_loss_has_some_way_to_go(
    tmp_path: Path, learning: Learning, severity: str
) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network(TWICE), learning)
    assert found is not None
    assert found.severity == severity
    assert found.confidence > 0.95


def test_a_likelihood_without_end_is_an_error_however_far_it_falls(tmp_path: Path) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network("NllLoss <- Addmm"), replace(LEARNED, end=-4e5))
    assert found is not None
    assert found.severity == "error"


@pytest.mark.parametrize(("learning", "severity"), [(LEARNED, "note"), (SLOWLY, "warning"), (HARMED, "error")])
def test_what_can_be_meant_is_a_note_in_a_network_that_learns(
    tmp_path: Path, learning: Learning, severity: str
) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network("MseLoss <- Softmax <- Addmm"), learning)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize("chain", ["Log <- Softmax <- Addmm", "Log <- Sum <- Exp <- Mul <- Addmm"])
def test_a_logarithm_by_hand_is_to_blame_for_an_overflow_alone(tmp_path: Path, chain: str) -> None:
    harmed = examine(MISMATCHED_LOSS, tmp_path / "harmed", network(chain), HARMED)
    overflown = examine(MISMATCHED_LOSS, tmp_path / "overflown", network(chain), replace(HARMED, state="non-finite"))
    assert harmed is not None
    assert overflown is not None
    assert (harmed.severity, overflown.severity) == ("note", "error")


def test_the_same_twice_is_idle_and_no_harm(tmp_path: Path) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network("NllLoss <- LogSoftmax <- LogSoftmax <- Addmm"))
    assert found is not None
    assert found.severity == "note"


def test_of_several_terms_the_gravest_counts(tmp_path: Path) -> None:
    found = examine(
        MISMATCHED_LOSS, tmp_path, network("MseLoss <- Softmax <- Addmm", TWICE, "NllLoss <- LogSoftmax <- Addmm")
    )
    assert found is not None
    assert found.sites[-1] == "loss 1"


def test_one_sample_of_one_layer_is_enough_and_none_is_not(tmp_path: Path) -> None:
    rows = [*deep_network(layers=1, steps=[0]), Site(90, "loss", "loss", TWICE, None, 90, None)]
    assert examine(MISMATCHED_LOSS, tmp_path / "one", rows, UNKNOWN) is not None
    assert examine(MISMATCHED_LOSS, tmp_path / "none", [Site(90, "loss", "loss", TWICE, None, 90, None)]) is None


def test_numbers_that_are_not_finite_do_not_hide_it(tmp_path: Path) -> None:
    rows = deep_network(layers=1, steps=SAMPLES, nonfinite_from=0, loss=lambda step: None)
    learning = Learning("non-finite", nonfinite_since=0)
    found = examine(MISMATCHED_LOSS, tmp_path, [*rows, Site(90, "loss", "loss", TWICE, None, 90, None)], learning)
    assert found is not None
    assert found.severity == "error"
    assert "loss_end" not in found.evidence


@pytest.mark.parametrize(
    "chain", ["NllLoss <- Addmm", "NllLoss <- Softmax <- Addmm", "NllLoss2D <- Sigmoid <- Convolution"]
)
def test_a_likelihood_of_no_logarithms_names_its_remedy(tmp_path: Path, chain: str) -> None:
    found = examine(MISMATCHED_LOSS, tmp_path, network(chain))
    assert found is not None
    assert found.remedies == ("loss=log-probabilities",)
