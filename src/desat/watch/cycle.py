"""The cycle of optimizers: with whose step a step of the training ends."""

import gc
import weakref
from collections.abc import Callable, Container, Iterable
from weakref import WeakSet

from torch.optim import Optimizer


class Cycle:
    """Which optimizers together make one step of the training.

    fixed: the one whose steps are counted. Without it they are those that live when one of them first steps, train a
    network that has run (its parameters are in `watched()`, by their ids), and share no parameter with it or each
    other, as a wrapper does with what it wraps. One that steps again before the others have stepped once (a critic, an
    unused optimizer beside it) counts alone from then on. A new one that begins a step begins another training.
    """

    def __init__(self, fixed: Optimizer | None, watched: Callable[[], Container[int]]) -> None:
        self._is_fixed = fixed is not None
        self._watched = watched
        self._members: WeakSet[Optimizer] = WeakSet()
        self._seen: WeakSet[Optimizer] = WeakSet()
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._leader: weakref.ref[Optimizer] | None = None
        self._is_alone = False
        if fixed is not None:
            self._begin(fixed, ())

    @property
    def leader(self) -> Optimizer | None:
        """The optimizer whose learning rate is that of the step, while it lives."""
        return self._leader() if self._leader is not None else None

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that make a step, as far as is known; none before the first has stepped."""
        return list(self._members)

    def ends_with(self, optimizer: Optimizer) -> bool:
        """Whether a step of the training ends with this step of an optimizer."""
        is_leader = self._leader is not None and optimizer is self._leader()
        # The short way for the most frequent case: one optimizer, and no other has stepped since it did.
        if self._is_fixed or (is_leader and self._is_alone):
            return is_leader
        if optimizer in self._stepped:
            self._begin(optimizer, ())
        elif not len(self._members) or (not len(self._stepped) and optimizer not in self._seen):
            self._begin(optimizer, [one for one in _beside(optimizer, self._watched()) if one not in self._seen])
        self._stepped.add(optimizer)
        if any(member not in self._stepped for member in self._members):
            self._is_alone = False
            return False
        self._stepped.clear()
        self._is_alone = len(self._members) == 1
        return True

    def _begin(self, leader: Optimizer, beside: Iterable[Optimizer]) -> None:
        self._leader = weakref.ref(leader)
        self._members = WeakSet([leader, *beside])
        self._seen |= self._members


def an_optimizer_lives() -> bool:
    """Whether the process holds any torch optimizer."""
    return next(iter(_living()), None) is not None


def held_by_optimizers() -> set[int]:
    """The parameters that any living torch optimizer of the process holds, by their ids."""
    return {
        id(parameter)
        for optimizer in _living()
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
    }


def _beside(optimizer: Optimizer, watched: Container[int]) -> list[Optimizer]:
    taken, found = _parameters(optimizer), []
    # At an unsampled step a new network has not been met; then all that live may be part of the cycle.
    is_met = any(parameter in watched for parameter in taken)
    for candidate in _living():
        own = _parameters(candidate)
        has_run = not is_met or any(parameter in watched for parameter in own)
        if own and has_run and own.isdisjoint(taken):
            taken |= own
            found.append(candidate)
    return found


def _living() -> Iterable[Optimizer]:
    # Asking an object for its class could run code of a proxy's; its type is what it is.
    return (candidate for candidate in gc.get_objects() if issubclass(type(candidate), Optimizer))


def _parameters(optimizer: Optimizer) -> set[int]:
    groups = getattr(optimizer, "param_groups", ())
    return {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}
