"""Run an unmodified script as `python SCRIPT` and `python -m MODULE` do.

torch is not imported before the script imports it: what a script sets up before that (threads, devices) must hold.
"""

import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import io
import itertools
import os
import runpy
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from desat.errors import DesatError
from desat.watch.frames import is_desats

Ending = Literal["finished", "failed", "interrupted"]
_RUNPY = "<frozen runpy>"


@dataclass(frozen=True)
class Script:
    """What is to be run: a file, or a module by its name; and its arguments."""

    target: str
    is_module: bool
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.target if self.is_module else Path(self.target).stem

    def check(self) -> None:
        """Raise DesatError where there is nothing to run."""
        if self.is_module:
            if not _module_exists(self.target):
                raise DesatError(f"no module named {self.target}: check the name (working directory: {os.getcwd()})")
            return
        if not os.path.exists(self.target):
            raise DesatError(f"no script at {self.target}: check the path (working directory: {os.getcwd()})")
        if os.path.isdir(self.target) and not os.path.exists(os.path.join(self.target, "__main__.py")):
            raise DesatError(f"{self.target} is a folder without a __main__.py: name the script in it")


@dataclass(frozen=True)
class Outcome:
    """How a script ended, and the exit code that `python SCRIPT` would have given."""

    ending: Ending
    exit_code: int


def run(script: Script) -> Outcome:
    """Run the script in this process, until it ends in whatever way; its traceback is printed as Python prints it."""
    try:
        _run_module(script) if script.is_module else _run_file(script)
        return Outcome("finished", 0)
    except SystemExit as leaving:
        return Outcome("finished", _exit_code(leaving))
    except BaseException as raised:
        error = raised  # told outside of this clause, as Python does: in it, another error would be told with this one
    ended = (
        Outcome("interrupted", 128 + signal.SIGINT) if isinstance(error, KeyboardInterrupt) else Outcome("failed", 1)
    )
    return _told(error, ended)


def when_imported(name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Call `then` once the module `name` has been imported; at once if it has been. What is returned gives it up."""
    if name in sys.modules:
        then()
        return lambda: None
    announcer = _Announcer(name, then)
    sys.meta_path.insert(0, announcer)
    return lambda: sys.meta_path.remove(announcer) if announcer in sys.meta_path else None


class _Announcer(importlib.abc.MetaPathFinder):
    """Lets the other finders find one module, and calls back after it has been executed."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_tell(module: types.ModuleType) -> None:
                execute(module)
                self._then()

            spec.loader.exec_module = execute_and_tell
        return spec


def _run_file(script: Script) -> None:
    sys.argv = [script.target, *script.arguments]
    if os.path.isdir(script.target):
        runpy.run_path(script.target, run_name="__main__")
        return
    path = os.path.abspath(script.target)
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __spec__=None, __cached__=None)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def _run_module(script: Script) -> None:
    sys.argv = [script.target, *script.arguments]
    sys.path[0] = os.getcwd()
    runpy.run_module(script.target, run_name="__main__", alter_sys=True)


def _module_exists(name: str) -> bool:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
    finally:
        sys.path.remove(here)


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    print(leaving.code, file=sys.stderr)
    return 1


def _told(error: BaseException, outcome: Outcome) -> Outcome:
    """Print the traceback through sys.excepthook, which the script may have set, and without desat's own frames."""
    trail = []
    traceback = error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename != _RUNPY and not is_desats(filename):
            trail.append(traceback)
        traceback = traceback.tb_next
    for link, following in itertools.zip_longest(trail, trail[1:]):
        link.tb_next = following
    error.__traceback__ = trail[0] if trail else None
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as leaving:
        return Outcome(outcome.ending, _exit_code(leaving))
    except BaseException as failure:
        print("Error in sys.excepthook:", file=sys.stderr)
        failure.__traceback__ = failure.__traceback__ and failure.__traceback__.tb_next
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, error.__traceback__)
    return outcome
