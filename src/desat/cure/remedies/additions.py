"""What a forward pass adds up, and which blocks of the user's keep the shape of what they are given."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from desat.cure.anatomy import run_beside
from desat.cure.order import has_weights, leaves, modules, of_remedy, parent_of
from desat.cure.patient import Batch
from desat.watch.functional import FunctionTap

_SUMS = {Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, torch.add}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class Additions:
    """sums: where two activations of one shape are added, by the path of the module that adds them. blocks: paths of
    the user's blocks, in the order of execution.
    """

    sums: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)


def look_for_additions(model: nn.Module, batch: Batch) -> Additions:
    """See one forward pass beside the training. Raises what the pass raises.

    A block is a module of the user's own that has layers inside, runs once, and gives one tensor the shape that it was
    given; of its class there are two or more in one container, as of what is stacked.
    """
    seen = Additions()
    paths: list[str] = []
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    shapes: dict[str, list[bool]] = defaultdict(list)

    def added(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and id(one) not in own]
        if len(tensors) == 2 and tensors[0].dim() >= 2 and tensors[0].shape == tensors[1].shape:
            seen.sums.append(paths[-1] if paths else "")
        return function(*args, **kwargs)

    def hook(path: str, module: nn.Module) -> list[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            paths.append(path)

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            paths.pop()
            single = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            shapes[path].append(single and args[0].shape == output.shape and args[0].dtype == output.dtype)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    hooks = [one for path, module in modules(model) if not of_remedy(path) for one in hook(path, module)]
    try:
        with FunctionTap(_SUMS, added):
            run_beside(model, *batch)
    finally:
        for one in hooks:
            one.remove()
    seen.blocks = _blocks(model, {path for path, same in shapes.items() if same == [True]})
    return seen


def _blocks(model: nn.Module, keeping: set[str]) -> list[str]:
    ends = {id(module) for _, module in leaves(model)}
    found: dict[tuple[int, type], list[str]] = defaultdict(list)
    for path, module in modules(model):
        parent = parent_of(model, path)
        if path not in keeping or parent is None or id(module) in ends or isinstance(module, _CONTAINERS):
            continue
        if isinstance(parent, _CONTAINERS) and any(has_weights(one) for one in module.modules()):
            found[id(parent), type(module)].append(path)
    stacked = [path for paths in found.values() if len(paths) >= 2 for path in paths]
    return [path for path in stacked if not any(path.startswith(f"{other}.") for other in stacked)]
