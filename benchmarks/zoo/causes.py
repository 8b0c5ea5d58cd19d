"""Which cause a finding may give for each fault of the catalogue: whether it lays the blame where the fault is.

A phrase is right where it names what was spoiled. It is not where the rule would say the same of another fault: since
it only tells the symptom again (what changed after the start, updates changed), or leaves a choice between what was
spoiled and what another fault of the catalogue spoils (weights or inputs).
"""

import re
from collections.abc import Mapping
from typing import Any

from desat.diagnose.finding import Finding

FROM_START = re.compile(r"from the start|initialization")
"""What no cause that came at a jump can be said to be."""


Claim = Mapping[str, re.Pattern[str]]
"""What a phrase lays the blame on: by finding code the words that its rule says that with."""


def _claim(**phrases: str) -> Claim:
    """By code, with underscores for hyphens."""
    return {code.replace("_", "-"): re.compile(phrase) for code, phrase in phrases.items()}


LARGE_WEIGHTS = _claim(
    exploding_signal=r"^the weights were drawn too large",
    exploding_gradient=r"^gains above one multiply over the layers \(weight:|^the weights of \S+ are too large",
    saturated_activation=r"the weights of \S+ are too large, their gain",
    saturated_output=r"the weights of \S+ are too large, their gain",
)
SMALL_WEIGHTS = _claim(
    vanishing_signal=r"^the weights were drawn too small",
    vanishing_gradient=r"^the weights are too small to carry it",
)
FLAT_CURVES = _claim(vanishing_gradient=r"^the slope of the nonlinearities shrinks it")
LARGE_INPUTS = _claim(
    unscaled_input=r"^inputs are .*: they were not scaled$",
    saturated_gate=r"^the layer's inputs are too large",
    saturated_activation=r"the network's input is too large, its rms",
    saturated_output=r"the network's input is too large, its rms",
    exploding_signal=r"the network's input is too large, its rms",
)
SMALL_INPUTS = _claim(
    unscaled_input=r"^inputs are .*: they were scaled down too far",
    vanishing_signal=r"^the network's input is next to nothing",
)
LARGE_BIASES = _claim(
    saturated_activation=r"the bias of \S+ is too large, its rms",
    dead_units=r"^biases hold every pre-activation below zero since initialization",
    collapsed_rank=r"^the bias of \S+ outweighs what the samples differ in since initialization",
)
OUTPUT_WEIGHTS = _claim(
    saturated_output=r"the last layer's weights are too large, their gain",
    exploding_gradient=r"^the last layer's weights are too large",
)
QUERY_KEY_WEIGHTS = _claim(collapsed_attention=r"the query and key weights are too large, their gain")
NOT_DIVIDED = _claim(collapsed_attention=r"they are not divided by the root of the head's width")
BAD_DATA = _claim(
    non_finite=r"^the data holds nan or infinity|lost at once: most likely the batch holds nan or infinity$"
)
WRONG_LABELS = _claim(loss_plateau=r"^the labels carry nothing that the inputs tell")
COPIED_FEATURES = _claim(collapsed_rank=r"^the features that go into \S+ are copies of one another")
UNEVEN_INPUTS = _claim(unscaled_input=r"features were not scaled one by one")
GATE_BIASES = _claim(saturated_gate=r"^biases hold it there since initialization")
RECURRENT_WEIGHTS = _claim(
    saturated_gate=r"^the recurrent weights are too large since initialization",
    exploding_gradient=r"^the recurrent weights are too large:",
)
CONSTANT_WEIGHTS = _claim(symmetric_units=r"^the weights were set to one constant")
ZERO_WEIGHTS = _claim(
    symmetric_units=r"^the weights (are|were) all zero",
    dead_units=r"the weights of \S+ are all zero",
)
LARGE_BRANCHES = _claim(residual_imbalance=r"^the branches are scaled too large")
NARROW_LAYER = _claim(collapsed_rank=r"is narrower than what it has to pass on")

LARGE_RATE = _claim(
    update_too_large=r"^the learning rate is too large for these weights",
    loss_diverging=r": the learning rate is too large, a step changes the weights by",
    loss_oscillating=r"^the learning rate is too large: a step changes the weights by",
    sharp_curvature=r"^the learning rate( \S+)? is too large for the (curvature of the loss|loss's curvature)",
    exploding_gradient=r"^gradients grew .*: the learning rate is too large",
    exploding_signal=r"^the weights have grown since step .*: the learning rate is too large",
)
JUMPED_RATE = _claim(
    loss_diverging=r"the learning rate jumped from \S+ to",
    saturated_activation=r"the learning rate jumped from \S+ to",
    dead_units=r"the learning rate jumped from \S+ to",
    saturated_output=r"the learning rate jumped from \S+ to",
    exploding_signal=r"the learning rate jumped from \S+ to",
)
ONE_LARGE_UPDATE = _claim(
    dead_units=r"^killed by step \S+: an update of \S+ of the weights",
    saturated_activation=r": an update of \S+ of the weights, 0.1% is usual",
)
SMALL_RATE = _claim(update_too_small=r"^the learning rate is too small:")
DECAYED_RATE = _claim(degenerate_optimizer=r"^the learning rate had decayed to")
LOW_LIMIT = _claim(clipping_dominates=r"^the limit of the clipping(, \S+,)? is too low")
LARGE_EPSILON = _claim(degenerate_optimizer=r"^epsilon, about \S+, is too large")
CROSSED_BETAS = _claim(degenerate_optimizer=r"^beta2 forgets")
LARGE_MOMENTUM = _claim(degenerate_optimizer=r"^momentum is too near 1")
WEIGHT_DECAY = _claim(collapsed_rank=r"weights have shrunk to .*, look at the weight decay")
NOT_HANDED_OVER = _claim(untrained_parameter=r"^they get gradients but are in no optimizer")
FROZEN = _claim(untrained_parameter=r"^they are frozen")
DETACHED = _claim(untrained_parameter=r"^no gradient comes back to them: a detach\(\)")

FLOAT16_STEPS = _claim(low_precision_range=r"^the steps are smaller than what float16 tells from nothing")
BFLOAT16_STEPS = _claim(low_precision_range=r"^the steps are smaller than what bfloat16 tells from nothing")
FLOAT16_EPSILON = _claim(low_precision_range=r"on float16 weights divides by zero: its epsilon")
SMALL_BATCH = _claim(degenerate_batchnorm=r"^the batch is too small to normalize by")
SLOW_STATISTICS = _claim(
    degenerate_batchnorm=r"^(running (means|variances) that do not follow the batches: )?the momentum is too small"
)

LOGARITHM_BY_HAND = _claim(
    mismatched_loss=r"^the logarithm of a softmax or sigmoid is taken by hand",
    non_finite=r"^the logarithm of a softmax or sigmoid is taken by hand",
)
EXPONENTIAL_BY_HAND = _claim(
    mismatched_loss=r"^a logarithm of exponentials is computed by hand",
    non_finite=r"^a logarithm of exponentials is computed by hand",
)
SOFTMAX_TWICE = _claim(mismatched_loss=r"^a softmax is applied before the cross entropy")
SIGMOID_TWICE = _claim(mismatched_loss=r"^a sigmoid or softmax is applied before a loss that applies a sigmoid itself")
LIKELIHOOD_OF_LOGITS = _claim(mismatched_loss=r"^nll_loss is given the plain output of a layer")
LIKELIHOOD_OF_PROBABILITIES = _claim(mismatched_loss=r"^nll_loss is given probabilities")

CAUSES: Mapping[str, tuple[Claim, ...]] = {
    "saturated-activation.weight-scale": (LARGE_WEIGHTS,),
    "saturated-activation.input-scale": (LARGE_INPUTS,),
    "saturated-activation.bias": (LARGE_BIASES,),
    "saturated-activation.learning-rate-jump": (LARGE_RATE, JUMPED_RATE, ONE_LARGE_UPDATE),
    "dead-units.bias": (LARGE_BIASES,),
    "dead-units.learning-rate-spike": (LARGE_RATE, JUMPED_RATE, ONE_LARGE_UPDATE),
    "vanishing-gradient.sigmoid-depth": (FLAT_CURVES,),
    "vanishing-gradient.small-weights": (SMALL_WEIGHTS,),
    "vanishing-gradient.detach": (DETACHED,),
    "exploding-gradient.large-weights": (LARGE_WEIGHTS,),
    "exploding-gradient.recurrent-weights": (RECURRENT_WEIGHTS,),
    "vanishing-signal.weight-scale": (SMALL_WEIGHTS,),
    "vanishing-signal.input-scale": (SMALL_INPUTS,),
    "exploding-signal.weight-scale": (LARGE_WEIGHTS,),
    "exploding-signal.input-scale": (LARGE_INPUTS,),
    "symmetric-units.constant-weights": (CONSTANT_WEIGHTS,),
    "symmetric-units.zero-weights": (ZERO_WEIGHTS,),
    "non-finite.log-of-zero": (LOGARITHM_BY_HAND,),
    "non-finite.overflow": (EXPONENTIAL_BY_HAND,),
    "non-finite.bad-row": (BAD_DATA,),
    "low-precision-range.float16-parameters": (FLOAT16_STEPS,),
    "low-precision-range.float16-adam": (FLOAT16_EPSILON,),
    "low-precision-range.bfloat16-updates": (BFLOAT16_STEPS,),
    "unscaled-input.raw-features": (LARGE_INPUTS, UNEVEN_INPUTS),
    "unscaled-input.raw-features-squashed": (LARGE_INPUTS, UNEVEN_INPUTS),
    "unscaled-input.raw-features-sgd": (LARGE_INPUTS, UNEVEN_INPUTS),
    "loss-diverging.learning-rate": (LARGE_RATE,),
    "loss-diverging.learning-rate-jump": (LARGE_RATE, JUMPED_RATE),
    "loss-oscillating.learning-rate": (LARGE_RATE,),
    "update-too-large.learning-rate": (LARGE_RATE,),
    "update-too-small.learning-rate": (SMALL_RATE,),
    "update-too-small.learning-rate-sgd": (SMALL_RATE,),
    "update-too-small.learning-rate-decay": (SMALL_RATE, DECAYED_RATE),
    "sharp-curvature.learning-rate": (LARGE_RATE,),
    "clipping-dominates.max-norm": (LOW_LIMIT,),
    "degenerate-optimizer.adam-epsilon": (LARGE_EPSILON,),
    "degenerate-optimizer.adam-betas": (CROSSED_BETAS,),
    "degenerate-optimizer.momentum": (LARGE_MOMENTUM,),
    "untrained-parameter.not-in-optimizer": (NOT_HANDED_OVER,),
    "untrained-parameter.requires-grad": (FROZEN,),
    "untrained-parameter.detach": (DETACHED,),
    "loss-plateau.shuffled-labels": (WRONG_LABELS,),
    "loss-plateau.label-order": (WRONG_LABELS,),
    "saturated-gate.gate-bias": (GATE_BIASES,),
    "saturated-gate.recurrent-weights": (RECURRENT_WEIGHTS,),
    "collapsed-attention.query-key-scale": (QUERY_KEY_WEIGHTS,),
    "collapsed-attention.missing-scale": (NOT_DIVIDED,),
    "saturated-output.output-scale": (OUTPUT_WEIGHTS,),
    "saturated-output.output-scale-sgd": (OUTPUT_WEIGHTS,),
    "degenerate-batchnorm.batch-size": (SMALL_BATCH,),
    "degenerate-batchnorm.batch-size-residual": (SMALL_BATCH,),
    "degenerate-batchnorm.momentum": (SLOW_STATISTICS,),
    "degenerate-batchnorm.momentum-residual": (SLOW_STATISTICS,),
    "residual-imbalance.branch-scale": (LARGE_BRANCHES,),
    "residual-imbalance.branch-scale-sgd": (LARGE_BRANCHES,),
    "mismatched-loss.softmax-twice": (SOFTMAX_TWICE,),
    "mismatched-loss.sigmoid-twice": (SIGMOID_TWICE,),
    "mismatched-loss.nll-of-logits": (LIKELIHOOD_OF_LOGITS,),
    "mismatched-loss.nll-of-probabilities": (LIKELIHOOD_OF_PROBABILITIES,),
    "collapsed-rank.bottleneck": (NARROW_LAYER,),
    "collapsed-rank.bottleneck-code": (NARROW_LAYER,),
    "collapsed-rank.identical-features": (COPIED_FEATURES,),
    "collapsed-rank.weight-decay": (WEIGHT_DECAY,),
}
"""By the key of a fault (code and cause): the claims that are right."""

UNTOLD: Mapping[str, str | None] = {
    "mismatched-loss.class-ids": None,
}
"""Faults whose cause no rule tells, and what the rule of their code says instead, or None: it has no words for it.

With a rule that tells it the fault moves to `CAUSES`. That a squared error is taken of class ids is not in a record: it
holds the operations of the loss, but neither the kind nor the values of the targets, and a regression looks the same.
"""


def cause_is_right(finding: Finding, description: Mapping[str, Any]) -> bool:
    """Whether a finding of a code that is right gives the cause that the fault has.

    description: `Result.description`. Always False for a healthy case, and for a fault in `UNTOLD`.
    """
    if finding.code not in (description["code"], *description["also"]):
        return False
    if description["starts"] == "jump" and FROM_START.search(finding.cause):
        return False
    claims = CAUSES.get(f"{description['code']}.{description['cause']}", ())
    phrases = [claim[finding.code] for claim in claims if finding.code in claim]
    return any(phrase.search(finding.cause) for phrase in phrases)
