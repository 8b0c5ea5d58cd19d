"""What the real-life slides train: epochs with a validation after each, and an end when that gets no better."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from desat.deck.history import History
from desat.deck.slide import Progress
from desat.deck.training import Batches, trained
from desat.record.reader import Record


@dataclass(frozen=True)
class Plan:
    """How long to train. most: epochs at most; patience: epochs without a smaller validation loss that end it.

    steps: of an epoch, at most; the training ends with most * steps. every: sample each `every`-th step.
    """

    most: int
    patience: int
    steps: int
    every: int = 1


@contextlib.contextmanager
def fitted(
    model: nn.Module,
    optimizer: Optimizer,
    training: Callable[[int], Batches],
    validation: Sequence[tuple[Tensor, Tensor]],
    plan: Plan,
    *,
    clip: float | None = None,
    tell: Progress = lambda what, share: None,
    what: str = "training",
) -> Iterator[tuple[Record, History]]:
    """Train a classifier by cross entropy, watched, and give the record and the history; the best epoch's state stays.

    training: the batches of an epoch, by its number from 0. validation: batches. clip: the largest norm of the
    gradient. The record is gone with the context.
    """
    history = History()
    seen = _Tally()
    best: list[dict[str, Tensor]] = []

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        seen.add(loss.detach(), outputs.detach(), targets)
        return loss

    def source() -> Batches:
        for epoch in range(plan.most):
            yield from training(epoch)
            _close_epoch(model, validation, history, seen)
            if history.best == epoch:
                best[:] = [copy.deepcopy(model.state_dict())]
            elif epoch - history.best >= plan.patience:
                return

    with trained(
        model,
        optimizer,
        source(),
        plan.most * plan.steps + 1,  # the last epoch is closed when the batch after it is asked for
        criterion=criterion,
        every=plan.every,
        before_step=None if clip is None else lambda: nn.utils.clip_grad_norm_(model.parameters(), clip),
        tell=tell,
        what=what,
    ) as record:
        model.load_state_dict(best[0])
        yield record, history


def measure(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross entropy and accuracy over batches, without dropout; the model is left as it was."""
    was_training = model.training
    model.eval()
    tally = _Tally()
    with torch.no_grad():
        for inputs, targets in batches:
            outputs = model(inputs)
            tally.add(nn.functional.cross_entropy(outputs, targets), outputs, targets)
    model.train(was_training)
    return tally.take()


@dataclass
class _Tally:
    """Sums over samples."""

    loss: float = 0.0
    hits: float = 0.0
    samples: int = 0

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self.loss += float(loss) * len(targets)
        self.hits += float((outputs.argmax(-1) == targets).sum())
        self.samples += len(targets)

    def take(self) -> tuple[float, float]:
        """Mean loss and accuracy so far, and begin anew."""
        means = (self.loss / self.samples, self.hits / self.samples)
        self.loss, self.hits, self.samples = 0.0, 0.0, 0
        return means


def _close_epoch(model: nn.Module, validation: Batches, history: History, seen: _Tally) -> None:
    for means, losses, accuracies in (
        (seen.take(), history.loss, history.accuracy),
        (measure(model, validation), history.validation_loss, history.validation_accuracy),
    ):
        losses.append(means[0])
        accuracies.append(means[1])
