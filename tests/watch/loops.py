"""Training loops for the tests of watching."""

from collections.abc import Callable

import torch
from torch import nn


def classify(steps: int = 3, batch: int = 8, shape: tuple[int, ...] = (6,), classes: int = 4) -> Callable[..., None]:
    """A loop that trains a classifier on random batches, the same ones each time."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            inputs = torch.randn(batch, *shape, generator=generator)
            labels = torch.randint(0, classes, (batch,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    return loop
