"""vanishing-signal: what the samples differ in fades from layer to layer, so that the last see them all alike."""

from desat.diagnose.curves import nonlinearities
from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import FAINT_INPUT, Scale, measure_scale
from desat.diagnose.signal import SignalPath, signal_paths
from desat.diagnose.threshold import Threshold

LOST_SIGNAL = Threshold(
    "lost signal",
    -60.0,
    "dB",
    "standard deviation of the last hidden output over the first layer's, below which the signal has vanished",
    "desat: the mirror of `lost gradient`; in a chain both fade alike (Glorot and Bengio 2010, section 4.2.1)",
)
FADING_LINK = Threshold(
    "fading link", -3.0, "dB", "forward gain of a site that takes a noteworthy part in the loss", "half of the power"
)
SILENCE = -400.0
"""dB below which there is no signal at all."""
NO_DOUBT = -120.0
"""dB at which the loss is beyond doubt: six orders of magnitude."""


def examine_vanishing_signal(case: Case) -> list[Finding]:
    """One finding for the network, by the sampled step with the median loss among the sick ones."""
    paths = signal_paths(case.record, "variation")
    held = [path.total_db <= LOST_SIGNAL.value for path in paths]
    masked = _masked(case, paths)
    if masked is not None:
        return [_finding(case, paths[0], masked)]
    episode = find_episode([path.step for path in paths], held)
    if episode is None:
        return []
    sick = [path for path, is_held in zip(paths, held, strict=True) if is_held and episode.covers(path.step)]
    path = sorted(sick, key=lambda each: each.total_db)[len(sick) // 2]
    return [_finding(case, path, episode)]


def _masked(case: Case, paths: tuple[SignalPath, ...]) -> Episode | None:
    """The whole run, where the signal had vanished before the first step and the network has not learned since.

    Biases that learn the mean of the targets make the units of a layer differ, though not the samples. An output of
    nothing but zeros is no small one: branches start so on purpose.
    """
    if not paths or case.learning.harm is False or not SILENCE < paths[0].total_db <= LOST_SIGNAL.value:
        return None
    number = len(paths)
    return Episode(paths[0].step, paths[-1].step, number, number, True, True, None)


def _finding(case: Case, path: SignalPath, episode: Episode) -> Finding:
    worst = min(path.links, key=lambda link: link.gain_db)
    fading = [link.site for link in path.links if link.gain_db <= FADING_LINK.value]
    sources = {site.name: site.source for site in case.record.sites()}
    margin = (path.total_db - LOST_SIGNAL.value) / (NO_DOUBT - LOST_SIGNAL.value)
    per_layer = path.total_db / path.layers
    in_weights = path.by_share("weight") <= path.by_share("nonlinearity")
    faint = _faint_input(case, path, episode)
    return Finding(
        code="vanishing-signal",
        severity=case.severity(episode, margin),
        site=worst.site,
        sites=tuple(dict.fromkeys([path.first_site, *fading])),
        source=sources.get(worst.site),
        first_step=episode.first_step,
        last_step=episode.last_step,
        cause=_cause(episode, in_weights, faint),
        message=(
            f"From {path.first_site} to the last hidden layer the signal loses {-path.total_db:.0f} dB, "
            f"{episode.since}: each layer hands on {10 ** (per_layer / 20):.2g} of it, and it should be about 1. "
            "So the last layers see all samples alike."
        ),
        evidence={
            "signal_gain_db": path.total_db,
            "gain_per_layer_db": per_layer,
            "worst_link_db": worst.gain_db,
            "weight_db": path.by_share("weight"),
            "nonlinearity_db": path.by_share("nonlinearity"),
            "lost_in_weights": float(in_weights),
            "since_initialization": float(episode.from_start),
            **({} if faint is None else faint.evidence),
        },
        remedies=("input=standardize", "normalization=batch") if faint is not None else _remedies(case, in_weights),
        confidence=episode.confidence(margin),
    )


def _faint_input(case: Case, path: SignalPath, episode: Episode) -> Scale | None:
    """The first layer, where the network's input is next to nothing and weights of a sound gain take it in."""
    first = next(site for site in case.record.sites() if site.name == path.first_site)
    scale = measure_scale(case.record, first, episode.first_step)
    return scale if scale is not None and scale.input_is_the_networks and scale.input_is_faint else None


def _cause(episode: Episode, in_weights: bool, faint: Scale | None) -> str:
    if faint is not None:
        return f"the network's input is next to nothing: its rms is {faint.incoming:.1g}, about 1 is sound"
    if not in_weights:
        return "the nonlinearities squash it: their inputs lie where they are flat"
    if episode.from_start:
        return "the weights were drawn too small: each layer shrinks the signal from initialization on"
    return f"the weights have shrunk since step {episode.first_step}: look at the weight decay and the learning rate"


def _remedies(case: Case, in_weights: bool) -> tuple[str, ...]:
    if not in_weights and nonlinearities(case.record, "bounded"):
        return ("activation=relu", "initialization=he", "normalization=batch")
    return ("initialization=he", "normalization=layer", "normalization=batch")


VANISHING_SIGNAL = Rule(
    code="vanishing-signal",
    examine=examine_vanishing_signal,
    thresholds=(LOST_SIGNAL, FADING_LINK, FAINT_INPUT),
    meaning="What the samples differ in fades from layer to layer, so that the last layers see them all alike.",
    measured=(
        "The standard deviation of each hidden output in decibels, from the first layer, or the last normalization, "
        "to the last hidden one; pooling left out, and the head, whose scale is that of the targets."
    ),
    helps="Weights drawn for the nonlinearity (He et al. 2015), normalization, or residual connections.",
)
