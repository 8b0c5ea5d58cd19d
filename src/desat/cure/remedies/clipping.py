"""clipping: gradients made smaller where they are too large, right before each step of the optimizer.

As with torch.nn.utils.clip_grad_norm_, gradients that are not finite stay not finite, except for the choice that leaves
such a step out, as torch.amp.GradScaler does, whose gradients arrive here unscaled.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.nn.utils.clip_grad import clip_grad_value_
from torch.optim import Optimizer

from desat.cure.family import Change, Choice, Family
from desat.cure.order import has_weights, leaves
from desat.cure.patient import Patient
from desat.cure.remedies.clipping_edit import clipping_edits
from desat.cure.remedies.optimizer import NO_OPTIMIZER, has_sparse_gradients, shared_parameters

LEAST_NORM = 1e-3
"""Norm that a unit's weights are taken to have at least, so that weights of zero can grow.

Source: Brock et al. 2021, section 4.1."""

HISTORY = 4096
"""Norms of the last steps that the percentile is taken of. Seetharaman et al. 2020 take all; the last few thousand say
the same of a run that is under way, and a step does not become slower and slower."""

Clip = Callable[[list[Tensor], Tensor | float], None]
"""Clips the gradients of parameters in place. The number is what they are still multiplied by, 1 but for a fused
optimizer, which takes a scaler's scale out by itself."""


def apply_clipping(patient: Patient, choice: str, number: float | None) -> list[Change]:
    """Clip the gradients of each optimizer before its steps, together with whatever clipping the script does itself.

    norm: by their common norm (Pascanu et al. 2013, algorithm 1). value: each number by itself. agc: the gradient of
    each unit by the norm of its weights, but not of the output layer (Brock et al. 2021, section 4.1). percentile: by
    the common norm, at a percentile of the norms so far (Seetharaman et al. 2020). finite: a step whose gradients are
    not all finite is left out (Micikevicius et al. 2018, section 3.2), for which the host reads one number a step.

    Where several optimizers train one network, each clips what it steps with: the gradients of another one may come
    from another loss, or still carry a scaler's scale.
    """
    limit = 1.0 if number is None else number
    remedy = "clipping=finite" if choice == "finite" else f"clipping={choice}:{limit:g}"
    before = "gradients as they come"
    if not patient.optimizers:
        return [Change(remedy, "the optimizer", before, before, refused=NO_OPTIMIZER)]
    changes = []
    doubled = shared_parameters(patient.optimizers)
    clip = _clipper(patient, choice, limit)
    for place, optimizer in enumerate(patient.optimizers, 1):
        site = "the optimizer" if len(patient.optimizers) == 1 else f"optimizer {place}"
        refused = "another optimizer trains the same parameters" if doubled else _refusal(patient, optimizer, choice)
        if refused is not None:
            changes.append(Change(remedy, site, before, before, refused=refused))
            continue
        optimizer.register_step_pre_hook(Clipping(clip()))
        edits = clipping_edits(optimizer, patient.optimizers, choice, limit)
        changes.append(Change(remedy, site, before, _told(choice, limit), edits=edits))
    return changes


class Clipping:
    """A hook before an optimizer's step; a step with a closure gets another one, which clips when it has run."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip

    @_disable_dynamo
    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._apply(optimizer)
            return None

        def clipped() -> Any:
            loss = closure()
            self._apply(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], clipped, *args[2:]), kwargs
        return args, {**kwargs, "closure": clipped}

    @torch.no_grad()
    def _apply(self, optimizer: Optimizer) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"] if _has_gradient(one)]
        scale = getattr(optimizer, "grad_scale", None)
        if parameters:
            self._clip(parameters, 1.0 if scale is None else scale)


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.layout is torch.strided


def _clipper(patient: Patient, choice: str, limit: float) -> Callable[[], Clip]:
    """What makes the clipping of one optimizer."""
    if choice == "norm":
        return lambda: lambda parameters, scale: clip_by_norm(parameters, limit, scale)
    if choice == "value":
        return lambda: lambda parameters, scale: clip_by_value(parameters, limit, scale)
    if choice == "percentile":
        return lambda: PercentileClip(limit)
    if choice == "finite":
        return lambda: lambda parameters, scale: leave_out_unless_finite(parameters)
    spared = _output_parameters(patient)
    layers = [one for one in patient.model.modules() if isinstance(one, nn.modules.conv._ConvTransposeNd)]
    transposed = {id(layer.weight) for layer in layers}

    def clip(parameters: list[Tensor], scale: Tensor | float) -> None:
        clip_by_unit([one for one in parameters if id(one) not in spared], limit, scale, transposed)

    return lambda: clip


def clip_by_norm(parameters: list[Tensor], limit: float | Tensor, scale: Tensor | float = 1.0) -> None:
    """Scale gradients down to a common Euclidean norm of `limit`, where it is larger."""
    norm = get_total_norm([one.grad for one in parameters if one.grad is not None]) / scale
    clip_grads_with_norm_(parameters, limit, norm)  # pyright: ignore[reportArgumentType]


def clip_by_value(parameters: list[Tensor], limit: float, scale: Tensor | float = 1.0) -> None:
    """Bring each number of the gradients into [-limit, limit]."""
    if not isinstance(scale, Tensor):
        clip_grad_value_(parameters, limit * scale)
        return
    for one in parameters:
        if one.grad is not None:
            bound = (limit * scale).to(one.grad)
            one.grad.clamp_(-bound, bound)


def clip_by_unit(
    parameters: list[Tensor], limit: float, scale: Tensor | float = 1.0, transposed: Collection[int] = ()
) -> None:
    """Scale the gradient of each unit down to `limit` times the norm of its weights, where it is larger.

    A unit is one output of a layer, with all that it sums over; a bias, or a gain, is one unit as a whole. transposed:
    ids of the parameters whose outputs the second dimension counts. Source: Brock et al. 2021, equation 3.
    """
    for one in parameters:
        if one.grad is None:
            continue
        dimension = 1 if id(one) in transposed else 0
        allowed = limit * scale * unit_norms(one, dimension).clamp(min=LEAST_NORM)
        norms = unit_norms(one.grad, dimension)
        # Where the norm is 0 the factor is not used, and neither where it is not a number.
        factors = torch.where(norms > allowed, allowed / norms, 1.0)
        one.grad.mul_(factors.to(one.grad.dtype))


def unit_norms(tensor: Tensor, dimension: int = 0) -> Tensor:
    """The norm of each unit, which `dimension` counts, of a shape that broadcasts with the tensor; at least float32."""
    wide = tensor.detach()
    wide = wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide
    if wide.squeeze().dim() <= 1:
        return torch.linalg.vector_norm(wide)
    return torch.linalg.vector_norm(wide, dim=[one for one in range(wide.dim()) if one != dimension], keepdim=True)


def leave_out_unless_finite(parameters: list[Tensor]) -> None:
    """Take all gradients away where one of them holds nan or infinity, so that the step passes the parameters over."""
    largest = get_total_norm([one.grad for one in parameters if one.grad is not None], norm_type=math.inf)
    if not largest.isfinite():
        for one in parameters:
            one.grad = None


class PercentileClip:
    """Clips by the common norm, at a percentile of the norms of the last steps, this one's included.

    A norm that is not finite is not remembered. Nothing is read by the host.
    """

    def __init__(self, percent: float) -> None:
        self._share = percent / 100
        self._norms: Tensor | None = None
        self._steps = 0

    def __call__(self, parameters: list[Tensor], scale: Tensor | float) -> None:
        norm = get_total_norm([one.grad for one in parameters if one.grad is not None]) / scale
        if self._norms is None:
            self._norms = torch.full((HISTORY,), math.nan, dtype=torch.float32, device=norm.device)
        self._norms[self._steps % HISTORY] = torch.where(norm.isfinite(), norm, math.nan)
        self._steps += 1
        limit = torch.nanquantile(self._norms[: self._steps], self._share).nan_to_num(nan=math.inf)
        coefficient = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_, which the authors call
        for one in parameters:
            if one.grad is not None:
                one.grad.mul_(coefficient.to(one.grad))


def _output_parameters(patient: Patient) -> set[int]:
    """The ids of the parameters of the output layer: the last with weights to run, or, if unknown, to be registered."""
    anatomy = patient.anatomy
    if anatomy is not None:
        last = next((call.module for call in reversed(anatomy.calls) if call.has_weights), None)
    else:
        last = next((module for _, module in reversed(list(leaves(patient.model))) if has_weights(module)), None)
    return set() if last is None else {id(parameter) for parameter in last.parameters()}


def _refusal(patient: Patient, optimizer: Optimizer, choice: str) -> str | None:
    if isinstance(optimizer, torch.optim.LBFGS):
        return "it searches along a line, for which clipped gradients are wrong ones"
    if isinstance(optimizer, torch.optim.SparseAdam) or has_sparse_gradients(patient.model):
        return "its gradients are sparse"
    if any(isinstance(hook, Clipping) for hook in optimizer._optimizer_step_pre_hooks.values()):
        return "its gradients are clipped already"
    if choice == "percentile" and any(group.get("capturable") for group in optimizer.param_groups):
        return "its steps may be captured in a graph, which would repeat one step's place in the history"
    if choice == "finite" and any(group.get("capturable") for group in optimizer.param_groups):
        return "its steps may be captured in a graph, in which the host decides nothing"
    return None


def _told(choice: str, limit: float) -> str:
    return {
        "norm": f"gradients clipped at a common norm of {limit:g}",
        "value": f"each number of the gradients clipped at {limit:g}",
        "agc": f"the gradient of each unit clipped at {limit:g} of its weights' norm, but in the output layer",
        "percentile": f"gradients clipped at percentile {limit:g} of the norms so far",
        "finite": "steps whose gradients are not finite are left out",
    }[choice]


CLIPPING = Family(
    "clipping",
    (
        Choice("norm", "by the common norm of all gradients (Pascanu et al. 2013)", "optional", 1.0),
        Choice("value", "each number of the gradients by itself", "needed"),
        Choice("agc", "each unit by the norm of its weights (Brock et al. 2021)", "optional", 0.01),
        Choice("percentile", "by a percentile of the norms so far (AutoClip)", "optional", 10.0, high=100.0),
        Choice("finite", "a step whose gradients hold nan or infinity is left out"),
    ),
    apply_clipping,
    bare="norm",
    on="optimizer",
)
