from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import desat
from desat.record.reader import Record

Loop = Callable[[nn.Module, torch.optim.Optimizer], None]


@pytest.fixture
def watched(tmp_path: Path) -> Callable[..., Record]:
    """Runs a loop under desat.watch, every step sampled, and gives the record."""

    def run(model: nn.Module, loop: Loop, optimizer: torch.optim.Optimizer | None = None, every: int = 1) -> Record:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        with desat.watch(model, optimizer, every=every, run_dir=tmp_path / "run"):
            loop(model, optimizer)
        return Record(tmp_path / "run")

    return run


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
