"""Slide 13: a convolutional network in PyTorch reads MNIST, watched, from the IDX files in the user's folder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from desat.deck.drawing import INK, VERMILION, picture
from desat.deck.fitting import Plan, fitted
from desat.deck.history import History, accuracy_picture, loss_picture
from desat.deck.idx import Images, find_images
from desat.deck.slide import Figure, MissingNeedError, Page, Reading, Settings, Slide, Statement, listed
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budgets
from desat.diagnose.rules.vanishing_gradient import LOST_GRADIENT
from desat.errors import DesatError
from desat.record.reader import Record

HOW_TO_GET_IT = (
    "needs a folder with MNIST's IDX files (t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or train-..., also as "
    ".gz): name it with --data FOLDER"
)

SIZES = {True: (768, 256, 3, 32), False: (8000, 2000, 3, 64)}
"""Images of the training and of the validation, epochs at most and images of a batch, fast or not."""

NEEDED = {True: 0.8, False: 0.97}
"""Accuracy that counts as having learned to read, fast or not."""

SMALLEST = 10
"""Pixels of a side that the two convolutions and poolings leave something of."""

SHOWN = 12
"""Digits in the picture."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images as float32 of (samples, 1, height, width), 0 to 1, and labels, int64; total: images in the file."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    total: int


@dataclass(frozen=True, eq=False)
class Run:
    """What was measured. budgets_db: of the gradient, from output to first layer, at the first and the last sample;
    pooling_db: the part of the poolings at the first. read: what the validation's images are taken for.
    """

    history: History
    verdict: str
    findings: tuple[str, ...]
    first_loss: float
    budgets_db: tuple[float, float]
    pooling_db: float
    read: Tensor


def build(settings: Settings) -> Page:
    data = _split(settings)
    run = _train(settings, data)
    return Page(
        words=(
            "Two convolutions, batch normalization, pooling, a dense layer and dropout, in PyTorch: a network of the "
            "usual kind on the handwritten digits that all of the field has begun with.",
            f"It was trained on {len(data.labels):,} of the folder's {data.total:,} images while desat watched, and "
            f"the best of {run.history.epochs} epochs was kept. That a sound training is called sound is half of what "
            "a diagnosis is good for.",
        ),
        figures=(loss_picture(run.history), accuracy_picture(run.history), _digits_picture(data, run)),
        statements=(_starts(run, data), _reads(settings, run, data), _sound(run, data)),
        readings=(
            Reading(
                "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition",
                "https://doi.org/10.1109/5.726791",
            ),
        ),
    )


def network(height: int, width: int, classes: int) -> nn.Sequential:
    """The network; takes (batch, 1, height, width), gives (batch, classes)."""
    rows, columns = (((side - 2) // 2 - 2) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, classes),
    )


def _split(settings: Settings) -> Split:
    """Training and validation from train-* and t10k-*, or both from the one that is there; chosen by the seed.

    Raises MissingNeedError without a folder or files in it, DesatError for files that are not as they should be.
    """
    if settings.data is None:
        raise MissingNeedError(HOW_TO_GET_IT)
    settings.progress("reading the images", 0.0)
    first, second = (find_images(settings.data, which) for which in ("train", "t10k"))
    training, validation = first or second, second if first else None
    if training is None:
        raise MissingNeedError(f"{HOW_TO_GET_IT}; none in {settings.data}")
    number, held, _, _ = SIZES[settings.fast]
    height, width = training.images.shape[1:]
    if min(height, width) < SMALLEST or (validation and validation.images.shape[1:] != (height, width)):
        raise DesatError(f"{settings.data}: expected images of one size, {SMALLEST} x {SMALLEST} pixels or more")
    order = np.random.default_rng(settings.seed).permutation(len(training.labels))
    held = min(held, len(order) // 5 if validation is None else len(validation.labels))
    if not held:
        raise DesatError(f"{settings.data}: expected at least five images, got {len(order)}")
    taken = _tensors(training, order[held:][:number] if validation is None else order[:number])
    kept = _tensors(training, order[:held]) if validation is None else _tensors(validation, np.arange(held))
    return Split(*taken, *kept, len(order))


def _tensors(images: Images, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images.images[chosen]).unsqueeze(1) / 255.0, torch.from_numpy(images.labels[chosen]).long()


def _train(settings: Settings, data: Split) -> Run:
    torch.manual_seed(settings.seed)
    _, _, epochs, size = SIZES[settings.fast]
    generator = torch.Generator().manual_seed(settings.seed)
    height, width = data.images.shape[2:]
    classes = int(max(data.labels.max(), data.validation_labels.max())) + 1
    model = network(height, width, classes)

    def training(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(data.labels), generator=generator).split(size):
            yield data.images[chosen], data.labels[chosen]

    validation = list(zip(data.validation_images.split(250), data.validation_labels.split(250), strict=True))
    steps = math.ceil(len(data.labels) / size)
    with fitted(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        training,
        validation,
        Plan(epochs, patience=2, steps=steps, every=max(1, epochs * steps // 30)),
        tell=settings.progress,
    ) as (record, history):
        return _measured(record, history, _read(model, data))


def _read(model: nn.Module, data: Split) -> Tensor:
    """What the network takes the validation's images for."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images).argmax(-1) for images in data.validation_images.split(250)])


def _measured(record: Record, history: History, read: Tensor) -> Run:
    diagnosis = diagnose(record)
    budgets = measure_link_budgets(record)
    return Run(
        history=history,
        verdict=diagnosis.verdict,
        findings=diagnosis.codes("error", "warning"),
        first_loss=float(record.steps()["loss"][0]),
        budgets_db=(budgets[0].total_db, budgets[-1].total_db),
        pooling_db=sum(link.gain_db for link in budgets[0].links if link.operation == "MaxPool2d"),
        read=read,
    )


def _starts(run: Run, data: Split) -> Statement:
    classes = int(data.labels.max()) + 1
    guessing = math.log(classes)
    return Statement(
        claim="It begins at guessing.",
        sentence=f"The first batch's loss is {run.first_loss:.2f}; one answer for all, a share of 1/{classes} for each "
        f"class, has ln {classes} = {guessing:.2f}.",
        holds=abs(run.first_loss - guessing) < 0.5,
        values={"first_loss": run.first_loss, "guessing": guessing},
    )


def _reads(settings: Settings, run: Run, data: Split) -> Statement:
    share = run.history.best_accuracy
    wrong = int((run.read != data.validation_labels).sum())
    return Statement(
        claim="It learns to read.",
        sentence=f"Of {len(data.validation_labels):,} images that it was not trained on it reads {share:.1%} as they "
        f"are labelled, all but {wrong}, after {run.history.best + 1} epochs.",
        holds=share > NEEDED[settings.fast],
        values={
            "accuracy": share,
            "wrong": float(wrong),
            "images": float(len(data.validation_labels)),
            "epochs": float(run.history.epochs),
        },
    )


def _sound(run: Run, data: Split) -> Statement:
    first, last = run.budgets_db
    height, width = data.images.shape[2:]
    expected = expected_pooling_db(height, width)
    said = "healthy" if run.verdict == "healthy" else listed(run.findings)
    return Statement(
        claim="desat finds nothing wrong with it.",
        sentence=f"It calls the training {said}. On its way from the output to the first convolution the gradient "
        f"changes by {first:+.1f} dB at the first step and by {last:+.1f} dB at the last one measured. The two "
        f"poolings, which hand it to one input of four, take {-run.pooling_db:.2f} dB; counted, {-expected:.2f}.",
        holds=run.verdict == "healthy"
        and min(first, last) > LOST_GRADIENT.value
        and abs(run.pooling_db - expected) < 0.1,
        values={
            "healthy": float(run.verdict == "healthy"),
            "first_db": first,
            "last_db": last,
            "pooling_db": run.pooling_db,
            "by_counting_db": expected,
        },
    )


def expected_pooling_db(height: int, width: int) -> float:
    """Decibels of the rms that the two poolings take: of a window's inputs one alone gets a gradient."""
    decibels = 0.0
    for _ in range(2):
        height, width = height - 2, width - 2
        decibels += 10.0 * math.log10((height // 2) * (width // 2) / (height * width))
        height, width = height // 2, width // 2
    return decibels


def _digits_picture(data: Split, run: Run) -> Figure:
    """Some that it misreads, and others."""
    wrong = (run.read != data.validation_labels).nonzero().flatten()[: SHOWN // 2].tolist()
    right = (run.read == data.validation_labels).nonzero().flatten()[: SHOWN - len(wrong)].tolist()
    shown = [(place, data.validation_labels[place].item(), run.read[place].item()) for place in wrong + right]

    def draw(canvas: Canvas) -> None:
        grid = canvas.subplots(2, SHOWN // 2, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (place, label, read) in zip(grid.flat, shown, strict=False):
            axes.imshow(data.validation_images[place, 0].numpy(), cmap="gray_r", vmin=0.0, vmax=1.0)
            told = f"{label} as {read}" if label != read else f"{read}"
            axes.set_title(told, loc="center", color=VERMILION if label != read else INK)

    return picture(
        "digits",
        draw,
        alt="Images of the validation. "
        + ", ".join(f"a {label} read as {read}" for _, label, read in shown if label != read)
        + f"{'; ' if wrong else ''}{len(right)} read as they are labelled.",
        caption="First those that it misreads, as what it reads them.",
    )


SLIDE = Slide(13, "mnist", "MNIST in PyTorch", build, rules=("dead-units", "vanishing-gradient"), uses_data=True)
