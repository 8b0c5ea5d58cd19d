"""The graph behind a loss: whether it can be run backward once more with nobody noticing, and the leaves it ends in.

Running a graph backward runs the user's code where there is any in it: hooks on tensors and nodes, custom autograd
functions, checkpointed blocks, what a saved tensor is unpacked by. A graph that holds such code is left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]

LONGEST_GRAPH = 20_000
"""Nodes of a graph that are looked at; one with more is left alone. A node costs about a microsecond."""


class UnrepeatableError(Exception):
    """Why a graph is not run backward once more. lasting: it will be the same at the next step."""

    def __init__(self, reason: str, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Bystander:
    """Notes from `arm` to `disarm` what user code hangs on the graph that is being built.

    What hangs on a node cannot be asked for afterwards; but each hook takes a number from torch's one counter.
    """

    def __init__(self) -> None:
        self._noticed: dict[str, bool] = {}
        self._restore: list[Callable[[], None]] = []
        self._next_hook = 0
        self._oldest = 0

    @property
    def armed(self) -> bool:
        return bool(self._restore)

    def arm(self) -> None:
        """Start; every hook of desat itself must be in place, except those on tensors, which `check` is told of."""
        self.disarm()
        self._noticed = {}
        if _saved_tensors_are_packed():
            self._noticed[_PACKED] = True
        self._restore = [
            _notice(Tensor, "retain_grad", lambda: self._noticed.setdefault(_RETAINED, False)),
            _notice(saved_tensors_hooks, "__enter__", lambda: self._noticed.setdefault(_PACKED, True)),
        ]
        self._next_hook = RemovableHandle.next_id
        self._oldest = _autograd._get_sequence_nr()

    def disarm(self) -> None:
        """Put everything back."""
        while self._restore:
            self._restore.pop()()

    def check(self, loss: Tensor, own_hooks: int) -> list[Tensor]:
        """The leaves of the loss that require a gradient; raises UnrepeatableError. own_hooks: desat's, since `arm`."""
        _check_surroundings(loss)
        leaves = _leaves(loss, self._oldest)
        for reason, lasting in self._noticed.items():
            raise UnrepeatableError(reason, lasting)
        if RemovableHandle.next_id - self._next_hook != own_hooks:
            raise UnrepeatableError("a hook was registered during the step, and would run again", lasting=False)
        return leaves


_RETAINED = "retain_grad() was called, and would see the gradients of another backward pass"
_PACKED = "saved tensors are unpacked by code of their own (a checkpointed block, say), which would run again"


def _check_surroundings(loss: Tensor) -> None:
    if torch._C._current_graph_task_id() != -1:
        raise UnrepeatableError("backward() is called inside of another backward pass", lasting=True)
    if torch.is_inference_mode_enabled():
        raise UnrepeatableError("backward() is called in inference mode", lasting=True)
    if _saved_tensors_are_packed():
        raise UnrepeatableError(_PACKED, lasting=True)
    if torch._C._len_torch_dispatch_stack():
        raise UnrepeatableError("a TorchDispatchMode is active, and would see another backward pass", lasting=False)
    if loss.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UnrepeatableError("the step is being captured as a CUDA graph", lasting=False)


def _saved_tensors_are_packed() -> bool:
    return _autograd._top_saved_tensors_default_hooks(True) is not None


def _leaves(loss: Tensor, oldest: int) -> list[Tensor]:
    """Leaves in the order in which they are met; nodes numbered below `oldest` were made before the step."""
    todo: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    seen: set[Any] = set(todo)
    leaves: list[Tensor] = []
    while todo:
        node = todo.pop()
        name: str = node.name()
        if isinstance(node, BackwardCFunction) or "CppNode" in name:
            raise UnrepeatableError(f"the code of a custom autograd function ({name}) would run again", lasting=True)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
            continue
        if node._sequence_nr() < oldest:
            raise UnrepeatableError("a part of the graph is older than the step", lasting=False)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
        if len(seen) > LONGEST_GRAPH:
            raise UnrepeatableError(f"the graph has more than {LONGEST_GRAPH} nodes", lasting=True)
    return leaves


def _notice(owner: Any, name: str, noticed: Callable[[], Any]) -> Callable[[], None]:
    """Call `noticed` before each call of a method; returns what undoes it."""
    own = vars(owner).get(name)
    original = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        noticed()
        return original(*args, **kwargs)

    setattr(owner, name, method)
    return (lambda: delattr(owner, name)) if own is None else (lambda: setattr(owner, name, own))
