"""What makes a network's output, where that is a function from scores to probabilities, and which losses are named."""

import ast
import contextlib
import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from desat.cure.anatomy import run_beside
from desat.cure.edit import KEPT, Span, parsed, read_source, span_of_call
from desat.cure.order import modules
from desat.cure.patient import Batch
from desat.watch.functional import FunctionTap
from desat.watch.sites import user_frame, user_frames

MODULES: dict[type[nn.Module], str] = {
    nn.Softmax: "softmax",
    nn.Softmax2d: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "log_sigmoid",
}
FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), "softmax"),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), "log_softmax"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid, torch.special.expit), "sigmoid"),
    F.logsigmoid: "log_sigmoid",
}

LOSSES_OF_SCORES = {
    "softmax": {"CrossEntropyLoss", "cross_entropy"},
    "sigmoid": {
        "BCEWithLogitsLoss", "binary_cross_entropy_with_logits", "MultiLabelSoftMarginLoss",
        "multilabel_soft_margin_loss", "SoftMarginLoss", "soft_margin_loss",
    },
}  # fmt: skip
"""Names of the losses that have a softmax, or a sigmoid, of their own."""

OTHER_LOSSES = {
    "NLLLoss", "nll_loss", "BCELoss", "binary_cross_entropy", "KLDivLoss", "kl_div", "MSELoss", "mse_loss", "L1Loss",
    "l1_loss", "SmoothL1Loss", "smooth_l1_loss", "HuberLoss", "huber_loss", "GaussianNLLLoss", "gaussian_nll_loss",
    "PoissonNLLLoss", "poisson_nll_loss", "CTCLoss", "ctc_loss", "HingeEmbeddingLoss", "hinge_embedding_loss",
    "MultiMarginLoss", "multi_margin_loss", "MultiLabelMarginLoss", "multilabel_margin_loss",
}  # fmt: skip
"""Names of the losses that are given probabilities, their logarithms, or whatever else a network puts out."""


@dataclass(frozen=True, eq=False)
class Maker:
    """What makes the output.

    module: None for a call of a function, or of a tensor's method, which stands at `span` in the function with `code`.
    """

    kind: str
    module: nn.Module | None = None
    calls: int = 1
    is_method: bool = False
    code: CodeType | None = None
    span: Span | None = None


def maker_of_output(model: nn.Module, batch: Batch) -> Maker | None:
    """What makes the only tensor that a forward pass returns, if it is one of those known here; None otherwise."""
    return output_of(model, batch)[1]


def output_of(model: nn.Module, batch: Batch) -> tuple[Any, Maker | None]:
    """What a forward pass returns, and what makes that: None where it is not one tensor, or no function known here.

    One pass beside the training (see desat.cure.anatomy). Raises what the pass raises.
    """
    made: list[tuple[Tensor, Maker]] = []
    hooks: list[RemovableHandle] = []
    inside = 0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal inside
        inside += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal inside
        inside -= 1
        made.append((output, Maker(MODULES[type(module)], module)))

    def call(function: Any, args: Any, kwargs: Any) -> Any:
        output = function(*args, **kwargs)
        frame = None if inside else user_frame()
        if frame is not None:
            is_method = function in (Tensor.softmax, Tensor.log_softmax, Tensor.sigmoid)
            maker = Maker(FUNCTIONS[function], is_method=is_method, code=frame.f_code, span=span_of_call(frame))
            made.append((output, maker))
        return output

    for _, module in modules(model):
        if type(module) in MODULES:
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with FunctionTap(FUNCTIONS, call):
            output = run_beside(model, *batch)
    finally:
        for hook in hooks:
            hook.remove()
    return output, _maker(output, made) if isinstance(output, Tensor) else None


def _maker(output: Tensor, made: list[tuple[Tensor, Maker]]) -> Maker | None:
    """The maker of a tensor, or of the one that it is a view of as a whole."""
    for tensor, maker in reversed(made):
        same = tensor.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        if same and tensor.numel() == output.numel():
            calls = sum(other.module is maker.module and other.span == maker.span for _, other in made)
            return replace(maker, calls=calls)
    return None


def names_in(files: Iterable[str]) -> set[str]:
    """All names and attributes that Python files speak of; a file that cannot be read has none."""
    names: set[str] = set()
    for file in files:
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            names |= _names_of(read_source(file))
    return names


@functools.lru_cache(KEPT)
def _names_of(source: str) -> frozenset[str]:
    nodes = list(ast.walk(parsed(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return frozenset(names | {node.attr for node in nodes if isinstance(node, ast.Attribute)})


def files_of_training(model: nn.Module) -> list[str]:
    """The source files in which the loss may stand: that of the script, of the model's class, of who calls it."""
    frame = user_frame()
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("__main__", type(model).__module__)]
    files.append(None if frame is None else frame.f_code.co_filename)
    torchs = str(torch.__file__).removesuffix("__init__.py")
    return list(dict.fromkeys(file for file in files if file and not file.startswith(torchs)))


def calling_files() -> list[str]:
    """The user's source files that have a call under way."""
    return [frame.f_code.co_filename for frame in user_frames()]


def argument_of(call: ast.Call, is_method: bool) -> ast.expr | None:
    """The scores that a call makes probabilities of: those of `F.softmax(z, 1)` and of `z.softmax(1)`."""
    if not is_method:
        keyword = next((one.value for one in call.keywords if one.arg == "input"), None)
        argument = call.args[0] if call.args else keyword
        return None if isinstance(argument, ast.Starred) else argument
    is_bound = isinstance(call.func, ast.Attribute) and not ast.unparse(call.func.value).endswith("Tensor")
    return call.func.value if is_bound and isinstance(call.func, ast.Attribute) else None


def argument_text(source: str, argument: ast.expr, alone: bool = False) -> str | None:
    """An argument as it is written, fit to stand for the whole call. alone: nothing is done to the call's result."""
    text = ast.get_source_segment(source, argument)
    plain = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, *((ast.BinOp, ast.UnaryOp) if alone else ()))
    return text if text is None or (isinstance(argument, plain) and "\n" not in text) else f"({text})"
