"""Old gradients that an optimizer does not forget: momentum, and Adam's first moment, that carry the weights too far.

Two ways to see it: by the steps, which are larger than the gradients explain; and by the settings, where the record
holds them, which tell it before the steps do.
"""

import math

import numpy as np

from desat.diagnose.episode import find_episode
from desat.diagnose.learning import FEW_LOSSES
from desat.diagnose.optimizer_steps import (
    Settings,
    Symptom,
    adapted_steps,
    plain_ratios,
    settings_of,
    step_gains,
)
from desat.diagnose.rule import SEVERE, Case
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE
from desat.record.rows import Site

MOMENTUM_GAIN = Threshold(
    "momentum gain",
    12.0,
    "norm(update) / (learning rate x norm(gradient))",
    "how much momentum makes of a gradient, above which it carries the weights past where they should go",
    "desat: above the 1 / (1 - 0.9) of a steady gradient under the customary momentum (Sutskever et al. 2013)",
)
ADAPTED_STEP = Threshold(
    "adapted step",
    1.5,
    "rms(update) / learning rate",
    "size of Adam's steps in units of the learning rate, above which its betas do not belong together",
    "Kingma and Ba 2015, section 2.1: steps are about the learning rate at most, where beta1 < sqrt(beta2)",
)
LONG_MOMENTUM = Threshold(
    "long momentum",
    50.0,
    "steps, 1 / (1 - momentum)",
    "memory of momentum above which it may be what makes steps too large, in a network that does not learn",
    "desat: five times that of the customary 0.9; Sutskever et al. 2013, section 2, go beyond 0.99 late in a run only",
)
LONG_MEMORY = Threshold(
    "long memory",
    0.5,
    "1 / (1 - beta1) / steps of the run",
    "memory of Adam's first moment over the steps so far, above which it has forgotten none of its gradients",
    "desat: half of the run; of the customary 0.9 it is ten steps (Kingma and Ba 2015, algorithm 1)",
)

CUSTOMARY = 10.0
"""Steps that the customary momentum of 0.9 remembers, and so what it makes of a steady gradient."""
LONGEST = 1e6
"""Steps of memory that stand for a momentum of 1, which never forgets."""
NO_DOUBT = 10.0
"""Times a threshold at which there is no doubt."""

ADAM_LIKE = ("Adam", "AdamW", "NAdam", "Adamax")
TWO_MOMENTS = ("Adam", "AdamW", "NAdam", "RAdam")
"""Optimizers that divide a first moment by the root of a second one."""
REMEDIES = ("optimizer=defaults", "optimizer=adam")


def memory_symptom(case: Case) -> Symptom | None:
    """By the settings where they alone say it, else by the steps."""
    optimizers = case.record.sites("optimizer")
    if len(optimizers) != 1:
        return None
    settings = settings_of(case.record, optimizers[0])
    found = None
    if optimizers[0].operation == "SGD":
        found = _long_momentum(case, optimizers[0], settings)
    elif optimizers[0].operation in TWO_MOMENTS:
        found = _long_first_moment(case, optimizers[0], settings)
    return found or _large_steps(case, optimizers[0], settings)


def _long_momentum(case: Case, optimizer: Site, settings: Settings) -> Symptom | None:
    """Steps that would be sound with the customary momentum, and are not with this one."""
    momentum = settings.momentum
    if momentum is None or case.is_learned or _memory(momentum) < LONG_MOMENTUM.value:
        return None
    if case.learning.harm is False and momentum < 1.0:
        return None
    memory, (steps, ratios) = _memory(momentum), plain_ratios(case.record)
    if not len(ratios):
        return None
    # The later half shows what came of it: gradients that explode or have died away.
    plain = float(np.median(ratios[: max(1, len(ratios) // 2)]))
    if not CUSTOMARY * plain < LARGE_UPDATE.value <= memory * plain:
        return None
    episode = find_episode(steps, np.ones(len(steps), np.bool_))
    assert episode is not None, "there are ratios"
    # By itself such a momentum is no proof: with a learning rate that is small enough it trains well.
    margin = 1.0 if momentum >= 1.0 else _beyond(memory, LONG_MOMENTUM.value, 0.99 * SEVERE.value)
    told = "never forgets a gradient" if momentum >= 1.0 else f"makes {memory:.0f} times the gradient of a steady one"
    evidence = {"momentum": momentum, "update_ratio_at_customary_momentum": CUSTOMARY * plain}
    return Symptom(
        case.severity(episode, margin),
        episode,
        margin,
        optimizer,
        f"momentum is too near 1: {momentum:g} {told}, the usual 0.9 makes 10 of it",
        (
            f"With a momentum of {momentum:g} steady gradients change the weights by "
            f"{'ever more' if momentum >= 1.0 else f'{memory * plain:.0%}'} a step; with the usual 0.9 it would be "
            f"{CUSTOMARY * plain:.1%}, and less than {LARGE_UPDATE.value:.0%} would be sound. "
            "Old gradients carry the weights past where the new ones point."
        ),
        evidence | _gain_evidence(step_gains(case.record)[1]),
        REMEDIES,
    )


def _long_first_moment(case: Case, optimizer: Site, settings: Settings) -> Symptom | None:
    """A first moment that keeps all of the run's gradients; worse where the second forgets their size meanwhile."""
    beta1, beta2 = settings.beta1, settings.beta2
    steps = len(case.record.steps()["step"])
    if beta1 is None or beta2 is None or case.is_learned or steps < FEW_LOSSES.value:
        return None
    memory, size_memory = _memory(beta1), _memory(math.sqrt(max(beta2, 0.0)))
    is_crossed = beta1 > math.sqrt(max(beta2, 0.0))
    if memory < max(LONG_MEMORY.value * steps, CUSTOMARY**2) or not (is_crossed or case.learning.harm):
        return None
    sampled, sizes = adapted_steps(case.record)
    episode = find_episode(sampled, np.ones(len(sampled), np.bool_))
    if episode is None:
        return None
    if is_crossed:
        margin = _beyond(memory, size_memory, 1.0)
        cause = f"beta2 forgets the gradient's size sooner than beta1 its direction: ({beta1:g}, {beta2:g})"
    else:
        margin = _beyond(memory, LONG_MEMORY.value * steps, 0.99 * SEVERE.value)
        cause = f"beta1 is too near 1: {beta1:g} forgets no gradient within the run"
    return Symptom(
        case.severity(episode, margin),
        episode,
        margin,
        optimizer,
        f"{cause}; (0.9, 0.999) is usual",
        (
            f"Adam's first moment remembers {_told(memory)} steps of a run of {steps}, the size of gradients is "
            f"remembered for {_told(size_memory)}; the first should be shorter than both, and is 10 with the usual "
            "0.9. So the weights go on where the first gradients pointed."
        ),
        {"beta1": beta1, "beta2": beta2, "memory_steps": memory} | _gain_evidence(sizes),
        REMEDIES,
    )


def _large_steps(case: Case, optimizer: Site, settings: Settings) -> Symptom | None:
    """Steps far larger than the gradients they are made of, in a network that does not learn."""
    if case.learning.harm is False or _is_innocent(settings):
        return None
    operation = optimizer.operation
    if operation == "SGD":
        limit, (steps, gains) = MOMENTUM_GAIN, step_gains(case.record)
    elif operation in ADAM_LIKE:
        limit, (steps, gains) = ADAPTED_STEP, adapted_steps(case.record)
    else:
        return None
    episode = find_episode(steps, gains >= limit.value)
    if episode is None or 2 * episode.held < len(steps):
        return None
    gain = float(np.median(gains[(steps >= episode.first_step) & (steps <= episode.last_step)]))
    margin = _beyond(gain, limit.value, 1.0)
    if operation == "SGD":
        cause = f"momentum is too near 1: it makes {gain:.0f} times the gradient of each, 10 with the usual 0.9"
        message = f"Momentum makes steps {gain:.0f} times as large as the gradients they are made of"
    else:
        cause = "beta2 forgets the gradient's size sooner than beta1 its direction; (0.9, 0.999) is usual"
        message = f"Adam's steps are {gain:.1f} times the learning rate"
    return Symptom(
        case.severity(episode, margin),
        episode,
        margin,
        optimizer,
        cause,
        (
            f"{message}, {episode.since}; less than {limit.value:g} would be sound. "
            "Old gradients carry the weights past where the new ones point."
        ),
        {"step_gain": gain},
        REMEDIES,
    )


def _is_innocent(settings: Settings) -> bool:
    """Whether the settings are known and cannot make steps too large: these come from elsewhere, from a decay say."""
    if settings.momentum is not None:
        return _memory(settings.momentum) <= MOMENTUM_GAIN.value
    if settings.beta1 is None or settings.beta2 is None:
        return False
    return settings.beta1 <= math.sqrt(max(settings.beta2, 0.0))


def _gain_evidence(gains: np.ndarray) -> dict[str, float]:
    return {"step_gain": float(np.median(gains))} if len(gains) else {"step_gain": 1.0}


def _memory(decay: float) -> float:
    """Steps over which an average with this decay reaches back, 1 / (1 - decay)."""
    return LONGEST if 1.0 - decay <= 1.0 / LONGEST else 1.0 / (1.0 - decay)


def _told(memory: float) -> str:
    return "all" if memory >= LONGEST else f"{memory:.0f}"


def _beyond(value: float, limit: float, most: float) -> float:
    """A margin of 1 at NO_DOUBT times the limit, by logarithms, at most `most`."""
    return float(np.clip(np.log(value / limit) / np.log(NO_DOUBT), 0.0, most))
