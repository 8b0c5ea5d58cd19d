"""A session: one watched training from its first step to its finished record."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from desat.record.writer import RecordWriter
from desat.watch.metric_tap import MetricTap
from desat.watch.modules import Network
from desat.watch.schedule import Schedule
from desat.watch.taps import FirstForward
from desat.watch.watcher import Watcher


class Session:
    """Starts a watcher that writes to `writer`, and notes what the run is."""

    def __init__(
        self,
        writer: RecordWriter,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        budget: float = 0.01,
        every: int | None = None,
        first_forward: FirstForward | None = None,
        curvature: bool = False,
        stop_after: int | None = None,
    ) -> None:
        self.writer = writer
        network = Network() if model is None else Network(model)
        first_forward = first_forward or _as_given
        schedule = Schedule(budget, every)
        self.watcher = Watcher(writer, network, schedule, optimizer, first_forward, curvature, stop_after)
        writer.note(torch=torch.__version__, device=_device(), budget=budget, every=every)
        self._metrics = MetricTap(writer, lambda: self.watcher.steps - 1)
        self.watcher.start()
        self._metrics.install()

    def finish(self) -> None:
        """Remove every hook and note the last figures; the writer is left open for its owner."""
        self._metrics.uninstall()
        self.watcher.stop()
        self.writer.note(dropped=self.writer.dropped)


def _as_given(root: nn.Module, args: tuple[Any, ...]) -> None:
    """Leaves the first forward pass as it is."""


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"
