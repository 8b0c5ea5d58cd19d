"""Slide 14: an LSTM tells favourable reviews from others, watched gate by gate, and the same with attention pooling."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, PURPLE, VERMILION, picture
from desat.deck.fitting import Plan, fitted
from desat.deck.history import History
from desat.deck.reviews import PADDING, Reviews, Vocabulary, find_reviews, generated_reviews, make_vocabulary
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement
from desat.deck.training import trained
from desat.diagnose.engine import diagnose
from desat.diagnose.rules.saturated_gate import BLOCKED_GATE
from desat.record.reader import Record

SIZES = {True: (1200, 4), False: (11000, 3)}
"""Texts at most and epochs at most, fast or not."""

NEEDED = {True: 0.55, False: 0.74}
"""Validation accuracy that counts as having learned, of few texts or not; guessing has a half."""

GENERATED = 1000
HELD_OUT = 0.1
LONGEST = 60
"""Words of a text that are read."""

LONG = 120
"""Words of the long sequences."""

WIDTH = 64
BATCH = {True: 32, False: 64}
RATE = {True: 0.005, False: 0.003}
"""Texts of a batch, and Adam's learning rate, by whether there are few texts: steps are then few, too."""

SPREAD = 0.1
"""Standard deviation of the words' vectors at first; at torch's 1 what few texts teach is lost in it."""

DROPOUT = 0.5
CLIP = 1.0
POOLING = "attention=pooling"
GATES = {"input": BLUE, "forget": VERMILION, "output": GREEN, "cell": PURPLE}
ARRIVES_DB = -20.0
"""A tenth of the gradient."""

FIRST_AGREES = 20.0
"""Decibels by which the two may differ at the first of LONG words, where both are below -400: AGREES steps."""

AGREES = 4
"""Steps by which the gradient at the words' vectors and that at the states, which desat reads, may differ in reach."""


class Classifier(nn.Module):
    """Words' vectors, an LSTM, and two logits from its last step; takes numbers of words, (batch, time)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(WIDTH, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        states, _ = self.lstm(self.dropout(self.embedding(numbers)))
        return self.output(self.dropout(states[:, -1]))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as numbers, and their labels; training and held: places in them."""

    vocabulary: Vocabulary
    texts: list[list[int]]
    labels: list[int]
    training: np.ndarray
    held: np.ndarray
    origin: str


@dataclass(frozen=True)
class Run:
    """What was measured. saturated: by gate, its share at both ends at the sampled `steps`.

    by_word_db: gradient at each of LONG words against the last one's, in the fresh network, by autograd. reach: what
    desat reads of it, steps back to the state at which less than a hundredth arrives through time alone; first_db:
    what arrives at the first state.
    """

    history: History
    verdict: str
    steps: tuple[int, ...]
    saturated: dict[str, tuple[float, ...]]
    by_word_db: tuple[float, ...]
    reach: int
    first_db: float


def build(settings: Settings) -> Page:
    corpus = _corpus(settings)
    plain = _train(settings, corpus, (), 0.0)
    pooled = _train(settings, corpus, (POOLING,), 0.5)
    told = (
        f"{len(corpus.texts):,} reviews of your own"
        if corpus.origin
        else f"{len(corpus.texts):,} sentences that were generated from a few words, since `--data` names no reviews"
    )
    return Page(
        words=(
            f"An LSTM reads reviews word by word and says whether they are favourable. Here it learned from {told}; a "
            "tenth was held out.",
            "An LSTM's gates are sigmoids, fused in one kernel where nothing can be hung; desat runs some sequences "
            "again beside the training and reads each gate. The same network with `attention=pooling` weighs all "
            "steps instead of reading the last.",
        ),
        figures=(_history_picture(plain, pooled), _gate_picture(plain), _word_picture(plain, pooled)),
        statements=(_learned(settings, corpus, plain, pooled), _gates(plain), _long(plain, pooled)),
        readings=(
            Reading(
                "Hochreiter and Schmidhuber 1997, Long short-term memory", "https://doi.org/10.1162/neco.1997.9.8.1735"
            ),
            Reading("Pang and Lee 2005, Seeing stars", "https://aclanthology.org/P05-1015/"),
            Reading(
                "Bahdanau, Cho and Bengio 2015, Neural machine translation by jointly learning to align and translate",
                "https://arxiv.org/abs/1409.0473",
            ),
        ),
    )


def _corpus(settings: Settings) -> Corpus:
    settings.progress("reading the reviews", 0.0)
    found = None if settings.data is None else find_reviews(settings.data)
    reviews: Reviews = found or generated_reviews(GENERATED, settings.seed)
    most, _ = SIZES[settings.fast]
    order = np.random.default_rng(settings.seed).permutation(len(reviews.texts))[:most]
    held = max(1, int(HELD_OUT * len(order)))
    texts, labels = [reviews.texts[place] for place in order], [reviews.labels[place] for place in order]
    vocabulary = make_vocabulary(texts[held:], fewest=2, most=20_000)
    numbers = [vocabulary.encode(text, LONGEST) for text in texts]
    return Corpus(vocabulary, numbers, labels, np.arange(held, len(order)), np.arange(held), reviews.origin)


def _batch(corpus: Corpus, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Padded at the beginning, so that the last step is a word."""
    longest = max(len(corpus.texts[place]) for place in places)
    rows = [[PADDING] * (longest - len(corpus.texts[place])) + corpus.texts[place] for place in places]
    return torch.tensor(rows), torch.tensor([corpus.labels[place] for place in places])


def _batches(corpus: Corpus, places: np.ndarray, size: int) -> list[list[int]]:
    """Places by batch: of sixteen batches at a time those of like length together, so that there is little padding."""
    batches = []
    for begin in range(0, len(places), 16 * size):
        part = sorted(map(int, places[begin : begin + 16 * size]), key=lambda place: len(corpus.texts[place]))
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    return batches


def _train(settings: Settings, corpus: Corpus, remedies: tuple[str, ...], begun: float) -> Run:
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    is_small = settings.fast or not corpus.origin
    size, (_, epochs) = BATCH[is_small], SIZES[is_small]
    model = Classifier(len(corpus.vocabulary))
    apply(model, None, *remedies, batch=_batch(corpus, range(2))[0])
    by_word, reach, first = _through_time(model, corpus)
    steps = math.ceil(len(corpus.training) / size)

    def training(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = _batches(corpus, rng.permutation(corpus.training), size)
        for place in rng.permutation(len(batches)):
            yield _batch(corpus, batches[place])

    with fitted(
        model,
        torch.optim.Adam(model.parameters(), lr=RATE[is_small]),
        training,
        [_batch(corpus, places) for places in _batches(corpus, corpus.held, 4 * size)],
        Plan(epochs, patience=2, steps=steps, every=max(1, epochs * steps // 30)),
        clip=CLIP,
        tell=lambda what, share: settings.progress(what, begun + share / 2),
        what="LSTM, " + (", ".join(remedies) or "last step"),
    ) as (record, history):
        sampled, saturated = _gate_series(record)
        return Run(history, diagnose(record).verdict, sampled, saturated, by_word, reach, first)


def _gate_series(record: Record) -> tuple[tuple[int, ...], dict[str, tuple[float, ...]]]:
    steps: tuple[int, ...] = ()
    saturated = {}
    for site in record.sites("gate"):
        readings = record.readings(site)
        low, high = readings["saturated_low"], readings["saturated_high"]
        steps = tuple(map(int, low["step"]))
        saturated[site.name.rpartition(".")[2]] = tuple(map(float, low["value"] + high["value"]))
    return steps, saturated


def _through_time(model: nn.Module, corpus: Corpus) -> tuple[tuple[float, ...], int, float]:
    """Of the fresh network, on texts joined to LONG words: the gradient by word by autograd, and desat's readings."""
    words = [number for place in corpus.training for number in corpus.texts[place]]
    rows = max(1, min(4, len(words) // LONG))
    words = (words * math.ceil(rows * LONG / len(words)))[: rows * LONG]
    numbers, labels = torch.tensor(words).reshape(rows, LONG), torch.arange(rows) % 2
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    lstm = model.get_submodule("lstm")
    model.eval()  # a word that dropout leaves out would be seen as one without gradient
    handle = lstm.register_forward_pre_hook(keep)
    try:
        with trained(model, optimizer, [(numbers, labels)], 1) as record:
            readings = record.readings(record.sites("recurrent")[0])
    finally:
        handle.remove()
        model.train()
    gradient = kept[0].grad
    assert gradient is not None
    norms = gradient.double().square().mean((0, 2)).sqrt().numpy()
    levels = 20.0 * np.log10(np.maximum(norms, np.finfo(np.float32).smallest_subnormal) / norms[-1])
    reach, first = (float(readings[f"gradient_{name}"]["value"][0]) for name in ("reach_steps", "first_step_db"))
    return tuple(map(float, levels)), int(reach), first


def _learned(settings: Settings, corpus: Corpus, plain: Run, pooled: Run) -> Statement:
    one, other = plain.history.best_accuracy, pooled.history.best_accuracy
    is_small = settings.fast or not corpus.origin
    few = " So few texts are a start for one of the two at least; the whole size tells more." if is_small else ""
    return Statement(
        claim="The LSTM learns to tell them.",
        sentence=f"Of the {len(corpus.held):,} texts held out, the LSTM that reads its last step judges {one:.1%} "
        f"right, the one with attention pooling {other:.1%}, where guessing has about 50 %.{few}",
        holds=(max if is_small else min)(one, other) > NEEDED[is_small],
        values={"last_step": one, "pooled": other, "held_out": float(len(corpus.held))},
    )


def _gates(run: Run) -> Statement:
    last = {gate: shares[-1] for gate, shares in run.saturated.items()}
    most = max(max(shares) for gate, shares in run.saturated.items() if gate != "cell")
    return Statement(
        claim="Its gates are open, as they should be.",
        sentence="Saturated at the end of the training are "
        + ", ".join(f"{last[gate]:.1%} of the {gate} gate" for gate in ("input", "forget", "output"))
        + f"; at no time more than {most:.1%} of any, where desat calls a gate blocked from "
        f"{BLOCKED_GATE.value:.0%} on. Its verdict: {run.verdict}.",
        holds=most < BLOCKED_GATE.value and run.verdict != "error",
        values={**{f"{gate}_gate": share for gate, share in last.items()}, "most": most},
    )


def _long(plain: Run, pooled: Run) -> Statement:
    one, other = plain.by_word_db[0], pooled.by_word_db[0]
    reach = reach_of(plain.by_word_db)
    return Statement(
        claim="Over long sequences attention brings the gradient to the first words.",
        sentence=f"In a fresh network that reads {LONG} words, the first word gets {one:.0f} dB of the gradient that "
        f"the last one gets, as good as nothing; with attention pooling {other:+.1f} dB. A hundredth of it is left "
        f"after {reach} words by autograd, and after {plain.reach} steps by desat, which runs the LSTM again and finds "
        f"{plain.first_db:.0f} dB at its first state.",
        holds=one < 5 * ARRIVES_DB
        and other > ARRIVES_DB
        and abs(plain.reach - reach) <= AGREES
        and abs(plain.first_db - one) < FIRST_AGREES,
        values={
            "last_step_db": one,
            "pooled_db": other,
            "reach": float(plain.reach),
            "by_autograd": float(reach),
            "first_state_db": plain.first_db,
        },
    )


def reach_of(levels: Sequence[float]) -> int:
    """How many words back from the last one the gradient is first below a hundredth; all of them if it never is."""
    return next((back for back, level in enumerate(reversed(levels)) if level < -40.0), len(levels))


def _history_picture(plain: Run, pooled: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes, losses = canvas.subplots(1, 2)
        for run, colour, name in ((plain, VERMILION, "last step"), (pooled, BLUE, "attention")):
            epochs = range(1, run.history.epochs + 1)
            history = run.history
            axes.plot(epochs, [100 * share for share in history.validation_accuracy], "o-", color=colour, label=name)
            axes.plot(epochs, [100 * share for share in history.accuracy], "--", color=colour, linewidth=1.2)
            losses.plot(epochs, history.validation_loss, "o-", color=colour)
            losses.plot(epochs, history.loss, "--", color=colour, linewidth=1.2)
        for one, title in ((axes, "Accuracy, %"), (losses, "Cross entropy")):
            one.set(xlabel="epoch", title=title)
            one.set_xticks(range(1, max(plain.history.epochs, pooled.history.epochs) + 1))
        axes.legend(loc="best")

    return picture(
        "history",
        draw,
        alt=f"Accuracy and loss by epoch. Validation accuracy at its best {plain.history.best_accuracy:.1%} with the "
        f"last step, {pooled.history.best_accuracy:.1%} with attention.",
        caption="Solid: texts held out. Dashed: in training, with dropout.",
    )


def _gate_picture(run: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        most = max(max(shares) for shares in run.saturated.values())
        for gate, shares in run.saturated.items():
            axes.plot(run.steps, [100 * share for share in shares], color=GATES.get(gate), label=gate)
        axes.set(xlabel="step", ylabel="saturated, %", title="The LSTM's gates", ylim=(-0.5, max(5.0, 120 * most)))
        axes.legend(loc="upper left")

    return picture(
        "gates",
        draw,
        alt="Saturated share by gate over the steps; at the end "
        + ", ".join(f"{gate} {shares[-1]:.1%}" for gate, shares in run.saturated.items())
        + ".",
        caption="Share of values where the gate's slope is below 5 % of its maximum. The cell's is a tanh.",
    )


def _word_picture(plain: Run, pooled: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for run, colour, name in ((pooled, BLUE, "attention"), (plain, VERMILION, "last step")):
            axes.plot(range(1, LONG + 1), run.by_word_db, color=colour, label=name)
        axes.set(xlabel="word", ylabel="gradient, dB", title=f"Gradient by word of {LONG}, before training")
        axes.legend(loc="center left")

    return picture(
        "words",
        draw,
        alt=f"Gradient at each of {LONG} words against the last one's. Reading the last step it falls to "
        f"{plain.by_word_db[0]:.0f} dB at the first word; with attention it is {pooled.by_word_db[0]:+.1f} dB.",
        caption="Against the last word's; −20 dB is a tenth.",
    )


SLIDE = Slide(
    14,
    "sentiment",
    "Sentiment with an LSTM",
    build,
    rules=("saturated-gate",),
    remedies=(POOLING,),
    uses_data=True,
)
