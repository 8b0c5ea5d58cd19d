"""The loss: taken where `backward()` is called on a scalar, at every step."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from desat.watch.stand_in import StandIn
from desat.watch.trouble import Trouble

JUMP = 2.0
"""A loss this many times its running mean looks wrong, and the next step is sampled if the budget allows."""

MEMORY = 0.9
"""Weight of the past in the running mean of the loss."""


Loss = float | Tensor


def mean_loss(losses: list[Loss]) -> float | None:
    """The mean over the backward passes of a step, None where there was none; it may wait for the device."""
    return sum(float(loss) for loss in losses) / len(losses) if losses else None


class LossTap:
    """Stands in for Tensor.backward while its `stand_in` is installed.

    On the CPU a loss is read at once; one on an accelerator is kept as it is and read when the record is written, so
    that no step waits for the device. unscaled: gives a loss without the factor that a scaler put into it. While
    `quiet` is set nobody is told of a backward pass, and only its loss is kept.
    """

    def __init__(
        self,
        trouble: Trouble,
        before_backward: Callable[[Tensor], None],
        after_backward: Callable[[], None],
        unscaled: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.looks_wrong = False
        self.quiet = False
        self._trouble = trouble
        self._before_backward = before_backward
        self._after_backward = after_backward
        self._unscaled = unscaled
        self._inside: set[int] = set()
        self._running: float | None = None
        self._seen: list[Loss] = []
        self.stand_in = StandIn(Tensor, "backward", self._around)

    def _around(self, original: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Where a function mode is active (a default device, say), the original comes back here once.
        thread = threading.get_ident()
        if thread in self._inside:
            return original(tensor, *args, **kwargs)
        try:
            self._see(tensor)
        except Exception as error:
            self._trouble.report("the loss", error)
        if not self.quiet:
            self._before_backward(tensor)
        self._inside.add(thread)
        try:
            result = original(tensor, *args, **kwargs)
        finally:
            self._inside.discard(thread)
        if not self.quiet:
            self._after_backward()
        return result

    @property
    def seen(self) -> bool:
        """Whether a backward pass ran since the last `take`."""
        return bool(self._seen)

    def take(self) -> list[Loss]:
        """The losses of the step, one for each backward pass; see `mean_loss`."""
        seen, self._seen = self._seen, []
        return seen

    def _see(self, loss: Tensor) -> None:
        loss = self._unscaled(loss)
        if type(loss) is not Tensor or loss.numel() != 1:
            return
        if not loss.is_cpu:
            self._seen.append(loss.detach().clone())
            return
        value: float = loss.item()
        self._seen.append(value)
        running = self._running
        if value - value != 0.0:  # nan or infinite
            self.looks_wrong = True
        elif running is None:
            self._running = value
        else:
            self.looks_wrong = abs(value) > JUMP * abs(running) + 1e-12
            self._running = MEMORY * running + (1 - MEMORY) * value
