"""What other tools would say of the same record: their published conditions, written as rules over a record of desat.

Each rule maps a record, and whether the script's own accuracy is satisfactory, to the finding codes of desat that name
the same problem. What a condition asks for and a record does not hold is named beside it.
"""

from collections.abc import Callable

import numpy as np

from desat.record.reader import Record

Baseline = Callable[[Record, bool], set[str]]

BLOCKS = 20
"""AUTOTRAINER looks at epochs; here the losses of a run in so many blocks stand for them."""


def autotrainer(record: Record, satisfactory: bool) -> set[str]:
    """Zhang et al., ICSE 2021, table 1. A record has no accuracy over epochs: the loss in blocks stands for it."""
    found: set[str] = set()
    gradients = record.grid("parameter", "gradient_rms").values
    zeros = record.grid("parameter", "gradient_zeros").values
    losses = record.steps()["loss"]
    if gradients.size:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = gradients[0] / gradients[-1]
        if not satisfactory and bool(((ratio < 1e-3) & (gradients[0] < 1e-4)).any()):
            found.add("vanishing-gradient")
        if bool((ratio > 70.0).any()):
            found.add("exploding-gradient")
        if bool((zeros >= 0.7).any()) and _has_rectifiers(record):
            found.add("dead-units")
    if len(losses) and not np.isfinite(losses[-1]):
        found |= {"non-finite", "exploding-gradient"}
    course = _course(losses)
    if len(course) > 2 and not satisfactory:
        steps = np.diff(course) / max(abs(course[0]), 1e-12)
        turns = (steps[1:] * steps[:-1] < 0.0) & (np.minimum(abs(steps[1:]), abs(steps[:-1])) >= 0.03)
        if turns.mean() >= 0.2:
            found.add("loss-oscillating")
        if course[0] - course[-1] < 0.01 * abs(course[0]):
            found.add("loss-plateau")
    return found


def sagemaker(record: Record, satisfactory: bool) -> set[str]:
    """Amazon SageMaker Debugger's built-in rules with their documented defaults, as far as a record has the tensors."""
    found: set[str] = set()
    gradients = record.grid("parameter", "gradient_rms").values
    if bool((gradients < 1e-7).any()):  # VanishingGradient, threshold 1e-7 of the mean magnitude
        found.add("vanishing-gradient")
    if bool((record.grid("parameter", "gradient_nonfinite").values > 0.0).any()):  # ExplodingTensor, only_nan False
        found |= {"non-finite", "exploding-gradient"}
    if _has_rectifiers(record) and bool((record.grid("output", "zeros", "nonlinearity").values > 0.5).mean() > 0.5):
        found.add("dead-units")  # DeadRelu, threshold_layer 50 % of dead neurons
    low, high = (record.grid("input", f"saturated_{end}", "nonlinearity").values for end in ("low", "high"))
    if not _has_rectifiers(record) and bool((low + high > 0.5).any()):  # SaturatedActivation, threshold_layer 50 %
        found.add("saturated-activation")
    updates, sizes = record.grid("parameter", "update_rms").values, record.grid("parameter", "rms").values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = updates / sizes
    if bool((ratios > 10.0).any()):  # WeightUpdateRatio, large_threshold
        found.add("update-too-large")
    if bool((ratios < 1e-8).any()):  # and small_threshold
        found.add("update-too-small")
    losses = record.steps()["loss"]
    losses = losses[np.isfinite(losses)]
    # LossNotDecreasing: by 0.1 % in 10 steps.
    if len(losses) > 20 and losses[-10:].mean() > 0.999 * losses[-20:-10].mean():
        found |= {"loss-plateau", "loss-diverging"}
    return found


BASELINES: dict[str, Baseline] = {"AUTOTRAINER's conditions": autotrainer, "SageMaker Debugger's rules": sagemaker}


def _has_rectifiers(record: Record) -> bool:
    return any('"rectifier"' in (site.curve or "") for site in record.sites("nonlinearity"))


def _course(losses: np.ndarray) -> np.ndarray:
    known = losses[np.isfinite(losses)]
    return np.array([block.mean() for block in np.array_split(known, BLOCKS) if len(block)])
