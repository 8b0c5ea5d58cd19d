"""A call left out of a program that runs, though the function that makes it may have a call under way."""

import functools
import gc
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from desat.cure.edit import Edit, Span, read_source
from desat.cure.remedies.output import FUNCTIONS
from desat.cure.rewrite import rewrite
from desat.watch.functional import FunctionTap
from desat.watch.sites import user_frame


@dataclass(frozen=True, eq=False)
class Place:
    """A call of a softmax or sigmoid whose result is the first argument of a loss.

    text: what the call is replaced by. home, attribute: where the program looks up what is called; home is None for a
    name of the file's own. position: of the scores among the arguments. start, end: line, from 1, and column, in
    bytes from 0, of the call, as Python's compiler counts. refused: why it cannot be left out.
    """

    span: Span
    written: str
    text: str
    home: Any
    attribute: str
    position: int
    start: tuple[int, int]
    end: tuple[int, int]
    refused: str | None = None


_left_out: dict[int, tuple[types.CodeType, frozenset[int]]] = {}
"""By the identity of a code: the code, and the instructions at which it makes a call that is left out."""

_originals: dict[Any, Any] = {}
"""By what stands in its place now, the function that torch has."""

_treated: set[Span] = set()


def original_of(function: Any) -> Any:
    """The function of torch's that another was put in the place of here; any other is its own."""
    return _originals.get(function, function)


def leave_out(place: Place) -> str | None:
    """Make the call at a place return its argument from now on. Returns why not, None where it was done.

    A function that does not run now gets the code that the edit would give it, see desat.cure.rewrite. The code of one
    that runs, as the training loop does at the first forward pass, cannot be replaced: there the function that is
    called, such as `torch.softmax`, is replaced by one that looks who calls it. It returns its input, the very object,
    to the one place; every other call goes to the original with its arguments as they are. This costs each call of that
    function a look at the calling frame, about a microsecond, and stays for the process. Where the network runs inside
    of the very call, as in `torch.softmax(model(x), 1)`, Python has looked up the function before: that one call is
    caught by a function mode, which goes at the next optimizer step. Inside of torch.compile all is as it was, so a
    place in a compiled function that runs now keeps its call; TorchScript made afterwards of code that calls the same
    function by the same name refuses it.
    """
    if place.span in _treated:
        return "it is left out already"
    if place.refused is not None:
        return place.refused
    source = read_source(place.span.file)
    codes, instructions = _codes_at(place, compile(source, place.span.file, "exec", dont_inherit=True))
    if not codes:
        return "the code that runs is not that of the file"
    is_done = _can_be_rewritten(codes) and _rewritten(codes, place)
    refused = None if is_done else _bypassed(codes, instructions, place)
    if refused is None:
        _treated.add(place.span)
    return refused


def _rewritten(codes: list[types.CodeType], place: Place) -> bool:
    refusals = [rewrite(code, [Edit(place.span, place.text)]) for code in codes]
    return not any(refusals)


def _bypassed(codes: list[types.CodeType], instructions: frozenset[int], place: Place) -> str | None:
    if place.home is not None:
        _look_who_calls(place.home, place.attribute, place.position, getattr, setattr)
    else:
        namespaces = [names for names in _namespaces(place.span.file) if callable(names.get(place.attribute))]
        if not namespaces:
            return f"{place.attribute} is not among the names of its file"
        for names in namespaces:
            _look_who_calls(names, place.attribute, place.position, dict.__getitem__, dict.__setitem__)
    for code in codes:
        _left_out[id(code)] = (code, instructions | _left_out.get(id(code), (code, frozenset()))[1])
    if any(_is_within(frame, place) for frame in _running() if id(frame.f_code) in {id(code) for code in codes}):
        _catch_the_call_under_way()
    return None


def _is_within(frame: types.FrameType, place: Place) -> bool:
    """Whether a frame is about to make the call: it has looked up the function, and now runs what makes its input."""
    line, _, column, _ = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return line is not None and column is not None and place.start <= (line, column) < place.end


def _catch_the_call_under_way() -> None:
    """Leave out a call whose function was looked up before: a function mode sees it, up to the next optimizer step."""

    def handle(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling() and _is_left_out(user_frame()):
            return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)

    def end(*_: Any) -> None:
        tap.leave()
        hook.remove()

    # A function of torch's written in Python hands to a mode what its own name stands for, the replacement by now.
    tap = FunctionTap(FUNCTIONS.keys() | _originals.keys(), handle)
    hook = register_optimizer_step_pre_hook(end)
    above = [_pop_mode() for _ in range(len(_get_current_function_mode_stack()))]
    # Below all others, so that whoever takes away the uppermost takes away its own.
    for mode in (tap, *reversed(above)):
        _push_mode(mode)


def _is_left_out(caller: types.FrameType | None) -> bool:
    place = None if caller is None else _left_out.get(id(caller.f_code))
    return caller is not None and place is not None and caller.f_lasti in place[1]


def _look_who_calls(
    home: Any, name: str, position: int, get: Callable[[Any, str], Any], put: Callable[[Any, str, Any], None]
) -> None:
    found = get(home, name)
    if found in _originals:
        return
    original = nn.Module.__call__ if name == "__call__" else found

    @functools.wraps(found)
    def looking(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and _is_left_out(sys._getframe(1)):
            return args[position] if len(args) > position else kwargs["input"]
        return original(*args, **kwargs)

    looking.__module__, looking.__qualname__ = _name_in(home, name)  # by which pickle finds it
    _originals[looking] = found
    put(home, name, looking)


def _name_in(home: Any, name: str) -> tuple[str, str]:
    """The module and the qualified name of what a module, a class or the names of a file have under a name."""
    if isinstance(home, dict):
        return str(home.get("__name__")), name
    return (home.__module__, f"{home.__qualname__}.{name}") if isinstance(home, type) else (home.__name__, name)


def _codes_at(place: Place, compiled: types.CodeType) -> tuple[list[types.CodeType], frozenset[int]]:
    """The living codes that make the call at a place, and at which of their instructions."""
    for written in _with_inner(compiled):
        instructions = _instructions(written, place)
        if instructions:
            same = [code for code in _living_codes(place.span.file) if _is_same(code, written)]
            return same, instructions
    return [], frozenset()


def _instructions(code: types.CodeType, place: Place) -> frozenset[int]:
    # No other call ends where it ends; where the call of a method begins differs between versions of Python.
    return frozenset(2 * number for number, at in enumerate(code.co_positions()) if (at[1], at[3]) == place.end)


def _is_same(code: types.CodeType, written: types.CodeType) -> bool:
    names = (code.co_qualname, code.co_firstlineno) == (written.co_qualname, written.co_firstlineno)
    return names and code.co_code == written.co_code


def _living_codes(file: str) -> list[types.CodeType]:
    """The codes of a file that run, or that a function has, with those inside of them."""
    roots = [frame.f_code for frame in _running()]
    roots += [one.__code__ for one in gc.get_objects() if type(one) is types.FunctionType]
    own = [code for code in roots if _is_of(code.co_filename, file)]
    return list({id(code): code for root in own for code in _with_inner(root)}.values())


def _is_of(name: str, file: str) -> bool:
    return name.endswith(os.path.basename(file)) and os.path.abspath(name) == file


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _with_inner(one)


def _running() -> Iterator[types.FrameType]:
    for top in sys._current_frames().values():
        frame: types.FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


def _can_be_rewritten(codes: list[types.CodeType]) -> bool:
    """Whether they are of functions that have no call under way, and that no other function makes anew."""
    running = {id(frame.f_code) for frame in _running()}
    pausing = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return not any(id(code) in running or "<" in code.co_qualname or code.co_flags & pausing for code in codes)


def _namespaces(file: str) -> Iterator[dict[str, Any]]:
    """The global names of a file, as often as it is loaded."""
    found = [frame.f_globals for frame in _running() if _is_of(frame.f_code.co_filename, file)]
    found += [vars(one) for one in list(sys.modules.values()) if _is_of(str(getattr(one, "__file__", "")), file)]
    yield from {id(names): names for names in found}.values()
