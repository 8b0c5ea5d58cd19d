"""A call left out of a program that runs, or made another, though the function that makes it may be under way."""

import functools
import gc
import inspect
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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

Becomes = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""What comes of a call instead: of the function of torch's that it is of, nn.Module.__call__ for a module, of its
arguments and keywords."""


def its_input(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The very object that a call is given, as if the call were not there."""
    given = args[1:] if function is nn.Module.__call__ else args
    return given[0] if given else kwargs["input"]


@dataclass(frozen=True, eq=False)
class Place:
    """A call whose result the loss is given, or of the loss itself, that is to be another or to be left out.

    edit: how the source of the function that makes the call would say it; None where it cannot say it there. home,
    attribute: where the program looks up what is called; home is None for a name of the file's own. start, end: line,
    from 1, and column, in bytes from 0, of the call, as Python's compiler counts. becomes: what the call is instead.
    refused: why it has to stay.
    """

    span: Span
    written: str
    edit: Edit | None
    home: Any
    attribute: str
    start: tuple[int, int]
    end: tuple[int, int]
    becomes: Becomes = its_input
    refused: str | None = None

    @property
    def line(self) -> str:
        """Where it stands, as in train.py:37."""
        return f"{os.path.basename(self.span.file)}:{self.span.line}"


_instead: dict[int, tuple[types.CodeType, dict[int, Becomes]]] = {}
"""By the identity of a code: the code, and by the instruction at which it makes a call what the call is instead."""

_originals: dict[Any, Any] = {}
"""By what stands in its place now, the function that torch has."""

_treated: set[Span] = set()


def original_of(function: Any) -> Any:
    """The function of torch's that another was put in the place of here; any other is its own."""
    try:
        return _originals.get(function, function)
    except TypeError:  # what cannot be hashed
        return function


def replace_calls(places: Sequence[Place]) -> str | None:
    """Make the calls at some places what they are to become, from now on. Returns why not, None where it was done.

    A function that does not run now gets the code that the edit would give it, see desat.cure.rewrite. The code of one
    that runs, as the training loop does at the first forward pass, cannot be replaced: there the function that is
    called, such as `torch.softmax`, is replaced by one that looks who calls it. It gives the one place what its call
    has become; every other call goes to the original with its arguments as they are. This costs each call of that
    function a look at the calling frame, about a microsecond, and stays for the process. Where the network runs inside
    of the very call, as in `torch.softmax(model(x), 1)`, Python has looked up the function before: that one call is
    caught by a function mode, which goes at the next optimizer step. Inside of torch.compile all is as it was, so a
    place in a compiled function that runs now keeps its call; TorchScript made afterwards of code that calls the same
    function by the same name refuses it.
    """
    if any(place.span in _treated for place in places):
        return "it is done already"
    if (refused := next((place.refused for place in places if place.refused is not None), None)) is not None:
        return refused
    # All are found before one is changed: the code of a file that is changed is not that of the file.
    found = [(place, *_codes_at(place)) for place in places]
    if not all(codes for _, codes, _ in found):
        return "the code that runs is not that of the file"
    if any(not _homes(place) for place in places):
        return "what is called is not among the names of its file"
    together: dict[frozenset[int], list[tuple[Place, list[types.CodeType], frozenset[int]]]] = defaultdict(list)
    for one in found:
        together[frozenset(map(id, one[1]))].append(one)
    for ones in together.values():
        codes, edits = ones[0][1], [place.edit for place, _, _ in ones if place.edit is not None]
        is_sayable = len(edits) == len(ones) and _can_be_rewritten(codes)
        refusals = [rewrite(code, edits) for code in codes] if is_sayable else ["its code runs"]
        if any(refusals):
            for one in ones:
                _bypass(*one)
    _treated.update(place.span for place in places)
    return None


def _bypass(place: Place, codes: list[types.CodeType], instructions: frozenset[int]) -> None:
    for home in _homes(place):
        if isinstance(home, dict):
            _look_who_calls(home, place.attribute, dict.__getitem__, dict.__setitem__)
        else:
            _look_who_calls(home, place.attribute, getattr, setattr)
    for code in codes:
        _, known = _instead.setdefault(id(code), (code, {}))
        known.update(dict.fromkeys(instructions, place.becomes))
    if any(_is_within(frame, place) for frame in _running() if id(frame.f_code) in {id(code) for code in codes}):
        _catch_the_call_under_way()


def _homes(place: Place) -> list[Any]:
    """Where the program looks up what is called: a module of torch's, a class, or the names of a file."""
    if place.home is not None:
        return [place.home]
    return [names for names in _namespaces(place.span.file) if callable(names.get(place.attribute))]


def _is_within(frame: types.FrameType, place: Place) -> bool:
    """Whether a frame is about to make the call: it has looked up the function, and now runs what makes its input."""
    line, _, column, _ = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return line is not None and column is not None and place.start <= (line, column) < place.end


def _catch_the_call_under_way() -> None:
    """Replace a call whose function was looked up before: a function mode sees it, up to the next optimizer step."""

    def handle(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        becomes = None if torch.compiler.is_compiling() else _instead_of(user_frame())
        return function(*args, **kwargs) if becomes is None else becomes(original_of(function), args, kwargs)

    def end(*_: Any) -> None:
        tap.leave()
        hook.remove()

    # A function of torch's written in Python hands to a mode what its own name stands for, the replacement by now.
    tap = FunctionTap(FUNCTIONS.keys() | _originals.keys() | set(_originals.values()), handle)
    hook = register_optimizer_step_pre_hook(end)
    above = [_pop_mode() for _ in range(len(_get_current_function_mode_stack()))]
    # Below all others, so that whoever takes away the uppermost takes away its own.
    for mode in (tap, *reversed(above)):
        _push_mode(mode)


def _instead_of(caller: types.FrameType | None) -> Becomes | None:
    """What the call that a frame is making has become; None for one that is as it was."""
    place = None if caller is None else _instead.get(id(caller.f_code))
    return None if caller is None or place is None else place[1].get(caller.f_lasti)


def _look_who_calls(home: Any, name: str, get: Callable[[Any, str], Any], put: Callable[[Any, str, Any], None]) -> None:
    found = get(home, name)
    if found in _originals:
        return
    original = nn.Module.__call__ if name == "__call__" else found

    @functools.wraps(found)
    def looking(*args: Any, **kwargs: Any) -> Any:
        becomes = None if torch.compiler.is_compiling() else _instead_of(sys._getframe(1))
        return original(*args, **kwargs) if becomes is None else becomes(original, args, kwargs)

    looking.__module__, looking.__qualname__ = _name_in(home, name)  # by which pickle finds it
    _originals[looking] = found
    put(home, name, looking)


def _name_in(home: Any, name: str) -> tuple[str, str]:
    """The module and the qualified name of what a module, a class or the names of a file have under a name."""
    if isinstance(home, dict):
        return str(home.get("__name__")), name
    return (home.__module__, f"{home.__qualname__}.{name}") if isinstance(home, type) else (home.__name__, name)


def _codes_at(place: Place) -> tuple[list[types.CodeType], frozenset[int]]:
    """The living codes that make the call at a place, and at which of their instructions."""
    file = place.span.file
    compiled = compile(read_source(file), file, "exec", dont_inherit=True)
    found = [(code, at) for code in _with_inner(compiled) if (at := _instructions(code, place))]
    if not found:
        return [], frozenset()
    # The last is the innermost: a function or class may end where its last call ends, and is made by the code outside.
    written, instructions = found[-1]
    return [code for code in _living_codes(file) if _is_same(code, written)], instructions


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
