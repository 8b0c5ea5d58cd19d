"""Modules: which belong to the watched network, their paths in it, and which of them are nonlinearities."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from desat.nonlinearity import Curve, curve_of
from desat.watch.sites import source_of, user_frame, variable_name

_WRAPPERS = ("_orig_mod.", "module.")
"""Path prefixes that torch.compile and DataParallel put before the paths the user wrote."""

_FEATURES_SECOND = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "Pool", "Upsample")
"""Modules whose output has its units (channels) in dimension 1, whatever its number of dimensions."""


@dataclass(frozen=True, eq=False)
class Member:
    """A module of the watched network. path: its module path, which is never empty. leaf: it has no children."""

    path: str
    operation: str
    leaf: bool
    curve: Curve | None


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
        if not self._discovers or _is_loss(module):
            return False
        self._add(module, variable_name(module, user_frame()) or type(module).__name__.lower())
        return True

    def member(self, module: nn.Module, root: nn.Module | None) -> Member | None:
        """The member that a module is; one that was put into `root` after the start is found now."""
        found = self._members.get(module)
        if found is None and root is not None and root in self._roots:
            self._enter(root, self._roots[root])
            found = self._members.get(module)
        return found

    def parameter_names(self) -> dict[int, tuple[str, str]]:
        """By the id of each parameter: its name and the operation of the module that owns it."""
        names: dict[int, tuple[str, str]] = {}
        for module, member in list(self._members.items()):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    names.setdefault(id(parameter), (f"{member.path}.{name}", member.operation))
        return names

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
                leaf = next(module.children(), None) is None
                full = prefix + _as_written(path + ".") if path else prefix
                curve = self._curve(module) if leaf else None
                self._members[module] = Member(full.rstrip(".") or root_name, type(module).__name__, leaf, curve)

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
    Of an unknown producer, images (4 and 5 dimensions) have channels second and sequences (3) features last.
    """
    if dimensions < 2:
        return None
    if producer is not None and any(name in producer for name in _FEATURES_SECOND):
        return 1
    if producer is None and dimensions >= 4:
        return 1
    return dimensions - 1


def call_source() -> str | None:
    """`file:line` of the user's code that is calling."""
    return source_of(user_frame())


def _as_written(path: str) -> str:
    while path.startswith(_WRAPPERS):
        path = path[path.index(".") + 1 :]
    return path


def _is_loss(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.loss" or isinstance(module, nn.modules.loss._Loss)
