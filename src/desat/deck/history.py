"""The history of a training by epochs, and its picture."""

import math
from dataclasses import dataclass, field

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from desat.deck.drawing import BLUE, VERMILION, picture
from desat.deck.slide import Figure


@dataclass
class History:
    """Mean loss and accuracy of each epoch: in training, as its batches came, and on the validation set after it."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return len(self.validation_loss)

    @property
    def best(self) -> int:
        """The epoch, from 0, whose validation loss is the smallest; one that is not finite counts as infinite."""
        return min(range(self.epochs), key=lambda epoch: _or_infinite(self.validation_loss[epoch]))

    @property
    def best_accuracy(self) -> float:
        """The validation accuracy of the best epoch."""
        return self.validation_accuracy[self.best]


def loss_picture(history: History, title: str = "Loss") -> Figure:
    """Loss by epoch, in training and on the validation set, with the best epoch marked."""
    return _picture("loss", history, title, history.loss, history.validation_loss, "cross entropy", 1.0)


def accuracy_picture(history: History, title: str = "Accuracy") -> Figure:
    """Accuracy by epoch, in training and on the validation set, with the best epoch marked."""
    return _picture("accuracy", history, title, history.accuracy, history.validation_accuracy, "accuracy, %", 100.0)


def _picture(
    name: str, history: History, title: str, training: list[float], validation: list[float], unit: str, scale: float
) -> Figure:
    epochs = range(1, history.epochs + 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(epochs, [scale * value for value in training], "o-", color=BLUE, label="training")
        axes.plot(epochs, [scale * value for value in validation], "o-", color=VERMILION, label="validation")
        chosen = (history.best + 1, scale * validation[history.best])
        axes.plot(*chosen, "o", color=VERMILION, markersize=12, fillstyle="none", label="kept")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=unit, title=title)
        axes.legend(loc="best")

    return picture(
        name,
        draw,
        alt=f"{title} by epoch, {history.epochs} epochs. In training from {scale * training[0]:.3g} to "
        f"{scale * training[-1]:.3g}; on the validation set {scale * validation[0]:.3g} at first and "
        f"{scale * validation[history.best]:.3g} in epoch {history.best + 1}, which is kept.",
        caption="In training with dropout, as the batches came; validation after the epoch, without.",
    )


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
