"""Slide 15: the seven techniques on one sick network, each alone, all together, and all but one."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from desat.api import apply
from desat.cure.judgement import mean_and_interval
from desat.deck.drawing import BLUE, GREEN, INK, VERMILION, picture
from desat.deck.slide import Figure, Page, Settings, Slide, Statement
from desat.deck.training import Data, accuracy, batches, digits, trained
from desat.diagnose.engine import diagnose

TECHNIQUES = {
    "activation": "activation=relu",
    "normalization": "normalization=layer",
    "initialization": "initialization=he",
    "clipping": "clipping=1.0",
    "optimizer": "optimizer=adam:0.01",
    "residual": "residual=skip",
    "attention": "attention=pooling",
}
BATCH = 32
WIDTH = 32

Treatment = tuple[str, ...]
"""Names of techniques that are applied together."""

ALL: Treatment = tuple(TECHNIQUES)

Verdict = tuple[str, tuple[str, ...]]
"""What desat says of a training, and the codes of the errors that it finds."""


@dataclass(frozen=True)
class Size:
    """depth: sigmoid layers before the LSTM. seeds: trainings of each treatment. without_one: all but one, too."""

    depth: int
    steps: int
    seeds: int
    without_one: bool


FAST = Size(depth=6, steps=60, seeds=1, without_one=False)
FULL = Size(depth=6, steps=120, seeds=3, without_one=True)


class Reader(nn.Module):
    """Reads a digit row by row: sigmoid layers for each row, an LSTM over the rows, the last state decides."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        widths = [8, *[WIDTH] * depth]
        self.rows = nn.Sequential(
            *(part for before, after in pairwise(widths) for part in (nn.Linear(before, after), nn.Sigmoid()))
        )
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.output = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.recurrent(self.rows(images.view(-1, 8, 8)))
        return self.output(states[:, -1])


def build(settings: Settings) -> Page:
    size = FAST if settings.fast else FULL
    data = digits(settings.seed)
    treatments = _treatments(size)
    reached: dict[Treatment, list[float]] = {}
    verdicts: dict[Treatment, Verdict] = {}
    for place, treatment in enumerate(treatments):
        settings.progress(_name(treatment), place / len(treatments))
        seeds = [settings.seed + seed for seed in range(size.seeds)]
        reached[treatment] = []
        if treatment in ((), ALL):  # desat's watching changes nothing in a training: its accuracy counts as well
            share, verdicts[treatment] = _watched(data, treatment, size, seeds.pop(0))
            reached[treatment].append(share)
        reached[treatment] += [_accuracy(data, treatment, size, seed) for seed in seeds]
    return Page(
        words=(
            f"One network with all the troubles at once reads digits row by row: {size.depth} sigmoid layers, then an "
            "LSTM whose last state decides, trained by plain gradient descent. Each of the seven techniques is applied "
            "to it alone, as `desat run --apply` would, then all together"
            + (", then all but one." if size.without_one else "."),
            "What helps alone is what mends the worst fault; what is missed most when it is left out is what the "
            "others do not replace. Accuracies are of digits that were held out.",
        ),
        figures=tuple(_pictures(reached, size)),
        statements=(_sick(reached, verdicts), _alone(reached, without_effect(size.depth, data.inputs[:BATCH]))),
    )


def _treatments(size: Size) -> list[Treatment]:
    alone = [(name,) for name in ALL]
    without = [tuple(other for other in ALL if other != name) for name in ALL] if size.without_one else []
    return [(), *alone, ALL, *without]


def without_effect(depth: int, batch: Tensor) -> tuple[str, ...]:
    """The techniques that find nothing in the network that they could change safely."""
    idle = []
    for name, remedy in TECHNIQUES.items():
        model = Reader(depth)
        changes = apply(model, torch.optim.SGD(model.parameters(), lr=0.1), remedy, batch=batch)
        if all(change.refused is not None for change in changes):
            idle.append(name)
    return tuple(idle)


def _made(data: Data, treatment: Treatment, size: Size, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Reader(size.depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if treatment:
        apply(model, optimizer, *(TECHNIQUES[name] for name in treatment), batch=data.inputs[:BATCH])
    return model, optimizer


def _accuracy(data: Data, treatment: Treatment, size: Size, seed: int) -> float:
    model, optimizer = _made(data, treatment, size, seed)
    for inputs, labels in islice(batches(data.inputs, data.labels, BATCH, seed), size.steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return accuracy(model, data.test_inputs, data.test_labels)


def _watched(data: Data, treatment: Treatment, size: Size, seed: int) -> tuple[float, Verdict]:
    """The same with desat's verdict."""
    model, optimizer = _made(data, treatment, size, seed)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, size.steps, every=10) as record:
        found = diagnose(record)
    return accuracy(model, data.test_inputs, data.test_labels), (found.verdict, found.codes("error"))


def _name(treatment: Treatment) -> str:
    if len(treatment) == len(ALL):
        return "all seven"
    if len(treatment) == len(ALL) - 1:
        (missing,) = set(ALL) - set(treatment)
        return f"all but {missing}"
    return " ".join(treatment) or "none"


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def _said(values: Sequence[float]) -> str:
    """The mean, and Student's interval of it where there are several."""
    mean, interval = mean_and_interval(torch.tensor(values, dtype=torch.float64).numpy())
    return f"{mean:.0%}" + (f" ({interval[0]:.0%} to {min(interval[1], 1.0):.0%})" if interval is not None else "")


def _sick(reached: dict[Treatment, list[float]], verdicts: dict[Treatment, Verdict]) -> Statement:
    before, after = _mean(reached[()]), _mean(reached[ALL])
    verdict, codes = verdicts[()]
    said = f"{verdict}: {', '.join(codes)}" if codes else verdict
    return Statement(
        claim="The network is sick, and all seven techniques together heal it.",
        sentence=f"Untreated it reaches {_said(reached[()])}, where guessing gives 10%, and desat's verdict is "
        f"{said}. With all seven it reaches {_said(reached[ALL])}; the verdict then is {verdicts[ALL][0]}.",
        holds=before < 0.3 and after > before + 0.3 and verdict == "error" and verdicts[ALL][0] != "error",
        values={"before": before, "after": after, "errors_before": float(len(codes))},
    )


def _alone(reached: dict[Treatment, list[float]], without: tuple[str, ...]) -> Statement:
    gains = {name: _mean(reached[(name,)]) - _mean(reached[()]) for name in ALL}
    best = max(gains, key=lambda name: gains[name])
    idle = [name for name in ALL if gains[name] < 0.1 and name not in without]
    together = _mean(reached[ALL])
    return Statement(
        claim="No single technique does what all do together.",
        sentence=f"Alone, {best} helps most: {100 * gains[best]:.0f} points, to {_said(reached[(best,)])}, where all "
        f"seven reach {together:.0%}. By itself "
        + (f"{', '.join(idle)} brings less than 10 points." if idle else "each other brings more than 10 points.")
        + "".join(
            f" `{TECHNIQUES[name]}` leaves this network as it is: nothing in it can be changed safely."
            for name in without
        ),
        holds=together > max(_mean(reached[(name,)]) for name in ALL),
        values={**{f"gain_of_{name}": gain for name, gain in gains.items()}, "together": together},
    )


def _pictures(reached: dict[Treatment, list[float]], size: Size) -> list[Figure]:
    base, top = _mean(reached[()]), _mean(reached[ALL])
    alone = {name: _mean(reached[(name,)]) for name in ALL}
    figures = [_bars("alone", "Each technique alone", alone, {"none": base, "all seven": top}, BLUE)]
    if size.without_one:
        missing = {name: _mean(reached[tuple(other for other in ALL if other != name)]) for name in ALL}
        figures.append(_bars("without", "All but one", missing, {"none": base, "all seven": top}, GREEN))
    return figures


def _bars(name: str, title: str, values: dict[str, float], lines: dict[str, float], colour: str) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        places = range(len(values))
        axes.barh(places, [100 * value for value in values.values()], color=colour, height=0.6)
        for place, value in zip(places, values.values(), strict=True):
            axes.text(100 * value + 1.5, place, f"{value:.0%}", va="center", color=INK)
        for (word, value), shade in zip(lines.items(), (VERMILION, INK), strict=True):
            axes.axvline(100 * value, color=shade, linestyle="--", linewidth=1.0, label=f"{word}: {value:.0%}")
        axes.set_yticks(places, list(values))
        axes.invert_yaxis()
        axes.set(xlim=(0, 118), xlabel="accuracy, %", title=title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    return picture(
        name,
        draw,
        alt=f"{title}, accuracy: "
        + ", ".join(f"{word} {value:.0%}" for word, value in values.items())
        + "; "
        + ", ".join(f"{word} {value:.0%}" for word, value in lines.items())
        + ".",
        caption="Held-out accuracy; dashed: without any technique, and with all seven.",
    )


SLIDE = Slide(
    15,
    "techniques",
    "All techniques",
    build,
    rules=("vanishing-gradient", "saturated-activation", "loss-plateau"),
    remedies=tuple(TECHNIQUES.values()),
    length=2,
)
