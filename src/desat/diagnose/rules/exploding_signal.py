"""exploding-signal: the signal grows from layer to layer, until the outputs are beyond what the loss can bear."""

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.onset import RATE_JUMP, rate_jump
from desat.diagnose.rule import WRONG_START, Case, Rule
from desat.diagnose.scale import EXCESS, measure_scale
from desat.diagnose.signal import SignalPath, signal_paths
from desat.diagnose.threshold import Threshold

GAINED_SIGNAL = Threshold(
    "gained signal",
    25.0,
    "dB",
    "rms of the last hidden output over the first layer's, above which the signal explodes",
    "desat: healthy networks of the proving ground stayed below 1 dB as they were drawn, and 13 dB ever; residual "
    "streams without a final normalization grow by about 20 dB",
)
NO_DOUBT = 20.0
"""Decibels beyond it at which there is no doubt: tenfold."""
RISING_LINK = Threshold(
    "rising link", 3.0, "dB", "forward gain of a site that takes a noteworthy part in the growth", "twice the power"
)


def examine_exploding_signal(case: Case) -> list[Finding]:
    """One finding for the network, by the sampled step with the largest growth among the sick ones."""
    paths = signal_paths(case.record, "size")
    held = [path.total_db >= GAINED_SIGNAL.value for path in paths]
    episode = find_episode([path.step for path in paths], held)
    if episode is None:
        return []
    during = [path for path, is_held in zip(paths, held, strict=True) if is_held and episode.covers(path.step)]
    return [_finding(case, max(during, key=lambda path: path.total_db), episode)]


def _finding(case: Case, path: SignalPath, episode: Episode) -> Finding:
    worst = max(path.links, key=lambda link: link.gain_db)
    growing = [link.site for link in path.links if link.gain_db >= RISING_LINK.value]
    sources = {site.name: site.source for site in case.record.sites()}
    margin = (path.total_db - GAINED_SIGNAL.value) / NO_DOUBT
    per_layer = path.total_db / path.layers
    return Finding(
        code="exploding-signal",
        severity=case.severity_from_birth(episode, margin),
        site=worst.site,
        sites=tuple(dict.fromkeys([path.first_site, *growing])),
        source=sources.get(worst.site),
        first_step=episode.first_step,
        last_step=episode.last_step,
        cause=_cause(case, path, episode),
        message=(
            f"From {path.first_site} to the last hidden layer the signal grows by {path.total_db:.0f} dB, "
            f"{episode.since}: each layer multiplies it by {10 ** (per_layer / 20):.2g}, and it should be about 1. "
            "The loss and its gradient grow with it."
        ),
        evidence={
            "signal_gain_db": path.total_db,
            "gain_per_layer_db": per_layer,
            "worst_link_db": worst.gain_db,
            "since_initialization": float(episode.from_start),
        },
        remedies=("initialization=he", "initialization=torch", "normalization=batch")
        if episode.from_start
        else ("optimizer=rate:0.1", "normalization=layer", "optimizer=adam"),
        confidence=episode.confidence(margin),
    )


def _cause(case: Case, path: SignalPath, episode: Episode) -> str:
    if episode.from_start:
        return "the weights were drawn too large: each layer strengthens the signal from initialization on"
    grown = f"the weights have grown since step {episode.first_step}"
    jump = rate_jump(case.record, episode.previous_step, episode.first_step)
    if jump is not None:
        return f"{grown}: {jump.words}"
    first = next(site for site in case.record.sites() if site.name == path.first_site)
    scale = measure_scale(case.record, first, episode.first_step)
    if scale is not None and scale.input_is_the_networks and scale.blame == "input":
        return f"{grown}: {scale.words}, and the gradients are large by it"
    return f"the weights have grown since step {episode.first_step}: the learning rate is too large"


EXPLODING_SIGNAL = Rule(
    code="exploding-signal",
    examine=examine_exploding_signal,
    thresholds=(GAINED_SIGNAL, RISING_LINK, EXCESS, RATE_JUMP, WRONG_START),
    meaning="The signal grows from layer to layer, until loss and gradient are too large to learn by.",
    measured=(
        "The rms of each hidden output in decibels, from the first layer, or the last normalization, to the last "
        "hidden one; pooling left out, and the head, whose scale is that of the targets."
    ),
    helps="Weights drawn for the nonlinearity (He et al. 2015), or normalization; a smaller learning rate if it grew.",
)
