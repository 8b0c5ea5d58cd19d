"""Admission: remedies reach an unmodified script's network at its first forward pass, its optimizer before it steps."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Literal

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.cure import origins
from desat.cure.family import Change
from desat.cure.patient import Batch, Patient
from desat.cure.remedy import Remedy, apply, wants_optimizer

_CALL_OF_A_MODULE = nn.Module._call_impl.__code__

Note = Callable[[Sequence[Change]], None]


class Admission:
    """Applies remedies to each network of a script, once. note: is told of all changes so far, whenever there are new.

    Where a network's first forward pass comes before its optimizer is made, what works on the optimizer waits for a
    later pass, until a step is made.
    """

    def __init__(self, remedies: Sequence[Remedy], note: Note) -> None:
        self._remedies = remedies
        self._note = note
        self._changes: list[Change] = []
        self._waiting: list[Patient] = []
        self._looking: RemovableHandle | None = None
        self._stepping: RemovableHandle | None = None
        origins.install()

    def first_forward(self, root: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Called with a network before its first forward pass; returns arguments, where a remedy changes them."""
        model = getattr(root, "_orig_mod", root)
        before = set(model._forward_pre_hooks)
        patient = Patient(root, origins.living_optimizers(), Batch(args, _keywords(root)))
        self._apply(patient, "model")
        if patient.optimizers:
            self._apply(patient, "optimizer")
        elif wants_optimizer(self._remedies):
            self._wait(patient)
        # Python calls the hooks that a module had when it was called: what was added since is called here.
        changed = args
        for number, hook in list(model._forward_pre_hooks.items()):
            if number not in before and root is model:
                result = hook(model, changed)
                changed = changed if result is None else result if isinstance(result, tuple) else (result,)
        return None if changed is args else changed

    def finish(self) -> None:
        """Leave no hook behind."""
        self._stop_looking()
        if self._stepping is not None:
            self._stepping.remove()
        origins.uninstall()

    def _apply(self, patient: Patient, on: Literal["model", "optimizer"]) -> None:
        """One remedy after the other; one that fails is reported as refused, and the training goes on."""
        try:
            self._changes += apply(patient, self._remedies, on)
        except Exception as error:
            asked = ", ".join(map(str, self._remedies))
            reason = f"{type(error).__name__}: {error}"
            self._changes.append(Change(asked, "", f"what {asked} changes", "", refused=reason))
        self._note(self._changes)

    def _wait(self, patient: Patient) -> None:
        self._waiting.append(patient)
        if self._looking is None:
            self._looking = register_module_forward_pre_hook(lambda module, args: self._look_for_optimizers())
        if self._stepping is None:
            self._stepping = register_optimizer_step_pre_hook(self._too_late)

    def _look_for_optimizers(self) -> None:
        for patient in list(self._waiting):
            found = Patient(patient.model, origins.living_optimizers(), patient.batch)
            if found.optimizers:
                self._waiting.remove(patient)
                self._apply(found, "optimizer")
        if not self._waiting:
            self._stop_looking()

    def _too_late(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # This hook itself stays: torch goes through its hooks of steps while they run.
        self._waiting.clear()
        self._stop_looking()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.remove()
            self._looking = None


def _keywords(root: nn.Module) -> dict[str, Any]:
    """The keyword arguments of the call of a module that is under way, which a hook before all modules is not given."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL_OF_A_MODULE and frame.f_locals.get("self") is root:
            return dict(frame.f_locals.get("kwargs") or {})
        frame = frame.f_back
    return {}
