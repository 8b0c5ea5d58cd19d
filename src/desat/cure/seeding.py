"""Seeds for a whole script, so that trials with the same seed see the same batches and trials with others do not.

Python, NumPy and PyTorch are seeded before the script runs, and the workers of a DataLoader follow from PyTorch's seed.
Where the script seeds itself, the seed is added to its own: with 0 a script that seeds stays as it is, and each other
seed gives another run. Generators that a script makes of a seed by itself (random.Random(0), np.random.default_rng(0),
scikit-learn's random_state) are left, and so are seeds that are no integers.
"""

import contextlib
import functools
import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from desat.watch.script import when_imported

NUMPY_SEEDS = 2**32
"""numpy.random.seed takes less than this."""

TORCH_SEEDS = 2**64
"""torch.manual_seed takes less than this."""

_OF_TORCH = (
    ("torch", "manual_seed"),
    ("torch.random", "manual_seed"),
    ("torch.cuda", "manual_seed"),
    ("torch.cuda", "manual_seed_all"),
    ("torch.cuda.random", "manual_seed"),
    ("torch.cuda.random", "manual_seed_all"),
)
"""Where PyTorch's seeding stands: the module, and the function in it."""


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed all that runs inside, by a number from 0; with None nothing is done. Functions are put back at the end."""
    if seed is None:
        yield
        return
    seeds = _Seeds(seed)
    seeds.start()
    try:
        yield
    finally:
        seeds.put_back()


class _Seeds:
    """Seeds what is imported, and stands in for the functions that a script would seed with."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._replaced: list[tuple[Any, str, Any]] = []
        self._over = False
        self._inside = threading.local()  # torch.manual_seed calls those of its devices: they must not add once more

    def start(self) -> None:
        random.seed(self._seed)
        self._shift(random, "seed", None)
        when_imported("numpy", self._start_numpy)
        when_imported("torch", self._start_torch)

    def put_back(self) -> None:
        self._over = True
        while self._replaced:
            setattr(*self._replaced.pop())

    def _start_numpy(self) -> None:
        if self._over:
            return
        from numpy import random as numpy_random

        numpy_random.seed(self._seed % NUMPY_SEEDS)
        self._shift(numpy_random, "seed", NUMPY_SEEDS)

    def _start_torch(self) -> None:
        if self._over:
            return
        import torch

        torch.manual_seed(self._seed)
        for module, name in _OF_TORCH:
            self._shift(sys.modules[module], name, TORCH_SEEDS)
        if self._seed:
            self._replace(torch, "Generator", _shifted_generator(torch.Generator, self._shifted))

    def _shift(self, module: Any, name: str, below: int | None) -> None:
        """Let a seeding function add the seed; with seed 0 it is left as it is."""
        original = getattr(module, name)
        if not self._seed:
            return

        @functools.wraps(original)
        def shifted(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "seeding", False):
                return original(*args, **kwargs)
            self._inside.seeding = True
            try:
                if args:
                    args = (self._shifted(args[0], below), *args[1:])
                elif kwargs:
                    first = next(iter(kwargs))
                    kwargs[first] = self._shifted(kwargs[first], below)
                return original(*args, **kwargs)
            finally:
                self._inside.seeding = False

        self._replace(module, name, shifted)

    def _shifted(self, own: Any, below: int | None) -> Any:
        """The script's own seed with ours added to it, below a limit; what is no integer is left."""
        try:
            number = operator.index(own)
        except TypeError:
            return own
        total = number + self._seed
        return total if below is None or number < 0 else total % below

    def _replace(self, module: Any, name: str, new: Any) -> None:
        self._replaced.append((module, name, getattr(module, name)))
        setattr(module, name, new)


def _shifted_generator(original: type, shifted: Callable[[Any, int | None], Any]) -> type:
    """torch.Generator, whose seeding is written in C and cannot be replaced, with one that adds to the seed."""

    class OfEither(type(original)):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, original)

    class Generator(original, metaclass=OfEither):  # pyright: ignore[reportGeneralTypeIssues]
        def manual_seed(self, seed: Any) -> Any:
            return super().manual_seed(shifted(seed, TORCH_SEEDS))  # pyright: ignore[reportAttributeAccessIssue]

    # By this name it is pickled, and is found as the original by a process that is not seeded.
    Generator.__module__, Generator.__qualname__ = "torch", "Generator"
    return Generator
