"""The patient: a live model with its optimizers and a real batch, as a remedy finds them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from desat.cure.anatomy import Anatomy, dissect


class Batch(NamedTuple):
    """The arguments of a forward pass."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never written to


class Patient:
    """What remedies are applied to.

    model: the network itself, not what torch.compile made of it. optimizers: those that train its parameters; none
    where they are not known. batch: of its first forward pass; None where it is not known.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = (), batch: Batch | None = None) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.optimizers = [one for one in optimizers if trains(one, self.model)]
        self.batch = batch
        self._anatomy: Anatomy | str | None = None

    @property
    def anatomy(self) -> Anatomy | None:
        """The calls of a forward pass in their order; None where there is no batch, or the pass failed: see `blind`."""
        if self._anatomy is None:
            self._anatomy = self._dissect()
        return None if isinstance(self._anatomy, str) else self._anatomy

    @property
    def blind(self) -> str | None:
        """Why the order of execution is not known; None where it is."""
        return None if self.anatomy is not None else str(self._anatomy)

    def _dissect(self) -> Anatomy | str:
        if self.batch is None:
            return "no batch is at hand to see the order of execution: hand one over as batch="
        try:
            return dissect(self.model, self.batch.args, self.batch.kwargs)
        except Exception as error:  # the forward pass is the user's
            return f"a forward pass beside the training failed: {type(error).__name__}: {error}"

    def look_again(self) -> None:
        """Forget the order of execution, which a remedy has changed."""
        self._anatomy = None

    def groups(self) -> Iterator[tuple[Optimizer, dict[str, Any]]]:
        """Each parameter group of each optimizer."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield optimizer, group

    def adopt(self, fresh: Iterable[nn.Parameter], beside: nn.Parameter) -> bool:
        """Have new parameters trained by the group that trains `beside`; False where none does.

        Where no optimizer is known yet, nothing is to be done: it is made from the parameters that are there then.
        """
        for optimizer, group in self.groups():
            if any(parameter is beside for parameter in group["params"]):
                for parameter in fresh:
                    enroll(optimizer, group, f"desat.{len(group['params'])}", parameter)
                return True
        return False


def enroll(optimizer: Optimizer, group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
    """Have a parameter group of an optimizer train one more parameter."""
    if isinstance(optimizer, torch.optim.Adagrad):  # the one whose state is made with it and not at its first step
        start = group.get("initial_accumulator_value", 0.0)
        fresh = torch.optim.Adagrad([parameter], initial_accumulator_value=start, fused=group.get("fused"))
        optimizer.state[parameter] = fresh.state[parameter]
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)


def trains(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether an optimizer holds a parameter of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
