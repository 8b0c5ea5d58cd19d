"""Edits at the constructor calls of layers: a normalization behind a layer, or in the place of another."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from desat.cure import origins
from desat.cure.edit import Edit, Span, call_at, parsed, read_source, text_at
from desat.cure.remedies.norms import Norm

_ATTRIBUTES = "weight|bias|in_features|out_features|in_channels|out_channels|kernel_size|running_mean|running_var"
"""What a layer has and a Sequential has not: where the source asks a layer for one, it has to stay that layer."""

_FEATURES = {"Linear": (1, "out_features"), "Conv": (1, "out_channels"), "BatchNorm": (0, "num_features")}
"""By the beginning of a class's name: which argument of its constructor is the number of its features."""


@dataclass(frozen=True, eq=False)
class Normed:
    """A layer that got a normalization, or a batch normalization that one stands in for. path: of the layer."""

    path: str
    module: nn.Module
    norm: Norm
    instead: bool = False


def constructor_edits(normed: Sequence[Normed]) -> dict[int, Edit]:
    """By the id of each module: how its constructor call would say it; none where that cannot be said there.

    It can be said where all modules that were made by this call got the same, and where no attribute of the layer
    itself is asked for in the file.
    """
    spans = {id(one.module): origins.origin(one.module) for one in normed}
    edits = {}
    for one in normed:
        span = spans[id(one.module)]
        if span is None:
            continue
        texts = {id(other.module): _text(span, other) for other in normed if spans[id(other.module)] == span}
        alike = all(id(made) in texts for made in origins.made_at(span)) and len(set(texts.values())) == 1
        text = texts[id(one.module)]
        if alike and text is not None:
            edits[id(one.module)] = Edit(span, text)
    return edits


def _text(span: Span, one: Normed) -> str | None:
    try:
        source = read_source(span.file)
        call = call_at(span, source)
    except (OSError, SyntaxError):
        return None
    features = None if call is None else _features(call, source)
    if call is None or features is None or _is_asked(one, source):
        return None
    name = ast.get_source_segment(source, call.func) or ""
    prefix = name.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    if not prefix and not _imported({"Sequential", one.norm.name} if not one.instead else {one.norm.name}, source):
        return None
    norm = f"{prefix}{one.norm.name}({one.norm.arguments(features)})"
    return norm if one.instead else f"{prefix}Sequential({text_at(span, source)}, {norm})"


def _features(call: ast.Call, source: str) -> str | None:
    """The number of features as the user wrote it."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    known = next((known for kind, known in _FEATURES.items() if name.startswith(kind)), None)
    if known is None or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    place, keyword = known
    if len(call.args) > place:
        return ast.get_source_segment(source, call.args[place])
    value = next((one.value for one in call.keywords if one.arg == keyword), None)
    return None if value is None else ast.get_source_segment(source, value)


def _is_asked(one: Normed, source: str) -> bool:
    name = re.escape(one.path.rpartition(".")[2])
    place = rf"\[{name}\]" if name.isdigit() else rf"\.{name}"
    return re.search(rf"{place}\.({_ATTRIBUTES})\b", source) is not None


def _imported(names: set[str], source: str) -> bool:
    found = {
        alias.asname or alias.name
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch")
        for alias in node.names
    }
    return names <= found
