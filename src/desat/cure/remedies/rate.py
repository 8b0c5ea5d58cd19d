"""The learning rate of a step, changed around it: what the script and its schedulers set is what they go on to see.

A group's `lr` holds another value from just before the step until all hooks after it have run, so that whatever watches
the step records the rate that it was made with. A copy of the optimizer, which torch makes without its hooks, has the
script's rates alone.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

Rate = float | Tensor

Rule = Callable[[int, int, Rate], Rate]
"""From the number of the step (0 is the first), that of the parameter group, and the script's rate: the step's rate."""

RANGE_STEPS = 100
"""Steps of a ramp. Source: Smith 2017, section 3.3, has some epochs; a trial has to be short, and 100 steps over six
orders of magnitude are a factor of 1.15 from one step to the next."""

RANGE_LOW = 1e-6
"""First rate of a ramp."""

RANGE_WIDTH = 1e6
"""How many times the first rate of a ramp the last one is, which is 1 then: few trainings survive it."""


class _Governor:
    """Sets the rates of one optimizer before its step and puts them back after it."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._step = 0
        self._held: list[tuple[dict[str, Any], Rate, Rate]] = []

    @_disable_dynamo
    def begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._put_back()  # of a step that ended in an error
        _come_last()
        for number, group in enumerate(optimizer.param_groups):
            own = group["lr"]
            used = self._rule(self._step, number, own)
            group["lr"] = used
            self._held.append((group, own, used))

    def end(self) -> None:
        self._step += 1
        self._put_back()

    def _put_back(self) -> None:
        for group, own, used in self._held:
            if group["lr"] is used:
                group["lr"] = own
        self._held.clear()


_governors: "WeakKeyDictionary[Optimizer, _Governor]" = WeakKeyDictionary()
_handles: list[RemovableHandle] = []


def govern(optimizer: Optimizer, rule: Rule) -> None:
    """Make each step of an optimizer with the rates of a rule. One rule is all that an optimizer can have."""
    governor = _governors[optimizer] = _Governor(rule)
    optimizer.register_step_pre_hook(governor.begin)
    if not _handles:
        _handles.append(register_optimizer_step_post_hook(_after_any))


def is_governed(optimizer: Optimizer) -> bool:
    return optimizer in _governors


@_disable_dynamo
def _after_any(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    governor = _governors.get(optimizer)
    if governor is not None:
        governor.end()


def _come_last() -> None:
    """Have the rates put back after all other hooks have run, those that were registered since included."""
    hooks: Any = _handles[0].hooks_dict_ref()
    if hooks is not None:
        hooks.move_to_end(_handles[0].id)


def factor(times: float) -> Rule:
    """The script's rate times a factor."""
    return lambda step, group, own: own * times


def warmup(steps: int) -> Rule:
    """The script's rate times 1/steps at the first step, 2/steps at the second, and so on up to the whole of it."""
    return lambda step, group, own: own * min(1.0, (step + 1) / steps)


def hold() -> Rule:
    """The script's rate at the first step, whatever it sets later; a group that comes later holds its own first."""
    first: dict[int, Rate] = {}

    def rule(step: int, group: int, own: Rate) -> Rate:
        if group not in first:
            first[group] = own.detach().clone() if isinstance(own, Tensor) else own
        return first[group]

    return rule


def ramp(steps: int, references: list[float]) -> Rule:
    """Exponentially from RANGE_LOW to RANGE_WIDTH times it in so many steps, whatever the script sets; then no further.

    references: a rate of each group; the first group's rate is that of the ramp, and the others keep their ratio to it.
    """

    def rule(step: int, group: int, own: Rate) -> Rate:
        rate = RANGE_LOW * RANGE_WIDTH ** min(1.0, step / max(1, steps - 1))
        rate *= references[group] / references[0] if group < len(references) else 1.0
        return own * 0 + rate if isinstance(own, Tensor) else rate

    return rule
