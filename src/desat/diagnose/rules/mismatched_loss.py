"""mismatched-loss: the loss is given something else than what it expects, told from the operations it is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.rule import Case, Rule
from desat.record.rows import Site

Chain = tuple[str, ...]
Grade = Literal["wrong", "doubtful", "fragile", "idle"]
"""wrong: it cannot be meant. doubtful: it can, but seldom helps. fragile: right for small numbers. idle: right."""

ARROW = " <- "
ARITHMETIC = frozenset({"Mul", "Div", "Add", "Sub", "Rsub", "Neg", "Clamp", "ClampMin", "ToCopy"})
"""Operations with one operand that has a gradient, such as a factor on the logits: they change nothing of the kind."""
LAYERS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "MkldnnLinear", "Convolution", "Conv", "NativeBatchNorm")
RECTIFIERS = ("Relu", "Elu", "LeakyRelu", "Threshold", "Hardtanh", "Softplus")
CONFIDENCE: dict[Grade, float] = {"wrong": 0.98, "doubtful": 0.8, "fragile": 0.9, "idle": 0.95}
"""The graph is read and not guessed; what is left is that it was meant so."""


@dataclass(frozen=True)
class _Pattern:
    """A mismatch: `fits` says whether a chain has it. expects, gets: what the loss is made for and what it is given."""

    grade: Grade
    fits: Callable[[Chain], bool]
    cause: str
    message: str
    remedies: tuple[str, ...] = ()


def _followed(criteria: tuple[str, ...], by: tuple[str, ...], directly: bool = False) -> Callable[[Chain], bool]:
    """Whether one of `criteria` was computed from one of `by`, with nothing but ARITHMETIC between unless directly."""

    def fits(chain: Chain) -> bool:
        for place, name in enumerate(chain):
            if name in criteria:
                behind = [other for other in chain[place + 1 :] if directly or other not in ARITHMETIC]
                if behind and behind[0] in by:
                    return True
        return False

    return fits


NLL = ("NllLoss", "NllLoss2D")
LOGITS_LOSS = ("BinaryCrossEntropyWithLogits",)

PATTERNS = (
    _Pattern(
        "wrong", _followed(("LogSoftmax",), ("Softmax",)),
        "a softmax is applied before the cross entropy, which applies one itself",
        "The cross entropy applies a softmax itself, and gets the output of another one. Logits between 0 and 1 cannot "
        "become sure: with 10 classes the loss cannot fall below 1.46, and the gradient is small everywhere. "
        "Hand it the plain output of the last layer.",
        ("loss=logits",),
    ),
    _Pattern(
        "wrong", _followed(("LogSoftmax",), ("Sigmoid",)),
        "a sigmoid is applied before the cross entropy, which applies a softmax itself",
        "The cross entropy applies a softmax itself, and gets the output of a sigmoid. Logits between 0 and 1 cannot "
        "become sure, so the loss cannot fall far. Hand it the plain output of the last layer.",
        ("loss=logits",),
    ),
    _Pattern(
        "wrong", _followed(LOGITS_LOSS, ("Sigmoid", "Softmax")),
        "a sigmoid or softmax is applied before a loss that applies a sigmoid itself",
        "binary_cross_entropy_with_logits applies a sigmoid itself, and gets numbers between 0 and 1 already: it then "
        "sees no probability below 0.5, and no loss below 0.31. Hand it the plain output of the last layer.",
        ("loss=logits",),
    ),
    _Pattern(
        "wrong", _followed(NLL, LAYERS, directly=True),
        "nll_loss is given the plain output of a layer, and expects logarithms of probabilities",
        "nll_loss takes the numbers as logarithms of probabilities and does not make them so: the loss falls without "
        "end as the outputs grow, and tells nothing. Use cross_entropy, or a log_softmax before it.",
        ("loss=log-probabilities",),
    ),
    _Pattern(
        "wrong", _followed(NLL, ("Softmax", "Sigmoid")),
        "nll_loss is given probabilities, and expects their logarithms",
        "nll_loss is given probabilities and not their logarithms: the loss lies between -1 and 0, and its gradient "
        "vanishes exactly where the network is wrong. Use cross_entropy with the plain output of the last layer.",
        ("loss=log-probabilities",),
    ),
    _Pattern(
        "doubtful", _followed(NLL, (*RECTIFIERS, "Tanh"), directly=True),
        "nll_loss is given the output of a nonlinearity, and expects logarithms of probabilities",
        "nll_loss is given what a nonlinearity puts out, and expects logarithms of probabilities. Use cross_entropy "
        "with the plain output of the last layer.",
        ("loss=log-probabilities",),
    ),
    _Pattern(
        "doubtful", _followed(("LogSoftmax", *LOGITS_LOSS), RECTIFIERS, directly=True),
        "a rectifier is applied to the logits",
        "The logits pass a rectifier before the loss: none can be negative, and a class whose logit is off gets no "
        "gradient. Hand the loss the plain output of the last layer.",
    ),
    _Pattern(
        "doubtful", _followed(("LogSoftmax", *LOGITS_LOSS), ("Tanh",), directly=True),
        "the logits are squashed to -1 ... 1 before the loss",
        "The logits pass a tanh before the loss, so they stay between -1 and 1 and the network cannot become sure. "
        "Hand the loss the plain output of the last layer.",
    ),
    _Pattern(
        "doubtful", _followed(("BinaryCrossEntropy",), ("Softmax",)),
        "binary cross entropy is taken of a softmax over classes",
        "The binary cross entropy judges each class by itself, but a softmax makes the classes share one sum. "
        "Use cross_entropy with the plain output of the last layer; or a sigmoid, where several classes can be right.",
    ),
    _Pattern(
        "doubtful", _followed(("MseLoss", "Pow", "L1Loss", "SmoothL1Loss"), ("Softmax",)),
        "a squared error is taken of a softmax",
        "The squared error of a softmax has next to no gradient where the network is sure and wrong. "
        "Use cross_entropy with the plain output of the last layer.",
    ),
    _Pattern(
        "fragile", _followed(("Log",), ("Softmax", "Sigmoid")),
        "the logarithm of a softmax or sigmoid is taken by hand",
        "The logarithm of a softmax or sigmoid is taken by hand: as soon as the network is sure, a probability is "
        "rounded to 0, and its logarithm is infinite. Use cross_entropy, log_softmax or logsigmoid.",
    ),
    _Pattern(
        "fragile", lambda chain: "Log" in chain and "Exp" in chain[chain.index("Log") :],
        "a logarithm of exponentials is computed by hand",
        "A logarithm of exponentials is computed by hand: exp overflows from 89 on in float32. "
        "Use cross_entropy, logsumexp or softplus.",
    ),
    _Pattern(
        "idle", _followed(("LogSoftmax",), ("LogSoftmax",)),
        "a log_softmax is applied twice",
        "cross_entropy applies a log_softmax itself, and gets the output of another one. That changes nothing but the "
        "time it takes.",
    ),
)  # fmt: skip
"""The gravest first."""


def examine_loss(case: Case) -> list[Finding]:
    """One finding, for the gravest mismatch of all that the losses of the run are made of."""
    found = [
        (PATTERNS.index(pattern), site, pattern)
        for site in case.record.sites("loss")
        for pattern in PATTERNS
        if pattern.fits(tuple(site.operation.split(ARROW)))
    ]
    steps = case.record.steps(sampled=True)["step"]
    if not found or not len(steps):
        return []
    _, site, pattern = min(found, key=lambda entry: entry[0])
    output = _output(case)
    evidence = {"losses": float(case.learning.losses)}
    if case.learning.end == case.learning.end:
        evidence |= {"loss_start": case.learning.start, "loss_end": case.learning.end}
    return [
        Finding(
            code="mismatched-loss",
            severity=_severity(case, pattern),
            site=output or site.name,
            sites=(output, site.name) if output else (site.name,),
            source=site.source,
            first_step=int(steps[0]),
            last_step=int(steps[-1]),
            cause=pattern.cause,
            message=pattern.message,
            evidence=evidence,
            remedies=pattern.remedies,
            confidence=CONFIDENCE[pattern.grade],
        )
    ]


def _severity(case: Case, pattern: _Pattern) -> Severity:
    """A certain mismatch is an error with harm, and also while the loss has some way to go."""
    learning = case.learning
    if pattern.grade == "idle":
        return "note"
    if pattern.grade == "fragile":
        return "error" if learning.state == "non-finite" else "note"
    if learning.harm:
        return "error"
    told = learning.losses >= FEW_LOSSES.value
    is_high = told and learning.fall < SETTLED.value
    if pattern.grade == "wrong":
        # A likelihood that is above one shows that the loss is none, however far it falls.
        return "error" if told and (not case.is_learned or learning.end < -1.0) else "warning"
    return "warning" if learning.harm is None or is_high else "note"


def _output(case: Case) -> str | None:
    """The last place of the network that was measured, whose output the loss is given."""
    ran: list[Site] = [site for site in case.record.sites() if site.kind in ("module", "nonlinearity")]
    return ran[-1].name if ran else None


MISMATCHED_LOSS = Rule(
    code="mismatched-loss",
    examine=examine_loss,
    thresholds=(SETTLED, FEW_LOSSES),
    meaning="The loss expects something else than it is given: a softmax comes twice, or it gets logits as logarithms.",
    measured=(
        "The operations that the loss was computed from, read off autograd's graph where backward() is called, as far "
        "as the last layer."
    ),
    helps="The plain output of the last layer with cross_entropy, or with binary_cross_entropy_with_logits.",
)
