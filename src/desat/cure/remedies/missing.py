"""Parameters that are to be trained and are in no optimizer: given to the one that trains their neighbours."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from desat.cure.edit import Edit
from desat.cure.family import Change
from desat.cure.origins import living_optimizers
from desat.cure.patient import Patient, enroll
from desat.cure.remedies.optimizer_source import constructor_of


def adopt_missing(patient: Patient, remedy: str) -> list[Change]:
    """Give each parameter that requires gradients, and is in no optimizer, to the group of its nearest neighbour.

    Nearest is the last one before it that is trained, in the order in which parameters were registered; without one,
    the first. Frozen parameters stay frozen. Told by module.
    """
    trained = _trained({*patient.optimizers, *living_optimizers()})
    by_module: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    frozen: dict[str, None] = {}
    for name, parameter in patient.model.named_parameters():
        if id(parameter) in trained:
            continue
        site = name.rpartition(".")[0]
        if parameter.requires_grad:
            by_module[site].append((name, parameter))
        else:
            frozen[site] = None
    changes = []
    edits = _edits(patient)
    for site, missing in by_module.items():
        before = f"{', '.join(name.rpartition('.')[2] for name, _ in missing)} in no optimizer"
        refused = _refusal(patient, [parameter for _, parameter in missing])
        if refused is None:
            for name, parameter in missing:
                enroll(patient.optimizers[0], _group_beside(patient, parameter), name, parameter)
        after = before if refused else "trained as its neighbours are"
        changes.append(Change(remedy, site, before, after, refused, () if refused else edits))
    frozen_changes = [
        Change(remedy, site, "frozen parameters", "frozen parameters", "they require no gradients, so it is meant")
        for site in frozen
        if site not in by_module
    ]
    if not changes:
        what = "all parameters that require gradients"
        changes = [Change(remedy, "", what, what, "they are in an optimizer already")]
    return changes + frozen_changes


def _edits(patient: Patient) -> tuple[Edit, ...]:
    """In the optimizer's constructor `net.head.parameters()` becomes `net.parameters()`, where `net` is the network."""
    made = constructor_of(patient.optimizers[0], patient.optimizers)
    if made is None or len(patient.optimizers[0].param_groups) > 1:
        return ()
    owner, _, call = made.parameters.rpartition(".")
    given = {id(one) for one in patient.optimizers[0].param_groups[0]["params"]}
    parts = owner.split(".")
    for length in range(1, len(parts)):
        try:
            part = patient.model.get_submodule(".".join(parts[length:]))
        except AttributeError:
            continue
        if call == "parameters()" and {id(one) for one in part.parameters()} == given:
            return replace(made, parameters=".".join([*parts[:length], call])).edits()
    return ()


def _trained(optimizers: set[Optimizer]) -> set[int]:
    return {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}


def _refusal(patient: Patient, parameters: list[nn.Parameter]) -> str | None:
    kinds = {type(optimizer) for optimizer in patient.optimizers}
    if len(patient.optimizers) > 1:
        return "several optimizers train the network, and which one it should be is not known"
    if not all(kind.__module__.startswith("torch.optim.") for kind in kinds):
        return "the optimizer's class is not one of torch's, and how it keeps parameters is not known"
    if torch.optim.LBFGS in kinds:
        return "LBFGS takes all parameters as one vector, of a length that stays"
    if any(is_lazy(parameter) for parameter in parameters):
        return "its shape is known after the first forward pass"
    if not all(parameter.is_leaf for parameter in parameters):
        return "it is computed from others"
    return None


def _group_beside(patient: Patient, wanted: nn.Parameter) -> dict[str, Any]:
    groups = {id(one): group for _, group in patient.groups() for one in group["params"]}
    nearest = None
    for parameter in patient.model.parameters():
        if parameter is wanted and nearest is not None:
            break
        nearest = groups.get(id(parameter), nearest)
        if nearest is not None and any(one is wanted for one in nearest["params"]):
            break
    return nearest if nearest is not None else patient.optimizers[0].param_groups[0]
