"""optimizer: another optimizer in place of the script's, or the same with another rate or momentum."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from desat.cure.family import Change, Choice, Family
from desat.cure.patient import Patient
from desat.cure.remedies.missing import adopt_missing
from desat.cure.remedies.optimizer_class import CLASSES, FLAGS, RATES, become, defaults_of
from desat.cure.remedies.optimizer_source import Constructor, constructor_of
from desat.cure.remedies.rate import RANGE_LOW, RANGE_STEPS, Rule, factor, govern, hold, is_governed, ramp, warmup

WARMUP_STEPS = 100.0
"""Steps of a warm-up where no number is asked for."""

RANGE_OF_ADAM = "adam-range"

NO_OPTIMIZER = "no optimizer is at hand: hand it over, or apply the remedy once it is made"


def apply_optimizer(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Change the optimizers that train a network, in place; each stays the object that it is.

    Rates are changed by a factor around each step (see desat.cure.remedies.rate), so that a schedule, or a script that
    sets rates, goes on to act on them; the ratio between parameter groups stays. The rate that is asked of another
    class is that of the first group at the base of its schedule, or at the top of a one-cycle schedule.
    """
    remedy = f"optimizer={choice}" + ("" if number is None else f":{number:g}")
    if not patient.optimizers:
        return [Change(remedy, "the optimizer", "what the script has", "", refused=NO_OPTIMIZER)]
    if choice == "missing":
        return adopt_missing(patient, remedy)
    doubled = shared_parameters(patient.optimizers)
    changes = []
    for place, optimizer in enumerate(patient.optimizers, 1):
        site = "the optimizer" if len(patient.optimizers) == 1 else f"optimizer {place}"
        before = described(optimizer)
        refused = "another optimizer trains the same parameters" if doubled else _refusal(patient, optimizer, choice)
        if refused is not None:
            changes.append(Change(remedy, site, before, before, refused=refused))
            continue
        made = constructor_of(optimizer, patient.optimizers)
        outcome = _changed(optimizer, choice, number, made)
        if isinstance(outcome, str):
            changes.append(Change(remedy, site, before, before, refused=outcome))
        else:
            after, written = outcome
            changes.append(Change(remedy, site, before, after, edits=() if written is None else written.edits()))
    return changes


def described(optimizer: Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return type(optimizer).__name__ + ("" if rate is None else f" with a rate of {float(rate):g}")


def shared_parameters(optimizers: list[Optimizer]) -> bool:
    """Whether a parameter is in more than one of the optimizers."""
    ids = [{id(one) for group in optimizer.param_groups for one in group["params"]} for optimizer in optimizers]
    return len(set().union(*ids)) < sum(len(own) for own in ids)


def has_sparse_gradients(model: nn.Module) -> bool:
    return any(getattr(module, "sparse", None) is True for module in model.modules())


def reference_rate(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """The rate that a group's schedule acts on: its top for one cycle, else its base; without one, what it is now.

    Where that is 0, as at the start of a script's own warm-up, the rate that the optimizer was made with.
    """
    for value in (group.get("max_lr"), group.get("initial_lr"), group["lr"], optimizer.defaults.get("lr")):
        if isinstance(value, int | float | Tensor) and float(value) > 0:
            return float(value)
    return 0.0


def _refusal(patient: Patient, optimizer: Optimizer, choice: str) -> str | None:
    if isinstance(optimizer, torch.optim.LBFGS):
        return "it searches along a line by calls of the loss within a step"
    if not all(isinstance(group.get("lr"), int | float | Tensor) for group in optimizer.param_groups):
        return "it has no learning rate"
    if choice not in ("momentum", "defaults") and is_governed(optimizer):
        return "its rate has been changed already"
    if choice in ("warmup", "hold", "range", RANGE_OF_ADAM) and any(
        group.get("capturable") for group in optimizer.param_groups
    ):
        return "its steps may be captured in a graph, which would repeat one rate"
    if choice in (*CLASSES, RANGE_OF_ADAM, "defaults") and not type(optimizer).__module__.startswith("torch.optim."):
        return "its class is not one of torch's, and what else it does is not known"
    if choice in (*CLASSES, RANGE_OF_ADAM):
        if type(optimizer) is torch.optim.SparseAdam or has_sparse_gradients(patient.model):
            return "its gradients are sparse"
        if reference_rate(optimizer, optimizer.param_groups[0]) <= 0:
            return "its rate is 0, so that there is none to go by"
    return None


Outcome = tuple[str, Constructor | None] | str
"""What the optimizer is afterwards and the call that would make it, where one would; or why nothing was done."""


def _changed(optimizer: Optimizer, choice: str, number: float | None, made: Constructor | None) -> Outcome:
    if choice in CLASSES:
        return _swapped(optimizer, choice, RATES[choice] if number is None else number, made)
    if choice == "momentum":
        return _with_momentum(optimizer, number or 0.0, made)
    if choice == "defaults":
        return _with_defaults(optimizer, made)
    if choice == "rate":
        times = 1.0 if number is None else number
        govern(optimizer, factor(times))
        return f"{described(optimizer)}, times {times:g}", _scaled(optimizer, times, made)
    if choice == RANGE_OF_ADAM and type(optimizer) is not torch.optim.Adam:
        refused = become(optimizer, torch.optim.Adam)
        if refused is not None:
            return refused
    rule, told = _rule(optimizer, choice, number)
    govern(optimizer, rule)
    return f"{described(optimizer)}, {told}", None


def _rule(optimizer: Optimizer, choice: str, number: float | None) -> tuple[Rule, str]:
    if choice == "hold":
        return hold(), "held at what it is at the first step"
    if choice == "warmup":
        steps = max(1, math.ceil(number or WARMUP_STEPS))
        return warmup(steps), f"risen to in {steps} steps"
    steps = max(2, math.ceil(number or RANGE_STEPS))
    references = [reference_rate(optimizer, group) for group in optimizer.param_groups]
    if references[0] <= 0:
        references = [1.0] * len(references)
    return ramp(steps, references), f"in whose place comes a ramp from {RANGE_LOW:g} on, of {steps} steps"


def _swapped(optimizer: Optimizer, choice: str, rate: float, made: Constructor | None) -> Outcome:
    kind = CLASSES[choice]
    reference = reference_rate(optimizer, optimizer.param_groups[0])
    local = made is not None and "max_lr" not in optimizer.param_groups[0] and _is_uniform(optimizer)
    if type(optimizer) is not kind:
        refused = become(optimizer, kind)
        if refused is not None:
            return refused
        written = made.of_class(kind.__name__) if made is not None else None
        written = None if written is None else written.keeping("lr", *(FLAGS & defaults_of(kind).keys()))
    else:
        written = made
    govern(optimizer, factor(rate / reference))
    written = written.having(lr=f"{rate:g}") if written is not None and local else None
    return f"{kind.__name__} with a rate of {rate:g}", written


def _is_uniform(optimizer: Optimizer) -> bool:
    """Whether all groups have the same options, which are then those that the constructor was given."""
    first = _options(optimizer.param_groups[0])
    return all(_options(group) == first for group in optimizer.param_groups) and not any(
        isinstance(value, Tensor) for value in first.values()
    )


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def _scaled(optimizer: Optimizer, times: float, made: Constructor | None) -> Constructor | None:
    if made is None or "max_lr" in optimizer.param_groups[0] or not _is_uniform(optimizer):
        return None
    old = made.options.get("lr")
    if old is None:
        old = repr(defaults_of(type(optimizer))["lr"])
    try:
        new = f"{float(old) * times:.6g}"
    except ValueError:
        new = f"{times:g} * ({old})"
    return made.having(lr=new)


def _with_momentum(optimizer: Optimizer, momentum: float, made: Constructor | None) -> Outcome:
    group = optimizer.param_groups[0]
    name = "momentum" if "momentum" in optimizer.defaults else "betas" if "betas" in group else None
    if name is None:
        return "it has no momentum"
    local = made is not None and _is_uniform(optimizer)
    for group in optimizer.param_groups:
        group[name] = momentum if name == "momentum" else (momentum, *group["betas"][1:])
    text = repr(momentum) if name == "momentum" else repr(tuple(float(beta) for beta in group["betas"]))
    written = made.having(**{name: text}) if made is not None and local else None
    return f"{type(optimizer).__name__} with {name} {text}", written


def _with_defaults(optimizer: Optimizer, made: Constructor | None) -> Outcome:
    try:
        defaults = defaults_of(type(optimizer))
    except (TypeError, ValueError) as error:
        return f"its defaults are not known: {error}"
    changed = {name: value for name, value in defaults.items() if name not in {"lr", *FLAGS}}
    told = []
    for name, value in changed.items():
        if any(group.get(name) != value for group in optimizer.param_groups):
            told.append(f"{name} {optimizer.param_groups[0].get(name)} -> {value}")
    if not told:
        return "its settings are torch's defaults"
    local = made is not None and _is_uniform(optimizer)
    for group in optimizer.param_groups:
        group.update(changed)
    written = made.keeping("lr", *FLAGS) if made is not None and local else None
    return f"{type(optimizer).__name__} with torch's defaults ({', '.join(told)})", written


OPTIMIZER = Family(
    "optimizer",
    (
        *(
            Choice(name, f"torch.optim.{kind.__name__} with that rate, {RATES[name]:g} by default", "optional")
            for name, kind in CLASSES.items()
        ),
        Choice("rate", "the script's rate times a factor, schedule and all", "needed"),
        Choice("warmup", "the rate rises linearly to the script's in so many steps", "optional", WARMUP_STEPS),
        Choice("hold", "the rate stays what it is at the first step"),
        Choice("range", f"a ramp of the rate from {RANGE_LOW:g} to 1 in so many steps", "optional", float(RANGE_STEPS)),
        Choice(RANGE_OF_ADAM, "the same ramp of torch.optim.Adam", "optional", float(RANGE_STEPS)),
        Choice("momentum", "momentum, or the first of the betas", "needed", high=1.0),
        Choice("defaults", "betas, epsilon, momentum and weight decay as torch has them by default"),
        Choice("missing", "parameters that no optimizer has are given to it"),
    ),
    apply_optimizer,
    on="optimizer",
)
