"""The table of right causes against the words of the rules, read from their sources."""

import ast
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.zoo import causes
from benchmarks.zoo.catalogue import FAULTS
from benchmarks.zoo.causes import CAUSES, UNTOLD, Claim, cause_is_right

from desat.diagnose import rules
from desat.diagnose.finding import Finding

RULES = Path(rules.__file__).parent
FAULTS_BY_KEY = {fault.key: fault for fault in FAULTS}
CLAIMS: dict[str, Claim] = {
    name: value
    for name, value in vars(causes).items()
    if name.isupper() and name not in ("CAUSES", "UNTOLD", "FROM_START")
}
FILLED = {"share": ("weight", "nonlinearity"), "dtype": ("float16", "bfloat16"), "came": ("since initialization",),
          "when": ("since initialization",)}  # fmt: skip
"""What stands in the gaps of the rules' phrases, where that makes a difference."""
SHARED = ("scale", "onset", "old_gradients", "recurrent_layer")
"""Modules with phrases that several rules say; each is asked for by those that import it."""


def description(key: str) -> dict[str, Any]:
    fault = FAULTS_BY_KEY[key]
    return {"code": fault.code, "cause": fault.cause, "also": list(fault.also), "starts": fault.starts}


def finding(code: str, cause: str) -> Finding:
    return Finding(code, "error", None, (), None, 0, 10, cause, "")


def is_right(key: str, code: str, cause: str) -> bool:
    return cause_is_right(finding(code, cause), description(key))


@functools.cache
def strings_of(code: str) -> tuple[str, ...]:
    """Every string in the source of a code's rule, and of the shared modules that it imports, its gaps filled."""
    source = (RULES / f"{code.replace('-', '_')}.py").read_text(encoding="utf-8")
    shared = [name for name in SHARED if f"from desat.diagnose.{name} import" in source]
    sources = [source, *((RULES.parent / f"{name}.py").read_text(encoding="utf-8") for name in shared)]
    return tuple(text for one in sources for node in ast.walk(ast.parse(one)) for text in _texts(node))


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        yield from map("".join, itertools.product(*map(_filled, node.values)))


def _filled(part: ast.expr) -> tuple[str, ...]:
    if isinstance(part, ast.Constant):
        return (str(part.value),)
    assert isinstance(part, ast.FormattedValue)
    return FILLED.get(part.value.id, ("7",)) if isinstance(part.value, ast.Name) else ("7",)


def said_by(claim: Claim, code: str) -> list[str]:
    """The strings in a rule's source that make this claim."""
    return [text for text in strings_of(code) if code in claim and claim[code].search(text)]


def right_codes(key: str) -> tuple[str, ...]:
    return (FAULTS_BY_KEY[key].code, *FAULTS_BY_KEY[key].also)


def test_every_cause_of_the_catalogue_has_an_entry() -> None:
    assert CAUSES.keys() | UNTOLD.keys() == FAULTS_BY_KEY.keys()
    assert not CAUSES.keys() & UNTOLD.keys()


@pytest.mark.parametrize("name", CLAIMS)
def test_the_words_of_a_claim_are_in_the_sources_of_the_rules(name: str) -> None:
    for code, phrase in CLAIMS[name].items():
        assert said_by(CLAIMS[name], code), f"{code} no longer says {phrase.pattern!r}"


@pytest.mark.parametrize("key", CAUSES)
def test_an_entry_accepts_what_a_rule_says(key: str) -> None:
    accepted = [text for code in right_codes(key) for text in strings_of(code) if is_right(key, code, text)]
    assert accepted


@pytest.mark.parametrize("key", CAUSES)
def test_an_entry_rejects_what_is_said_of_other_causes(key: str) -> None:
    for code in right_codes(key):
        for claim in CLAIMS.values():
            if claim not in CAUSES[key]:
                assert not [text for text in said_by(claim, code) if is_right(key, code, text)]


@pytest.mark.parametrize(("key", "words"), UNTOLD.items())
def test_what_is_said_instead_of_an_untold_cause_is_still_said_and_not_right(key: str, words: str | None) -> None:
    code = FAULTS_BY_KEY[key].code
    said = [text for text in strings_of(code) if words is not None and words in text]
    assert said or words is None, f"{code} speaks otherwise now: does it tell {key}?"
    assert not any(is_right(key, code, text) for text in strings_of(code))


@pytest.mark.parametrize(
    ("key", "code", "cause"),
    [
        ("exploding-signal.weight-scale", "exploding-signal", "the weights were drawn too large: each layer"),
        ("exploding-gradient.large-weights", "exploding-gradient",
         "gains above one multiply over the layers (weight: 90% of the growth)"),
        ("update-too-small.learning-rate", "update-too-small", "the learning rate is too small: 1e-06, about 0.001"),
        ("clipping-dominates.max-norm", "clipping-dominates", "the limit of the clipping, 0.001, is too low: the"),
        ("degenerate-optimizer.adam-epsilon", "degenerate-optimizer", "epsilon, about 1, is too large for these"),
        ("sharp-curvature.learning-rate", "sharp-curvature",
         "the learning rate is too large for the curvature of the loss from the start"),
        ("loss-diverging.learning-rate-jump", "sharp-curvature",
         "the learning rate 0.5 is too large for the loss's curvature since step 199: below 0.04 is stable"),
        ("dead-units.learning-rate-spike", "dead-units", "killed by step 162: an update of 310% of the weights"),
        ("low-precision-range.bfloat16-updates", "low-precision-range",
         "the steps are smaller than what bfloat16 tells from nothing, about 0.4 % of a weight"),
        ("saturated-activation.bias", "saturated-activation",
         "pre-activations are shifted to a mean of 4 since initialization: the bias of net.0 is too large, its rms is"),
        ("saturated-activation.learning-rate-jump", "loss-diverging",
         "it rises since step 198: the learning rate jumped from 0.03 to 0.9 at step 195"),
        ("dead-units.bias", "dead-units",
         "biases hold every pre-activation below zero since initialization: their rms is 2, near 0 is usual"),
        ("saturated-output.output-scale", "saturated-output",
         "the logits are too large from initialization on: the last layer's weights are too large, their gain is 12"),
        ("collapsed-attention.missing-scale", "collapsed-attention",
         "its logits are as large as 280 from the start: they are not divided by the root of the head's width, as"),
        ("non-finite.bad-row", "non-finite", "the data holds nan or infinity: 0.016 of input at step 16"),
        ("loss-plateau.label-order", "loss-plateau", "the labels carry nothing that the inputs tell: the loss stays"),
        ("collapsed-rank.identical-features", "collapsed-rank",
         "the features that go into output are copies of one another: output gets one direction"),
        ("collapsed-rank.bottleneck", "collapsed-rank", "a layer of 1 unit is narrower than what it has to pass on"),
    ],
)  # fmt: skip
def test_right(key: str, code: str, cause: str) -> None:
    assert is_right(key, code, cause)


@pytest.mark.parametrize(
    ("key", "code", "cause"),
    [
        # The symptom again, and nothing of what was spoiled.
        ("saturated-activation.learning-rate-jump", "saturated-activation",
         "pre-activations are too large (rms 9, about 1 is sound) since step 210, not before: updates drove the"),
        ("dead-units.learning-rate-spike", "dead-units", "units died by step 162: updates pushed every"),
        # A choice between two faults of the catalogue.
        ("saturated-activation.weight-scale", "saturated-activation",
         "pre-activations are too large (rms 9, about 1 is sound) since initialization: weights or inputs are scaled"),
        ("update-too-small.learning-rate", "update-too-small", "the learning rate or the gradient is too small"),
        # The finding is right, but it does not name the learning rate.
        ("update-too-small.learning-rate", "loss-plateau", "the optimizer's steps are too small: they change the"),
        ("update-too-large.learning-rate", "dead-units", "killed by step 3: an update of 310% of the weights"),
        ("collapsed-attention.missing-scale", "collapsed-attention",
         "its logits are as large as 280 from the start: the division by the root of the head's width is missing, or"),
        ("dead-units.bias", "dead-units",
         "biases hold every pre-activation below zero since step 9: their rms is 2, near 0 is usual"),
        # Another cause, or the other direction.
        ("saturated-activation.bias", "saturated-activation",
         "pre-activations are too large since initialization: the weights of net.0 are too large, their gain is 4"),
        ("saturated-output.output-scale", "saturated-output",
         "the logits are too large from initialization on: the weights of net.0 are too large, their gain is 4"),
        ("exploding-signal.input-scale", "exploding-signal", "the weights were drawn too large: each layer"),
        ("vanishing-signal.input-scale", "unscaled-input", "inputs are 200 in size where about 1 is sound: they were "
         "not scaled"),
        ("low-precision-range.float16-parameters", "low-precision-range",
         "the steps are smaller than what bfloat16 tells from nothing, about 0.4 % of a weight"),
        ("exploding-gradient.large-weights", "exploding-gradient",
         "gains above one multiply over the layers (nonlinearity: 90% of the growth)"),
        # What came at a jump was not there from the start.
        ("loss-diverging.learning-rate-jump", "sharp-curvature",
         "the learning rate 0.5 is too large for the loss's curvature from the start: below 0.04 is stable"),
        # A right phrase of a code that is not right here.
        ("exploding-signal.input-scale", "update-too-large", "the learning rate is too large for these weights"),
        ("clipping-dominates.max-norm", "degenerate-optimizer", "a consequence of clipping-dominates"),
    ],
)  # fmt: skip
def test_not_right(key: str, code: str, cause: str) -> None:
    assert not is_right(key, code, cause)


def test_nothing_is_right_of_a_healthy_case() -> None:
    healthy = {"code": None, "cause": None, "also": [], "starts": None}
    assert not cause_is_right(finding("update-too-small", "the learning rate is too small: 1e-06"), healthy)
