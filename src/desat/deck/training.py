"""What slides train: small networks on real data, watched by desat, and the record of it."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from desat.api import watch
from desat.deck.slide import Progress, require
from desat.record.reader import Record

Criterion = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]

DIGITS = Path("datasets", "data", "digits.csv.gz")
"""Of scikit-learn's folder."""

HELD_OUT = 0.25
"""Share of a data set that is kept for the test."""


@dataclass(frozen=True)
class Data:
    """Inputs (samples, features), float32 of zero mean and unit rms over all, and labels (samples,), int64."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def digits(seed: int) -> Data:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes; a quarter is held out.

    Raises MissingNeedError where scikit-learn is not installed. Source: Alpaydin and Kaynak 1998, UCI repository.
    """
    images, labels = _drawn_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    held = int(HELD_OUT * len(labels))
    inputs = torch.tensor(images[order], dtype=torch.float32)
    inputs = (inputs - inputs[held:].mean()) / inputs[held:].std()
    targets = torch.tensor(labels[order], dtype=torch.int64)
    return Data(inputs[held:], targets[held:], inputs[:held], targets[:held])


@cache
def _drawn_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (samples, 64), 0 to 16, and labels, float64, in the file's order.

    Read from the file in scikit-learn's folder: to import the package takes two seconds, for its optimizers and tests
    of statistics, in each process that makes slides. Through the package where the file lies elsewhere.
    """
    require("sklearn", "pip install 'desat[deck]'")
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None, "it was just required"
    for place in spec.submodule_search_locations or ():
        file = Path(place) / DIGITS
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.asarray(images), np.asarray(labels)


def batches(inputs: Tensor, labels: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `size` without end, shuffled anew in each epoch by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(labels), generator=generator).split(size):
            if len(chosen) == size:
                yield inputs[chosen], labels[chosen]


@contextlib.contextmanager
def trained(
    model: nn.Module,
    optimizer: Optimizer,
    source: Batches,
    steps: int,
    *,
    criterion: Criterion = nn.functional.cross_entropy,
    every: int = 1,
    before_step: Callable[[], object] | None = None,
    tell: Progress = lambda what, share: None,
    what: str = "training",
) -> Iterator[Record]:
    """Train for `steps` steps, watched at each `every`-th, and give the record, which is gone with the context.

    before_step: called between the backward pass and the optimizer's step, say to clip. tell: told `what` and the share
    of the steps that is done.
    """
    with tempfile.TemporaryDirectory(prefix="desat-deck-", ignore_cleanup_errors=True) as place:
        directory = Path(place) / "run"
        with watch(model, optimizer, every=every, run_dir=directory):
            for step, (inputs, targets) in enumerate(islice(source, steps)):
                tell(what, step / steps)
                optimizer.zero_grad()
                criterion(model(inputs), targets).backward()
                if before_step is not None:
                    before_step()
                optimizer.step()
        with Record(directory) as record:
            yield record


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of the samples whose largest output is their label; the model is left as it was."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        share = (model(inputs).argmax(-1) == labels).float().mean().item()
    model.train(was_training)
    return share


def stack(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers of the given widths with an activation after each but the last, as torch draws them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])
