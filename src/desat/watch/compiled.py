"""Compiled models: a sampled step runs them eagerly, all other steps run the compiled code."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from desat.watch.stand_in import StandIn


class EagerStance:
    """Makes torch.compile stand aside while it is held, without a recompilation.

    torch's compiler is not imported for it: where nothing has imported it, nothing is compiled. A script that compiles
    its model while a step is being sampled is met by what stands in for torch.compile from `install` on.
    """

    def __init__(self) -> None:
        self._held = False
        self._stance: Any = None
        self._first_compiled: Callable[[], None] | None = None
        self._stand_in = StandIn(torch, "compile", self._around)
        self._has_any_global_hook = getattr(torch_module, "_has_any_global_hook", None)

    def install(self, first_compiled: Callable[[], None]) -> None:
        """first_compiled: called once, before anything is compiled."""
        self._first_compiled = first_compiled
        if "torch._dynamo" in sys.modules:
            self._tell()
        self._stand_in.install()

    def uninstall(self) -> None:
        self.release()
        self._stand_in.uninstall()

    def _around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._tell()
        compiled = original(*args, **kwargs)
        if self._held:
            self.hold()
        return compiled

    def _tell(self) -> None:
        tell, self._first_compiled = self._first_compiled, None
        if tell is not None:
            tell()

    def hold(self) -> None:
        """Run compiled code eagerly from here on."""
        self._held = True
        if self._stance is None and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
            # A compiled module warns its user of global module hooks; these are ours, and gone after the step.
            torch_module._has_any_global_hook = bool

    def release(self) -> None:
        """Run compiled code as compiled again."""
        self._held = False
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
            torch_module._has_any_global_hook = self._has_any_global_hook
