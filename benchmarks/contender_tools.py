"""torchmortem and torch-audit, attached to a script that knows nothing of them, and what their findings mean.

Both are attached as their READMEs say and where a user would do it: to the model and its optimizer, before the first
forward pass. The optimizer is noted when it is made; the model is the first module that is called and holds a
parameter of that optimizer. The loop has ended where the model is called in evaluation mode, or where the script ends.

- torchmortem: `Autopsy(model, optimizer=optimizer)` with its default sampling; after each step of the optimizer
  `autopsy.step(loss=loss.item())`, with the loss whose `backward` was called last; its report where the loop ends.
- torch-audit: `autopatch(model, optimizer=optimizer, every_n_steps=1)`, its way for a loop that stays as it is, but at
  each step instead of one in 1000, since these scripts have some hundred; `auditor.finish()` where the loop ends.

What is wrapped here (`Module.__call__`, `Tensor.backward`, `Optimizer.__init__`) is never unwrapped: it is meant for a
process that runs one script. torch and the tools are imported when a tool is attached, not with this module.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODULES: Mapping[str, str] = {"torchmortem": "torchmortem", "torch-audit": "torch_audit"}
"""The tools, by the names of their packages, and the modules to import."""

GRAVE: Mapping[str, frozenset[str]] = {
    "torchmortem": frozenset({"CRITICAL"}),
    "torch-audit": frozenset({"ERROR", "FATAL"}),
}
"""The gravest of a tool's own severities: what it finds with one of them, it has said."""

MEANING: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "torchmortem": {
        "Vanishing gradients detected": ("vanishing-gradient",),
        "Exploding gradients detected": ("exploding-gradient",),
        "Gradient stalling": ("vanishing-gradient", "untrained-parameter"),
        "Dead units": ("dead-units",),
        "Activation saturation": ("saturated-activation", "saturated-output"),
        "Update ratio too low": ("update-too-small",),
        "Update ratio too high": ("update-too-large",),
        "Training divergence detected": ("loss-diverging",),
        "Loss plateau detected": ("loss-plateau",),
        "Catapult phase detected": (),
        "Edge of stability regime detected": ("sharp-curvature",),
        "Rank collapse": ("collapsed-rank",),
        "Weight norm explosion": ("update-too-large",),
        "Stagnant weight norms": ("update-too-small", "untrained-parameter"),
        "Inter-layer weight norm imbalance": (),
        "High gradient noise (low SNR)": (),
    },
    "torch-audit": {
        "TA000": (),  # a check of its own has failed
        "TA100": ("non-finite", "exploding-gradient"),  # NaN or infinity in parameters or gradients
        "TA102": ("exploding-gradient",),
        "TA103": ("dead-units", "vanishing-gradient"),  # gradients that are zero
        "TA104": ("untrained-parameter",),  # no gradients at all
        "TA105": ("dead-units",),
        "TA200": (),
        "TA201": (),
        "TA202": (),
        "TA203": (),
        "TA300": (),
        "TA301": ("unscaled-input",),
        "TA302": ("unscaled-input", "vanishing-signal"),  # inputs of next to no variance
        "TA303": (),
        "TA304": ("degenerate-batchnorm",),
        "TA305": (),
        "TA400": (),
        "TA401": (),
        "TA402": (),
        "TA403": (),
        "TA404": (),
        "TA405": ("dead-units", "symmetric-units"),  # filters of zero weights
        "TA500": ("untrained-parameter",),  # layers that are never called
        "TA501": ("degenerate-batchnorm",),  # a BatchNorm that is called twice
    },
}
"""The finding codes of desat that a tool's finding corresponds to, whatever its severity.

By torch-audit's rule, and by torchmortem's title without the layer, since one of its detectors tells several things.
In doubt for the tool: a finding has every code that its text can be read as. Those with none are no fault of training
(kernels' sizes, devices), normal by the tool's own words, or of something that has no code (the gradient's noise).
"""


@dataclass(frozen=True)
class Said:
    """One kind of finding. count: how often it came; sites: module paths, sorted, none for the whole network."""

    id: str
    severity: str
    count: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Attached:
    """A tool at work. after_step: to be called with the loss; finish: with whether the script came to its end."""

    after_step: Callable[["torch.Tensor | None"], None]
    finish: Callable[[bool], list[Said]]


def is_installed(tool: str) -> bool:
    return importlib.util.find_spec(MODULES[tool]) is not None


def version_of(tool: str) -> str:
    """Of the installed package. Raises importlib.metadata.PackageNotFoundError where there is none."""
    return importlib.metadata.version(tool)


def codes_of(tool: str, said: Iterable[Said]) -> list[str]:
    """The finding codes, sorted, of what a tool says with its gravest severities; none for an unknown finding."""
    grave = (one for one in said if one.severity in GRAVE[tool])
    return sorted({code for one in grave for code in MEANING[tool].get(one.id, ())})


class Bystander:
    """Attaches one tool to what the script that runs next in this process trains."""

    def __init__(self, tool: str) -> None:
        self._attach = _ATTACH[tool]
        self._optimizers: list[torch.optim.Optimizer] = []
        self._model: torch.nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._attached: Attached | None = None
        self._loss: torch.Tensor | None = None
        self._said: list[Said] | None = None

    def stand_by(self) -> None:
        """Wrap what has to be wrapped. To be called once, before the script runs."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        call, backward, initialize = torch.nn.Module.__call__, torch.Tensor.backward, torch.optim.Optimizer.__init__

        def called(module: "torch.nn.Module", *args: Any, **named: Any) -> Any:
            self._before_forward(module)
            return call(module, *args, **named)

        def went_backward(loss: "torch.Tensor", *args: Any, **named: Any) -> Any:
            self._loss = loss.detach()
            return backward(loss, *args, **named)

        def made(optimizer: "torch.optim.Optimizer", *args: Any, **named: Any) -> None:
            initialize(optimizer, *args, **named)
            self._optimizers.append(optimizer)

        for owner, name, wrapper in (
            (torch.nn.Module, "__call__", called),
            (torch.Tensor, "backward", went_backward),
            (torch.optim.Optimizer, "__init__", made),
        ):
            setattr(owner, name, wrapper)
        register_optimizer_step_post_hook(self._after_step)

    def finish(self, complete: bool) -> list[Said]:
        """What the tool found. complete: whether the loop came to its end. Raises LookupError if nothing was trained.

        The second call, and any later one, gives what the first one gave.
        """
        if self._attached is None:
            raise LookupError("nothing was trained: no model was called that holds a parameter of an optimizer")
        if self._said is None:
            self._said = self._attached.finish(complete)
        return self._said

    def _before_forward(self, module: "torch.nn.Module") -> None:
        if self._attached is None:
            mine = {id(parameter) for parameter in module.parameters()}
            for optimizer in self._optimizers:
                if any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
                    self._model, self._optimizer = module, optimizer
                    self._attached = self._attach(module, optimizer)
                    return
        elif module is self._model and not module.training:
            self.finish(True)

    def _after_step(self, optimizer: "torch.optim.Optimizer", args: Any, named: Any) -> None:
        if self._attached is not None and self._said is None and optimizer is self._optimizer:
            self._attached.after_step(self._loss)


def _torchmortem(model: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> Attached:
    from torchmortem import Autopsy

    autopsy = Autopsy(model, optimizer=optimizer)
    autopsy.attach()

    def after_step(loss: "torch.Tensor | None") -> None:
        autopsy.step(**({} if loss is None else {"loss": loss.item()}))

    def finish(complete: bool) -> list[Said]:
        autopsy.detach(is_complete=complete)
        report = autopsy.get_report()
        found = report.findings if report is not None else []
        return _gathered((one.title.split(" in ")[0], one.severity.name, one.affected_layers) for one in found)

    return Attached(after_step, finish)


def _torch_audit(model: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> Attached:
    from torch_audit import autopatch

    auditor = autopatch(model, optimizer=optimizer, every_n_steps=1)

    def finish(complete: bool) -> list[Said]:
        found = auditor.finish().findings
        auditor.unpatch()
        return _gathered(
            (one.rule_id, one.severity.value, [one.module_path] if one.module_path else []) for one in found
        )

    return Attached(lambda loss: None, finish)


_ATTACH = {"torchmortem": _torchmortem, "torch-audit": _torch_audit}


def _gathered(findings: Iterable[tuple[str, str, list[str]]]) -> list[Said]:
    """Findings of one kind as one."""
    counts: dict[tuple[str, str], int] = {}
    sites: dict[tuple[str, str], set[str]] = {}
    for name, severity, places in findings:
        counts[name, severity] = counts.get((name, severity), 0) + 1
        sites.setdefault((name, severity), set()).update(places)
    return [Said(*kind, count, tuple(sorted(sites[kind]))) for kind, count in counts.items()]


def as_json(said: Iterable[Said]) -> list[dict[str, Any]]:
    return [{**asdict(one), "sites": list(one.sites)} for one in said]
