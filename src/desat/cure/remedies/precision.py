"""Numbers of a wider range: bfloat16 in place of float16 in a forward pass, weights in float32."""

import functools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parameter import is_lazy

from desat.cure.anatomy import run_beside
from desat.cure.family import Change
from desat.cure.patient import Patient
from desat.watch.taps import first_tensor

NARROW = (torch.float16, torch.bfloat16)

_entered: "WeakKeyDictionary[nn.Module, list[torch.autocast | None]]" = WeakKeyDictionary()


def run_in_bfloat16(patient: Patient, remedy: str) -> list[Change]:
    """Let a forward pass under float16 autocast run under that of bfloat16, which has the range of float32.

    A gradient scaler stays: where nothing overflows it multiplies and divides by a power of two, which changes nothing.
    The loss is computed outside of the network, as before.
    """
    before = "a forward pass under float16 autocast"
    device = _device(patient.model)
    refused = None
    if not _is_float16(device):
        before, refused = "a forward pass", "no float16 autocast is around it"
    elif _switch_on in patient.model._forward_pre_hooks.values():
        refused = "it is switched to bfloat16 already"
    elif device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        refused = "this GPU does not compute in bfloat16"
    if refused is not None:
        return [Change(remedy, "", before, before, refused=refused)]
    patient.model.register_forward_pre_hook(_switch_on, prepend=True)
    patient.model.register_forward_hook(_switch_off, always_call=True)
    return [Change(remedy, "", before, "a forward pass under bfloat16 autocast")]


def _device(model: nn.Module) -> str:
    return next((one.device.type for one in (*model.parameters(), *model.buffers())), "cpu")


def _is_float16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16


@_disable_dynamo
def _switch_on(module: nn.Module, args: Any) -> None:
    device = _device(module)
    context = torch.autocast(device, dtype=torch.bfloat16) if _is_float16(device) else None
    if context is not None:
        torch.clear_autocast_cache()  # which knows a weight's copy and not its type
        context.__enter__()
    _entered.setdefault(module, []).append(context)


@_disable_dynamo
def _switch_off(module: nn.Module, args: Any, output: Any) -> None:
    contexts = _entered.get(module)
    context = contexts.pop() if contexts else None
    if context is not None:
        context.__exit__(None, None, None)
        torch.clear_autocast_cache()


def widen_weights(patient: Patient, remedy: str) -> list[Change]:
    """Keep parameters and buffers of float16 or bfloat16 in float32, in place; inputs are cast, and outputs back.

    Refused where the forward pass does not run so, which one pass beside the training shows.
    """
    model = patient.model
    tensors = [one for one in (*model.parameters(), *model.buffers()) if not is_lazy(one) and one.dtype in NARROW]
    kinds = " and ".join(sorted({str(one.dtype).removeprefix("torch.") for one in tensors}))
    before = f"weights of {kinds}" if kinds else "weights"
    refused = _refusal(patient, tensors)
    if refused is None:
        refused = _widen(patient, tensors)
    if refused is not None:
        return [Change(remedy, "", before, before, refused=refused)]
    return [Change(remedy, "", before, "weights of float32; inputs are cast, and outputs back")]


def _refusal(patient: Patient, tensors: list[Tensor]) -> str | None:
    if not tensors:
        return "none are of float16 or bfloat16"
    if patient.batch is None:
        return "no batch is at hand to see whether the forward pass runs so: hand one over as batch="
    if any(isinstance(one, Tensor) and one.dtype in NARROW for one in patient.batch.kwargs.values()):
        return "inputs come by keyword, where they are not cast"
    if any(one.grad is not None for one in tensors):
        return "there are gradients already"
    if any(optimizer.state.get(one) for optimizer in patient.optimizers for one in tensors):
        return "the optimizer has made steps with them already"
    return None


def _widen(patient: Patient, tensors: list[Tensor]) -> str | None:
    model, batch = patient.model, patient.batch
    assert batch is not None
    kept = [(one, one.data) for one in tensors]
    try:
        output = first_tensor(run_beside(model, *batch))
        for one in tensors:
            one.data = one.data.float()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        run_beside(model, _cast(batch.args, torch.float32), batch.kwargs)
    except Exception as error:  # the forward pass is the user's
        for one, data in kept:
            one.data = data
        return f"the forward pass does not run with them in float32: {type(error).__name__}: {error}"
    model.register_forward_pre_hook(_widen_inputs, prepend=True)
    if output is not None and output.dtype in NARROW:
        model.register_forward_hook(functools.partial(_narrow_outputs, output.dtype))
    return None


def _widen_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return _cast(args, torch.float32)


def _narrow_outputs(kind: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, kind)


def _cast(value: Any, kind: torch.dtype) -> Any:
    """A nest with its floating-point tensors of another dtype: narrow ones widened, those of float32 narrowed."""
    if isinstance(value, Tensor):
        wanted = NARROW if kind is torch.float32 else (torch.float32,)
        return value.to(kind) if value.dtype in wanted else value
    if type(value) in (list, tuple):
        return type(value)(_cast(one, kind) for one in value)
    return {name: _cast(one, kind) for name, one in value.items()} if type(value) is dict else value
