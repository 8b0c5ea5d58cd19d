"""Layers with weights and what follows them: what a normalization and a skip connection have to know."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from desat.cure.anatomy import Anatomy, Call
from desat.cure.order import has_weights, leaves, nonlinearity_curve, parent_of
from desat.cure.patient import Patient


@dataclass(frozen=True, eq=False)
class Follower:
    """What follows a layer, up to the next one with weights.

    between: modules from the layer to the nonlinearity, both excluded. nonlinearity: its call; None where none
    follows. beyond: the modules from there to the next layer. input_shape, output_shape: of the layer, None where no
    batch was seen. refused: why nothing is to be put there.
    """

    path: str
    layer: nn.Module
    between: tuple[nn.Module, ...] = ()
    nonlinearity: Call | None = None
    beyond: tuple[nn.Module, ...] = ()
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    refused: str | None = None


def followers(patient: Patient) -> list[Follower]:
    """Each layer with weights that runs, in the order of execution; without a batch, in that of registration."""
    anatomy = patient.anatomy
    if anatomy is None:
        return list(_by_registration(patient))
    weighted = [call for call in anatomy.calls if call.has_weights]
    met: set[int] = set()
    found = []
    for call in weighted:
        if id(call.module) not in met:
            met.add(id(call.module))
            found.append(_by_execution(anatomy, call))
    return found


def _by_execution(anatomy: Anatomy, call: Call) -> Follower:
    module = call.module
    assert module is not None
    place = anatomy.calls.index(call)
    after = anatomy.calls[place + 1 :]
    end = next((index for index, later in enumerate(after) if later.has_weights), len(after))
    span = after[:end]
    number = next((index for index, later in enumerate(span) if later.curve is not None), None)
    runs = len(anatomy.of(module))
    refused = None
    if runs > 1:
        refused = f"it runs {runs} times in a forward pass"
    elif anatomy.is_output(call):
        refused = "it is the output layer"
    elif number is None:
        refused = "no nonlinearity follows it"
    elif span[number].is_gate and _is_bounded(span[number]):
        refused = "what follows it is a gate, which is to open and close"
    before = span if number is None else span[:number]
    beyond = [] if number is None else span[number + 1 :]
    return Follower(
        call.path, module, _modules(before), None if number is None else span[number], _modules(beyond),
        _shape(call.input_shape), _shape(call.output_shape), refused,
    )  # fmt: skip


def _is_bounded(call: Call) -> bool:
    """A gate is; what a gate lets through, which is multiplied as well, need not be."""
    return call.curve is not None and call.curve.shape == "bounded"


def _modules(calls: list[Call]) -> tuple[nn.Module, ...]:
    return tuple(call.module for call in calls if call.module is not None)


def _shape(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


def _by_registration(patient: Patient) -> Iterator[Follower]:
    """Inside of a Sequential alone is the order of registration that of execution."""
    model = patient.model
    weighted = [(path, module) for path, module in leaves(model) if has_weights(module)]
    for path, module in weighted:
        parent = parent_of(model, path)
        if module is weighted[-1][1]:
            yield Follower(path, module, refused="it is taken for the output layer: no weights are registered after it")
        elif not isinstance(parent, nn.Sequential):
            yield Follower(path, module, refused=f"what follows it is not known: {patient.blind}")
        else:
            yield _in_sequential(path, module, parent)


def _in_sequential(path: str, layer: nn.Module, parent: nn.Sequential) -> Follower:
    children = list(parent.named_children())
    place = next(index for index, (_, child) in enumerate(children) if child is layer)
    between: list[nn.Module] = []
    beyond: list[nn.Module] = []
    found: Call | None = None
    for name, child in children[place + 1 :]:
        if any(has_weights(module) for module in child.modules()):
            break
        curve = nonlinearity_curve(child)
        if found is None and curve is not None:
            found = Call(f"{path.rpartition('.')[0]}.{name}".lstrip("."), child, None, curve, None, None)
        else:
            (between if found is None else beyond).append(child)
    refused = None if found else "no nonlinearity follows it"
    return Follower(path, layer, tuple(between), found, tuple(beyond), refused=refused)


def normalizing(modules: tuple[nn.Module, ...]) -> nn.Module | None:
    """The first normalization among modules, by the name of its class; None where there is none."""
    return next((module for module in modules if "norm" in type(module).__name__.lower()), None)
