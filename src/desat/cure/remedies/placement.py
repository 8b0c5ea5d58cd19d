"""Where a remedy puts modules of its own: on a layer of the user's, under a name that begins with `desat_`.

They run in hooks that are functions of a module, so that a network can be copied, pickled, saved, loaded, moved and
compiled as before.
"""

import sys

import torch
from torch import nn

from desat.cure.order import REMEDY_PREFIX
from desat.cure.patient import Patient

_SEVERAL_PROCESSES = ("DistributedDataParallel", "FullyShardedDataParallel")


def attach(layer: nn.Module, family: str, module: nn.Module) -> None:
    """Make `module` the child `desat_<family>` of a layer; its hooks are the caller's to register."""
    module.train(layer.training)
    layer.add_module(REMEDY_PREFIX + family, module)
    forget_compiled()


def detach(layer: nn.Module, family: str) -> None:
    """Undo `attach`."""
    del layer._modules[REMEDY_PREFIX + family]


def attached(layer: nn.Module, family: str) -> nn.Module | None:
    """The module that `attach` has put on a layer."""
    return layer._modules.get(REMEDY_PREFIX + family)


def replace_module(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    """Put a module in the place of another, wherever that stands in a network."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = replacement


def forget_compiled() -> None:
    """Have torch.compile compile anew: code that it made of a network before runs on without hooks that come later."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def adopted(patient: Patient, fresh: list[nn.Parameter], layer: nn.Module) -> None:
    """Have the parameters of what was put on a layer trained beside the layer's own."""
    own = next((one for name, one in layer.named_parameters() if not name.startswith(REMEDY_PREFIX)), None)
    if own is not None:
        patient.adopt(fresh, beside=own)


def refusal_of_model(model: nn.Module) -> str | None:
    """Why no module can be put into a network; None where one can."""
    if isinstance(model, torch.jit.ScriptModule):
        return "it is compiled by TorchScript: apply the remedy before torch.jit"
    if any(type(module).__name__ in _SEVERAL_PROCESSES for module in model.modules()):
        return "it is trained by several processes, which would not share what is put in: apply it before wrapping"
    return None


def refusal_of_layer(patient: Patient, model: nn.Module, layer: nn.Module) -> str | None:
    """Why nothing that is to be trained can be put on a layer; None where it can."""
    weights = [one for name, one in layer.named_parameters() if not name.startswith(REMEDY_PREFIX)]
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by TorchScript: apply the remedy before torch.jit"
    if any(nn.parameter.is_lazy(one) for one in weights):
        return "its shape is known after the first forward pass"
    if not weights or weights[0].is_meta or not weights[0].is_floating_point():
        return "its weights are no real numbers in memory"
    if not any(one.requires_grad for one in weights):
        return "its weights are frozen, so it is meant to stay"
    trained = {id(one) for _, group in patient.groups() for one in group["params"]}
    if patient.optimizers and not any(id(one) in trained for one in weights):
        return "no optimizer trains it, so none would train what is put there"
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if len(names) > 1:
        return f"it stands in several places ({', '.join(names)})"
    return None
