"""The call in the user's source that makes an optimizer, and how it would read with other arguments."""

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from desat.cure import origins
from desat.cure.edit import Edit, Span


@dataclass(frozen=True)
class Constructor:
    """A call that makes an optimizer. parameters: its first argument as written; options: the others, by keyword."""

    span: Span
    function: str
    parameters: str
    options: Mapping[str, str]
    source: str

    def having(self, **options: str) -> Self:
        """With these options besides, or in the place of those of the same name."""
        return replace(self, options={**self.options, **options})

    def keeping(self, *names: str) -> Self:
        """With those of its options alone."""
        return replace(self, options={name: text for name, text in self.options.items() if name in names})

    def of_class(self, name: str) -> Self | None:
        """With the class `name` of torch.optim, under a name that the file knows; None where it knows none."""
        base, dot, _ = self.function.rpartition(".")
        if dot and base.rpartition(".")[2] == "optim":
            return replace(self, function=f"{base}.{name}")
        function = known_name(self.source, f"torch.optim.{name}")
        return None if function is None else replace(self, function=function)

    def edits(self) -> tuple[Edit, ...]:
        """The call, written down; nothing where that would not be Python."""
        arguments = [self.parameters, *(f"{name}={text}" for name, text in self.options.items())]
        text = f"{self.function}({', '.join(arguments)})"
        try:
            ast.parse(text, mode="eval")
        except SyntaxError:
            return ()
        return (Edit(self.span, text),)


_known: "WeakKeyDictionary[Optimizer, Constructor | None]" = WeakKeyDictionary()


def constructor_of(optimizer: Optimizer, treated: Iterable[Optimizer]) -> Constructor | None:
    """Where an optimizer is made in the user's source, as long as it is of the class that stands there.

    None where it is not known, where the arguments are not written out one by one, and where a living optimizer that is
    not among the treated was made at the same place. Known of an optimizer that has become one of another class, too,
    if it was asked for before.
    """
    if optimizer not in _known:
        _known[optimizer] = _find(optimizer, treated)
    return _known[optimizer]


def _find(optimizer: Optimizer, treated: Iterable[Optimizer]) -> Constructor | None:
    made = origins.constructor(optimizer, {id(one) for one in treated})
    return None if made is None else _read(*made, type(optimizer))


def _read(span: Span, source: str, call: ast.Call, kind: type[Any]) -> Constructor | None:
    written = [ast.get_source_segment(source, one) or "" for one in call.args]
    keywords = {one.arg: ast.get_source_segment(source, one.value) or "" for one in call.keywords}
    if None in keywords or any(isinstance(one, ast.Starred) for one in call.args):
        return None
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"][: len(written)]
    options = dict(zip(names, written, strict=False)) | {str(name): text for name, text in keywords.items()}
    parameters = options.pop("params", None)
    if parameters is None or len(names) < len(written):
        return None
    parameters = parameters if written else f"params={parameters}"
    return Constructor(span, ast.get_source_segment(source, call.func) or "", parameters, options, source)


def known_name(source: str, full: str) -> str | None:
    """How the top level of a file names what `full` stands for, such as `optim.Adam`; None where it has no name."""
    known: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            for one in node.names:
                own = one.name.partition(".")[0]
                known |= {one.name: one.asname} if one.asname else {own: own}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {f"{node.module}.{one.name}": one.asname or one.name for one in node.names}
    parts = full.split(".")
    for length in range(len(parts), 0, -1):
        if (own := known.get(".".join(parts[:length]))) is not None:
            return ".".join([own, *parts[length:]])
    return None
