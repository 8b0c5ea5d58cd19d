"""Modules: which belong to the watched network, their paths in it, and which of them are nonlinearities."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.utils import parametrize

from desat.nonlinearity import Curve, curve_of
from desat.watch.sites import source_of, user_frame, variable_name

_WRAPPERS = ("_orig_mod.", "module.")
"""Path prefixes that torch.compile and DataParallel put before the paths the user wrote."""

_WEIGHTS = "parametrizations"
"""The child of a module under which torch.nn.utils.parametrize keeps what makes its weights."""

ADDED_PREFIX = "desat_"
"""How the names of the children begin that remedies put into a leaf, which it remains."""

_FEATURES_SECOND = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "Pool", "Upsample")
"""Modules whose output has its units (channels) in dimension 1, whatever its number of dimensions."""

_FEATURES_LAST = ("Linear", "Norm", "Embedding", "Attention", "LSTM", "GRU", "RNN")
"""Modules, other than those, whose output has its units last; any other, such as a dropout, may follow on either."""


@dataclass(frozen=True, eq=False)
class Member:
    """A module of the watched network.

    path: its module path, which is never empty. leaf: it has no children but those that make its weights, which
    makes_weight marks (weight norm, spectral norm), and those that remedies put in.
    """

    path: str
    operation: str
    leaf: bool
    curve: Curve | None
    makes_weight: bool = False


class Network:
    """The modules that are watched: those under the given roots, or under whatever module the script calls first."""

    def __init__(self, *roots: nn.Module) -> None:
        self._discovers = not roots
        self._members: WeakKeyDictionary[nn.Module, Member] = WeakKeyDictionary()
        self._roots: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._curves: dict[Any, Curve | None] = {}
        for root in roots:
            self._add(root, "model")

    def admits(self, module: nn.Module) -> bool:
        """Whether a module that is called at the top belongs to the network; a new one may join in discovery."""
        if module in self._members:
            return True
        if not self._discovers or _is_loss(module) or _makes_weight_now():
            return False
        self._add(module, variable_name(module, user_frame()) or type(module).__name__.lower())
        return True

    def is_root(self, module: nn.Module) -> bool:
        """Whether a module is watched as a network, and not as a part of one."""
        return module in self._roots

    def member(self, module: nn.Module, root: nn.Module | None) -> Member | None:
        """The member that a module is; one that was put into `root` after the start is found now."""
        found = self._members.get(module)
        if found is None and root is not None and root in self._roots:
            self._enter(root, self._roots[root])
            found = self._members.get(module)
        return found

    def parameter_names(self) -> dict[int, tuple[str, str]]:
        """By the id of each parameter: its name and the operation of the module that owns it."""
        return {id(parameter): (name, operation) for parameter, name, operation in self.named_parameters()}

    def named_parameters(self) -> Iterator[tuple[nn.Parameter, str, str]]:
        """Each parameter once, with its first name and the operation of the module that owns it."""
        met: set[int] = set()
        for module, member in list(self._members.items()):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in met:
                    met.add(id(parameter))
                    yield parameter, f"{member.path}.{name}", member.operation

    def _add(self, root: nn.Module, name: str) -> None:
        # Paths of the first network stand alone, as its user writes them; those of others carry the root's name.
        first_with_children = not any(prefix == "" for prefix in self._roots.values())
        has_children = next(root.children(), None) is not None
        self._roots[root] = "" if first_with_children and has_children else self._unused(name) + "."
        self._enter(root, self._roots[root], name)

    def _unused(self, name: str) -> str:
        taken = {prefix.rstrip(".") for prefix in self._roots.values()}
        number = 2
        unique = name
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        return unique

    def _enter(self, root: nn.Module, prefix: str, root_name: str = "model") -> None:
        for path, module in root.named_modules():
            if module not in self._members:
                makes_weight = f".{_WEIGHTS}." in f".{path}."
                leaf = not makes_weight and all(
                    name == _WEIGHTS or name.startswith(ADDED_PREFIX) for name, _ in module.named_children()
                )
                full = prefix + _as_written(path + ".") if path else prefix
                curve = self._curve(module) if leaf else None
                name = full.rstrip(".") or root_name
                self._members[module] = Member(name, _operation(module), leaf, curve, makes_weight)

    def _curve(self, module: nn.Module) -> Curve | None:
        """The curve of a leaf; modules of one type with the same settings share it."""
        settings = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        if next(module.parameters(), None) is not None or not all(
            isinstance(value, (int, float, bool, str, type(None))) for value in settings.values()
        ):
            return curve_of(module)
        key = (type(module), tuple(sorted(settings.items())))
        if key not in self._curves:
            self._curves[key] = curve_of(module)
        return self._curves[key]


def unit_dimension(dimensions: int, producer: str | None) -> int | None:
    """Which dimension of a tensor holds the units, by its number of dimensions and the operation that made it.

    Convolutions and batch normalization put channels second; linear layers, embeddings and layer normalization last.
    Of a producer that is unknown, or hands on what it is given, images (4 and 5 dimensions) have channels second and
    sequences (3) features last.
    """
    if dimensions < 2:
        return None
    if producer is not None and any(name in producer for name in _FEATURES_SECOND):
        return 1
    if dimensions >= 4 and not any(name in (producer or "") for name in _FEATURES_LAST):
        return 1
    return dimensions - 1


def call_source() -> str | None:
    """`file:line` of the user's code that is calling."""
    return source_of(user_frame())


def _operation(module: nn.Module) -> str:
    """The name of a module's class: before its weights were parametrized, and after it has been lazy."""
    kind = parametrize.type_before_parametrizations(module)
    return (getattr(kind, "cls_to_become", None) or kind).__name__


def _makes_weight_now() -> bool:
    """Whether the module that is called makes a weight of a module that is being parametrized."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is not vars(parametrize):
        frame = frame.f_back
    return frame is not None


def _as_written(path: str) -> str:
    while path.startswith(_WRAPPERS):
        path = path[path.index(".") + 1 :]
    return path


def _is_loss(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.loss" or isinstance(module, nn.modules.loss._Loss)
