"""loss=log-probabilities: a negative log likelihood that is given no logarithms of probabilities gets them.

Three things are done, each where it is the one that is wrong. A softmax or sigmoid whose result the loss is given, in
the script or as what makes the network's output, becomes a log_softmax. A loss that is given the plain scores of a
network becomes the cross entropy, which is the same of their log_softmax; of what is one already it changes nothing,
so the other calls of the same loss are safe. What a network puts out is told by its values on the batch.
"""

import ast
import gc
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure import origins
from desat.cure.edit import Edit, Span, call_at, read_source, span_of
from desat.cure.family import Change
from desat.cure.patient import Patient
from desat.cure.remedies.bypass import Place, its_input, original_of, replace_calls
from desat.cure.remedies.log_edits import (
    FUNCTIONAL,
    MODULES,
    constructors,
    logarithm_of_call,
    logarithm_of_constructor,
    renamed,
)
from desat.cure.remedies.nll_source import Softmax, Use, nll_uses
from desat.cure.remedies.output import (
    FUNCTIONS,
    OTHER_LOSSES,
    Maker,
    calling_files,
    files_of_training,
    names_in,
    output_of,
)
from desat.cure.remedies.output import MODULES as KINDS_OF_MODULES
from desat.cure.remedies.placement import forget_compiled, replace_module
from desat.cure.remedies.reading import bounds_of, readings_of
from desat.cure.rewrite import rewrite

Kind = Literal["scores", "probabilities", "logarithms", "unknown"]

SUM_TOLERANCE = 1e-2
"""By so much the probabilities of a sample may miss a sum of one; a sum of float16 is rounded to less."""

_LIKELIHOODS = {"NLLLoss", "nll_loss"}
_PROBABILITIES = {"softmax", "Softmax"}
"""Names where they stand in the source, a criterion that nobody is seen to call may be given something else."""

_LOGARITHMS: dict[Any, Any] = {
    F.softmax: F.log_softmax,
    torch.softmax: torch.log_softmax,
    Tensor.softmax: Tensor.log_softmax,
}


def give_log_probabilities(patient: Patient, remedy: str) -> list[Change]:
    """See above. One change for each call or module that becomes another; one refusal where nothing can be done."""
    before = "what nll_loss is given"
    if patient.batch is None:
        reason = "no batch is at hand to see what the network puts out: hand one over as batch="
        return [Change(remedy, "", before, before, refused=reason)]
    try:
        output, maker = output_of(patient.model, patient.batch)
    except Exception as error:  # the forward pass is the user's
        reason = f"a forward pass beside the training failed: {type(error).__name__}: {error}"
        return [Change(remedy, "", before, before, refused=reason)]
    kind = _kind_of(output, maker)
    files = [*files_of_training(patient.model), *calling_files()]
    uses = nll_uses(readings_of(files))
    known = [use for use in uses if "unknown" not in use.given and (use.given or use.softmaxes)]
    scored = [use for use in known if "output" in use.given]
    named = names_in(files)
    is_told = any(use.how == "criterion" for use in uses) or not named.isdisjoint(_PROBABILITIES)
    likely = [] if is_told else [one for one in _living() if _is_made_in(files, one)]
    reason = _refusal(uses, known, scored, likely, kind, maker)
    if reason is not None:
        return [Change(remedy, "", before, before, refused=reason)]
    righted = scored if kind == "scores" else []
    softmaxes = {one.call: (one, use) for use in known for one in use.softmaxes}
    refused, changes = _in_the_script(remedy, righted, list(softmaxes.values()))
    if refused is None and kind == "probabilities" and (scored or likely) and maker is not None:
        refused, made = _in_the_network(patient.model, remedy, maker, uses, named)
        changes += made
    if refused is None and kind == "scores" and likely:
        changes.append(_living_criteria(remedy, likely, None, "nn.NLLLoss"))
    if refused is not None and not changes:
        return [Change(remedy, "", before, before, refused=refused)]
    forget_compiled()
    return changes


def _kind_of(output: Any, maker: Maker | None) -> Kind:
    """What a network's output is, by what makes it and by its values over the classes, the second or last dimension."""
    if maker is not None:
        return "logarithms" if maker.kind == "log_softmax" else "probabilities"
    if not isinstance(output, Tensor) or not output.dim() or not output.is_floating_point():
        return "unknown"
    values = output.detach().double()
    for dim in {min(1, values.dim() - 1), values.dim() - 1}:
        if _sums_to_one(values.exp(), dim):
            return "logarithms"
        if bool((values >= 0).all()) and _sums_to_one(values, dim):
            return "probabilities"
    return "scores"


def _sums_to_one(values: Tensor, dim: int) -> bool:
    return bool(((values.sum(dim) - 1).abs() < SUM_TOLERANCE).all())


def _refusal(
    uses: Sequence[Use], known: Sequence[Use], scored: Sequence[Use], likely: Sequence[nn.NLLLoss], kind: Kind,
    maker: Maker | None,
) -> str | None:  # fmt: skip
    """Why nothing is to be done, or can be."""
    softmaxes = [one for use in known for one in use.softmaxes]
    if not uses and not likely:
        return "no nll_loss is seen in the source"
    if softmaxes:
        return next((one.shared for one in softmaxes if one.shared is not None), None)
    if not scored and not likely:
        if len(known) < len(uses):
            return f"it is not certain what it is ({_line(next(use for use in uses if use not in known))})"
        return "it is logarithms of probabilities already, as the source says"
    if kind == "logarithms":
        return "it is logarithms of probabilities already: their exponentials sum to one"
    if kind == "unknown":
        return "the network's output is not one tensor of numbers"
    if kind == "probabilities" and maker is None:
        return "the network puts out probabilities, and what makes them is not known"
    aliased = next((use for use in scored if use.how == "alias"), None)
    if aliased is not None and kind == "scores":
        return f"the loss is called by another name ({ast.unparse(aliased.call.func)}, {_line(aliased)})"
    return None


def _in_the_script(
    remedy: str, uses: Sequence[Use], softmaxes: Sequence[tuple[Softmax, Use]]
) -> tuple[str | None, list[Change]]:
    """Make cross entropies of some losses, and log_softmaxes of what others are given; all of it or nothing."""
    changes, places = [], []
    for softmax, use in softmaxes:
        place, edits = _softmax_place(softmax, use)
        places.append(place)
        changes.append(Change(remedy, "", f"{place.written} ({place.line})", "its log_softmax", None, edits, True))
    criteria: dict[str, list[Use]] = {}
    for use in uses:
        if use.how == "criterion":
            criteria.setdefault(ast.unparse(use.call.func), []).append(use)
            continue
        place = _loss_place(use)
        places.append(place)
        before, edits = f"{place.written} ({place.line})", () if place.edit is None else (place.edit,)
        changes.append(Change(remedy, "", before, "cross_entropy", None, edits, True))
    fresh = []
    for ones in criteria.values():
        spans, _ = _constructor_edits(ones)
        if isinstance(ones[0].call.func, ast.Call) or not _living(spans):
            fresh += [_loss_place(use) for use in ones]
    refused = replace_calls([*places, *fresh])
    if refused is not None:
        return refused, []
    for name, ones in criteria.items():
        spans, edits = _constructor_edits(ones)
        written = f"{name} ({', '.join(_line(use) for use in ones)})"
        changes.append(_living_criteria(remedy, _living(spans), edits, written))
    return None, changes


def _softmax_place(softmax: Softmax, use: Use) -> tuple[Place, tuple[Edit, ...]]:
    """The place of a call, and the edits that make a log_softmax of it, at the call or where its module is made."""
    reading, call = softmax.reading, softmax.call
    home, attribute = reading.looked_up(call) or (None, "")
    edit = None
    if isinstance(home, type) and issubclass(home, nn.Module):
        made = constructors(reading, call.func, home)
        same = [one for one in ast.walk(reading.tree) if isinstance(one, ast.Call) and _is_alike(one.func, call.func)]
        edits = [logarithm_of_constructor(reading.file, reading.source, one, KINDS_OF_MODULES[home]) for one in made]
        edits = edits if isinstance(call.func, ast.Call) or len(same) == 1 else []
    else:
        kind = FUNCTIONS.get(original_of(reading.object(call.func))) or attribute
        edit = logarithm_of_call(reading.file, reading.source, call, kind, reading.is_method(call))
        edits = [edit]
    start, end = bounds_of(call)
    written = f"{ast.unparse(call.func)} before {ast.unparse(use.call.func)}"
    span = span_of(call, reading.file, reading.source)
    place = Place(span, written, edit, home, attribute, start, end, _its_logarithm)
    return place, () if None in edits else tuple(one for one in edits if one is not None)


def _is_alike(one: ast.expr, other: ast.expr) -> bool:
    return ast.unparse(one) == ast.unparse(other)


def _loss_place(use: Use) -> Place:
    reading, call = use.reading, use.call
    if use.how == "criterion":
        home, attribute, edit = nn.NLLLoss, "__call__", None
    else:
        home, attribute = reading.home(call.func) or (None, "")
        edit = renamed(reading.file, reading.source, call.func, FUNCTIONAL, "cross_entropy")
    start, end = bounds_of(call)
    span = span_of(call, reading.file, reading.source)
    return Place(span, ast.unparse(call.func), edit, home, attribute, start, end, _its_cross_entropy)


def _its_logarithm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The log_softmax of the scores that a softmax is given; that over the classes for a sigmoid."""
    if function in _LOGARITHMS:
        return _LOGARITHMS[function](*args, **kwargs)
    dim = _dimension(args[0]) if function is nn.Module.__call__ else 1
    return F.log_softmax(its_input(function, args, kwargs), dim)


def _dimension(module: nn.Module) -> int | None:
    """That over which a module makes probabilities; the classes' for those that know of none."""
    if isinstance(module, nn.Softmax):
        return module.dim
    return -3 if isinstance(module, nn.Softmax2d) else 1


def _its_cross_entropy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The cross entropy in the place of nll_loss, which takes the same arguments."""
    if function is not nn.Module.__call__:
        return F.cross_entropy(*args, **kwargs)
    _become_cross_entropy(args[0])
    return args[0](*args[1:], **kwargs)


def _become_cross_entropy(criterion: nn.NLLLoss) -> None:
    """Weights, ignored index and reduction are kept in the same attributes, and in the state dict as before."""
    righted: Any = criterion
    righted.label_smoothing = 0.0
    righted.__class__ = nn.CrossEntropyLoss


def _living(spans: Sequence[Span] | None = None) -> list[nn.NLLLoss]:
    """The criteria that live. spans: those alone that are made there, or nobody knows where."""
    found = [one for one in gc.get_objects() if type(one) is nn.NLLLoss]
    return [one for one in found if spans is None or origins.origin(one) in (None, *spans)]


def _is_made_in(files: Sequence[str], criterion: nn.NLLLoss) -> bool:
    span = origins.origin(criterion)
    return span is None or span.file in map(os.path.abspath, files)


def _constructor_edits(uses: Sequence[Use]) -> tuple[list[Span], tuple[Edit, ...]]:
    """Where a criterion is made, and the edits there."""
    reading = uses[0].reading
    made = [call for use in uses for call in constructors(reading, use.call.func, nn.NLLLoss)]
    edits = [renamed(reading.file, reading.source, call.func, MODULES, "CrossEntropyLoss") for call in made]
    spans = [span_of(call, reading.file, reading.source) for call in made]
    return spans, () if None in edits else tuple(dict.fromkeys(one for one in edits if one is not None))


def _living_criteria(
    remedy: str, criteria: Sequence[nn.NLLLoss], edits: tuple[Edit, ...] | None, written: str
) -> Change:
    """Make cross entropies of criteria that live. edits: where they are made; None to find that out."""
    if edits is None:
        found = [_edit_at(origins.origin(one)) for one in criteria]
        edits = () if None in found else tuple(dict.fromkeys(one for one in found if one is not None))
    for one in criteria:
        _become_cross_entropy(one)
    return Change(remedy, "", written, "nn.CrossEntropyLoss", None, edits, True)


def _edit_at(span: Span | None) -> Edit | None:
    if span is None:
        return None
    source = read_source(span.file)
    call = call_at(span, source)
    return None if call is None else renamed(span.file, source, call.func, MODULES, "CrossEntropyLoss")


def _in_the_network(
    model: nn.Module, remedy: str, maker: Maker, uses: Sequence[Use], named: set[str]
) -> tuple[str | None, list[Change]]:
    """Make a log_softmax of what makes the output."""
    others = sorted(named & (OTHER_LOSSES - _LIKELIHOODS))
    by_hand = next((use for use in uses if "log" in use.given), None)
    if others:
        return f"the source names {', '.join(others)}, which may be given the probabilities rightly", []
    if by_hand is not None:
        return f"elsewhere the logarithm is taken by hand ({_line(by_hand)})", []
    if maker.calls > 1:
        return "what makes the probabilities runs more than once in a forward pass", []
    if maker.module is model:
        return "what makes the probabilities is the whole network", []
    site = next((path for path, one in model.named_modules() if one is maker.module), "")
    refused, edits = _module_in_the_network(model, maker) if maker.module else _call_in_the_network(maker)
    if refused is not None:
        return refused, []
    after = "log_softmax; what reads the output as probabilities has to take its exponential"
    return None, [Change(remedy, site, f"{maker.kind} as the output", after, None, edits, True)]


def _module_in_the_network(model: nn.Module, maker: Maker) -> tuple[str | None, tuple[Edit, ...]]:
    module = maker.module
    assert module is not None
    made = origins.constructor(module, {id(module)})
    edit = None
    if made is not None:
        span, source, call = made
        edit = logarithm_of_constructor(span.file, source, call, maker.kind)
    replace_module(model, module, nn.LogSoftmax(_dimension(module)).train(module.training))
    return None, () if edit is None else (edit,)


def _call_in_the_network(maker: Maker) -> tuple[str | None, tuple[Edit, ...]]:
    if maker.span is None or maker.code is None:
        return "where the probabilities are made in the source is not known", ()
    source = read_source(maker.span.file)
    call = call_at(maker.span, source)
    edit = None if call is None else logarithm_of_call(maker.span.file, source, call, maker.kind, maker.is_method)
    if edit is None:
        return "the file has no name for log_softmax", ()
    refused = rewrite(maker.code, [edit])
    return refused, () if refused is not None else (edit,)


def _line(use: Use) -> str:
    return f"{os.path.basename(use.reading.file)}:{use.call.lineno}"
