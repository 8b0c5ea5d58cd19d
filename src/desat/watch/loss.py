"""The loss: taken where `backward()` is called on a scalar, at every step."""

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from desat.watch.trouble import Trouble

JUMP = 2.0
"""A loss this many times its running mean looks wrong, and the next step is sampled if the budget allows."""

MEMORY = 0.9
"""Weight of the past in the running mean of the loss."""


class LossTap:
    """Stands in for Tensor.backward from `install` to `uninstall`.

    On the CPU a loss is read at once; one on an accelerator is kept as it is and read when the record is written, so
    that no step waits for the device.
    """

    def __init__(self, trouble: Trouble, after_backward: Callable[[], None]) -> None:
        self.looks_wrong = False
        self._trouble = trouble
        self._after_backward = after_backward
        self._backward: Callable[..., Any] = Tensor.backward
        self._running: float | None = None
        self._seen: list[float | Tensor] = []

    def install(self) -> None:
        original = self._backward = Tensor.backward

        @functools.wraps(original)
        def backward(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            try:
                self._see(tensor)
            except Exception as error:
                self._trouble.report("the loss", error)
            result = original(tensor, *args, **kwargs)
            self._after_backward()
            return result

        Tensor.backward = backward  # pyright: ignore[reportAttributeAccessIssue]

    def uninstall(self) -> None:
        Tensor.backward = self._backward

    @property
    def seen(self) -> bool:
        """Whether a backward pass ran since the last `take`."""
        return bool(self._seen)

    def take(self) -> Callable[[], float | None]:
        """How to read the loss of the step: the mean over its backward passes, None where there was none."""
        seen, self._seen = self._seen, []
        return lambda: sum(float(loss) for loss in seen) / len(seen) if seen else None

    def _see(self, loss: Tensor) -> None:
        if type(loss) is not Tensor or loss.numel() != 1:
            return
        if loss.device.type != "cpu":
            self._seen.append(loss.detach().clone())
            return
        value = loss.detach().item()
        self._seen.append(value)
        running = value if self._running is None else self._running
        self.looks_wrong = not math.isfinite(value) or abs(value) > JUMP * abs(running) + 1e-12
        if math.isfinite(value):
            self._running = MEMORY * running + (1 - MEMORY) * value
