"""The script's own metrics: what it tells by `desat.log`, from there to the record.

A value on an accelerator is kept as it is and read by the writer's thread, as losses are, so that no step waits for the
device. Names are text from outside: those that cannot be printed are refused, and their number and length are bounded.
"""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from desat.record.rows import Metric
from desat.record.writer import RecordWriter
from desat.watch.listeners import listeners
from desat.watch.trouble import Trouble, say

MOST_NAMES = 64
"""Metrics that a run can have: each may come at every step, so this bounds the record."""

LONGEST_NAME = 128
"""Characters of a metric's name."""

MOST_WAITING = 65_536
"""Values that wait for the writer's thread; beyond that the oldest are lost. It comes at least once a second."""

_USER = 6
"""How far the user's call of desat.log is from where a warning is given, in frames."""


class MetricTap:
    """Hears desat.log from `install` to `uninstall`. last_step: gives the number of the last step done, -1 for none.

    Where the process is a forked one, or not the first of torch.distributed, nothing is taken; nor is anything while
    compiled code runs, which a call to the outside would break into pieces.
    """

    def __init__(self, writer: RecordWriter, last_step: Callable[[], int]) -> None:
        self._writer = writer
        self._last_step = last_step
        self._process = os.getpid()
        self._began = time.perf_counter()
        self._trouble = Trouble()
        self._names: set[str] = set()
        self._warned: set[str] = set()
        self._waiting: deque[tuple[str, int, float | Tensor, float]] = deque(maxlen=MOST_WAITING)
        self._is_asked = False

    def install(self) -> None:
        self._began = time.perf_counter()
        listeners.append(self.take)

    def uninstall(self) -> None:
        if self.take in listeners:
            listeners.remove(self.take)

    def take(self, values: Mapping[str, SupportsFloat]) -> None:
        """Take the values by name; never raises for what they are."""
        if torch.compiler.is_compiling() or os.getpid() != self._process:
            return
        with self._trouble.kept_from_user("what desat.log is told"), torch._C.DisableTorchFunction():
            if not _is_first_process():
                return
            for name, value in values.items():
                self._take_one(name, value)

    def _take_one(self, name: str, value: SupportsFloat) -> None:
        if not _is_name(name):
            self._warn_once("a name", f"a name of 1 to {LONGEST_NAME} characters that can be printed was expected")
            return
        if name not in self._names and len(self._names) >= MOST_NAMES:
            self._warn_once("the number", f"only the first {MOST_NAMES} names are recorded, without {name!r}")
            return
        self._names.add(name)
        try:
            number = _number(value)
        except Exception:  # whatever a foreign __float__ raises
            self._warn_once(
                f"the value of {name}", f"{name} is not recorded: expected one number, got {type(value).__name__}"
            )
            return
        self._waiting.append((name, self._last_step(), number, time.perf_counter() - self._began))
        if not self._is_asked:  # one place in the writer's queue is enough for all that wait
            self._is_asked = True
            if not self._writer.put(self._rows):
                self._is_asked = False

    def _rows(self) -> list[Metric]:
        """Called by the writer's thread. The flag falls first, so that no value waits without being asked for."""
        self._is_asked = False
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return [Metric(name, step, _read(value), at) for name, step, value, at in waiting]

    def _warn_once(self, of: str, message: str) -> None:
        if of in self._warned:
            return
        self._warned.add(of)
        try:
            warnings.warn(f"desat.log: {message}", stacklevel=_USER)
        except Exception:  # where the script has made warnings errors, this one is said in another way
            say(f"desat.log: {message}")


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())


def _is_name(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()


def _number(value: object) -> float | Tensor:
    """A value as a number; of a tensor on an accelerator a copy. Raises whatever fits for what is no number."""
    if isinstance(value, Tensor):
        if _has_own_operations(value):  # to read a DTensor, say, may wait for the other processes
            raise TypeError
        if not value.is_cpu:
            if value.numel() != 1 or value.is_complex() or value.is_meta:
                raise TypeError
            return value.detach().clone()
        return float(value.item())
    if isinstance(value, (str, bytes, bytearray)):  # float() would read them
        raise TypeError
    item = getattr(value, "item", None)  # of an array with one element, which NumPy's float() warns of
    return float(item() if callable(item) else value)  # pyright: ignore[reportArgumentType]


def _has_own_operations(value: Tensor) -> bool:
    plain: Any = Tensor
    kind: Any = type(value)
    return kind.__torch_dispatch__ is not plain.__torch_dispatch__


def _read(value: float | Tensor) -> float | None:
    try:
        return float(value)
    except Exception:  # an error of the device is the training's own to meet
        return None
