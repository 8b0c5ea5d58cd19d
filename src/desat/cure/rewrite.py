"""Live code rewritten: a call inside of a user's function becomes another, as if it had been written so.

The whole file is compiled with the edits made, and the function gets the code that its name has there: it survives
whatever is done to the model, torch.compile included, and the edit is the very change that is proposed to the user.
"""

import gc
import types
from collections import defaultdict
from collections.abc import Sequence

from desat.cure.edit import Edit, edited, read_source

_rewritten: dict[str, set[Edit]] = defaultdict(set)
_first: dict[types.CodeType, types.CodeType] = {}
"""By a code that runs now, the one that Python compiled from the file."""


def rewrite(code: types.CodeType, edits: Sequence[Edit]) -> str | None:
    """Make the edits, all of one file, in the functions that run `code`. Returns why not, None where it was done."""
    file = code.co_filename
    original = _first.get(code, code)
    try:
        source = read_source(file)
        found = _find(compile(source, file, "exec", dont_inherit=True), original)
        if found is None or found.co_code != original.co_code or found.co_consts != original.co_consts:
            return "the file has changed since it was read"
        wanted = _rewritten[file] | set(edits)
        fresh = _find(compile(edited(source, wanted), file, "exec", dont_inherit=True), original)
    except (OSError, SyntaxError, ValueError) as error:
        return f"its source cannot be compiled: {error}"
    functions = functions_of(code)
    if fresh is None or fresh.co_freevars != code.co_freevars or not functions:
        return "the function that makes the call was not found"
    for function in functions:
        function.__code__ = fresh
    _first[fresh] = original
    _rewritten[file] = wanted
    return None


def functions_of(code: types.CodeType) -> list[types.FunctionType]:
    """The live functions that run a code."""
    return [one for one in gc.get_referrers(code) if isinstance(one, types.FunctionType) and one.__code__ is code]


def _find(module: types.CodeType, wanted: types.CodeType) -> types.CodeType | None:
    """The code of the same function in the compiled file, by its full name and its first line."""
    waiting = [module]
    while waiting:
        code = waiting.pop()
        if (code.co_qualname, code.co_firstlineno) == (wanted.co_qualname, wanted.co_firstlineno):
            return code
        waiting += [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return None
