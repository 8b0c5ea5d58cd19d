"""loss: what stands between a network and its loss; a softmax too many, numbers of too narrow a range."""

import ast

from torch import nn

from desat.cure import origins
from desat.cure.edit import Edit, call_at, read_source
from desat.cure.family import Change, Choice, Family
from desat.cure.patient import Patient
from desat.cure.remedies.before_loss import places_in
from desat.cure.remedies.bypass import replace_calls
from desat.cure.remedies.log_probabilities import give_log_probabilities
from desat.cure.remedies.optimizer_source import known_name
from desat.cure.remedies.output import (
    LOSSES_OF_SCORES,
    OTHER_LOSSES,
    Maker,
    argument_of,
    argument_text,
    calling_files,
    files_of_training,
    maker_of_output,
    names_in,
)
from desat.cure.remedies.placement import replace_module
from desat.cure.remedies.precision import run_in_bfloat16, widen_weights
from desat.cure.rewrite import rewrite


def apply_loss(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Change what the loss is given.

    logits: a softmax or sigmoid that makes the output goes, where the loss has its own. Which loss follows cannot be
    known at the first forward pass: taken for it is what the source files name, that of the script, of the model's
    class and of the caller. Where the network makes none, one goes that these files, or those of the callers further
    out, apply right before such a loss: see desat.cure.remedies.before_loss.

    log-probabilities: see desat.cure.remedies.log_probabilities. bfloat16, float32-weights: see
    desat.cure.remedies.precision.
    """
    remedy = f"loss={choice}"
    if choice == "bfloat16":
        return run_in_bfloat16(patient, remedy)
    if choice == "float32-weights":
        return widen_weights(patient, remedy)
    if choice == "log-probabilities":
        return give_log_probabilities(patient, remedy)
    return [_logits(patient, remedy)]


def _logits(patient: Patient, remedy: str) -> Change:
    if patient.batch is None:
        reason = "no batch is at hand to see what makes it: hand one over as batch="
        return Change(remedy, "", "the output", "the output", refused=reason)
    try:
        maker = maker_of_output(patient.model, patient.batch)
    except Exception as error:  # the forward pass is the user's
        reason = f"a forward pass beside the training failed: {type(error).__name__}: {error}"
        return Change(remedy, "", "the output", "the output", refused=reason)
    if maker is None:
        return _logits_before_loss(patient.model, remedy)
    site = next((path for path, one in patient.model.named_modules() if one is maker.module), "")
    before = f"{maker.kind} as the output"
    named = names_in(files_of_training(patient.model))
    refused = _refusal(patient.model, maker, named)
    edits: tuple[Edit, ...] = ()
    if refused is None:
        refused, edits = _removed_module(patient.model, maker.module) if maker.module else _removed_call(maker)
    if refused is not None:
        return Change(remedy, site, before, before, refused=refused)
    after = "scores; what reads the output as probabilities has to apply it itself"
    return Change(remedy, site, before, after, edits=edits, redefines_loss=True)


def _logits_before_loss(model: nn.Module, remedy: str) -> Change:
    """Leave out the softmax or sigmoid that the script itself makes of the output, right before its loss."""
    places = places_in([*files_of_training(model), *calling_files()])
    if not places:
        reason = (
            "no softmax or sigmoid makes it, or it is not one tensor; "
            "nor is one seen in the source right before a loss that has its own"
        )
        return Change(remedy, "", "the output", "the output", refused=reason)
    if len(places) > 1:
        lines = ", ".join(place.line for place in places)
        reason = f"more than one stands right before a loss that has its own ({lines})"
        return Change(remedy, "", "the output", "the output", refused=reason)
    (place,) = places
    before = f"{place.written} ({place.line})"
    refused = replace_calls(places)
    if refused is not None:
        return Change(remedy, "", before, before, refused=refused)
    edits = () if place.edit is None else (place.edit,)
    return Change(remedy, "", before, "the scores", edits=edits, redefines_loss=True)


def _refusal(model: nn.Module, maker: Maker, named: set[str]) -> str | None:
    """Why it has to stay. named: names in the source."""
    others = sorted(named & OTHER_LOSSES)
    scores = {kind for kind, losses in LOSSES_OF_SCORES.items() if losses & named}
    if others:
        return f"the source names {', '.join(others)}, which may be given it rightly"
    if not scores:
        return "the source names no loss that has a softmax or sigmoid of its own"
    if maker.kind == "log_softmax" and scores == {"softmax"}:
        return "a second log-softmax, that of the loss, changes nothing"
    if maker.calls > 1:
        return "it runs more than once in a forward pass"
    if maker.module is model:
        return "it is the whole network"
    return None


Removal = tuple[str | None, tuple[Edit, ...]]
"""Why it could not be removed, or None; and how the source would say it."""


def _removed_module(model: nn.Module, module: nn.Module) -> Removal:
    edits = _module_edits(module)
    replace_module(model, module, nn.Identity().train(module.training))
    return None, edits


def _module_edits(module: nn.Module) -> tuple[Edit, ...]:
    made = origins.constructor(module, {id(module)})
    if made is None:
        return ()
    span, source, call = made
    prefix, dot, _ = (ast.get_source_segment(source, call.func) or "").rpartition(".")
    name = f"{prefix}.Identity" if dot else known_name(source, "torch.nn.Identity")
    return () if name is None else (Edit(span, f"{name}()"),)


def _removed_call(maker: Maker) -> Removal:
    if maker.span is None or maker.code is None:
        return "where it is called in the source is not known", ()
    source = read_source(maker.span.file)
    call = call_at(maker.span, source)
    argument = None if call is None else argument_of(call, maker.is_method)
    text = None if argument is None else argument_text(source, argument)
    if text is None:
        return "its argument is not found in the source", ()
    edit = Edit(maker.span, text)
    refused = rewrite(maker.code, [edit])
    return (refused, ()) if refused is not None else (None, (edit,))


LOSS = Family(
    "loss",
    (
        Choice("logits", "no softmax or sigmoid before a loss that has its own"),
        Choice("log-probabilities", "nll_loss gets logarithms of probabilities, or is cross_entropy"),
        Choice("bfloat16", "the forward pass under autocast of bfloat16 in place of float16"),
        Choice("float32-weights", "weights of float16 or bfloat16 kept in float32"),
    ),
    apply_loss,
)
