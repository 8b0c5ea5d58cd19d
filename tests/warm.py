"""Scripts and `desat` in processes that are forked from one which has imported torch.

Such a process begins within a third of a second, and not after five. It is an interpreter as any other but for this:
torch is there before the script imports it. What concerns the start is tested with fresh ones (tests.cli.test_run).
"""

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.zoo import forks

READY = "ready\n"


def python(*arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What `python ARGUMENTS` does in a folder, without a keyboard: a script's path, or -m desat, and what it takes."""
    words, known = [str(argument) for argument in arguments], os.environ | environment
    server = _server()
    if not server.is_ready:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=cwd, env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        exit_code = server.ask({"words": words, "cwd": str(cwd), "environment": known, "outputs": outputs})
        stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in outputs)
    return subprocess.CompletedProcess(words, exit_code, stdout, stderr)


def desat(*arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return python("-m", "desat", *arguments, cwd=cwd, **environment)


class _Server:
    """is_ready: False where no process with torch in it can be forked, because it has threads, say."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.warm"]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._close)
        assert self._process.stdout is not None
        self.is_ready = self._process.stdout.readline() == READY

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except BaseException:  # a test's time is up: the next one must not take the answer that is still to come
            self._process.kill()
            _server.cache_clear()
            raise

    def _close(self) -> None:
        self._process.communicate()


_server = functools.cache(_Server)


def serve() -> dict[str, Any] | None:
    """Answer each request by the exit code of a fork. Returns the request in the fork, and None at the end."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def become(request: dict[str, Any]) -> NoReturn:
    """Be the interpreter that was asked for, until it ends."""
    _take_over(request)
    code = 0
    try:
        _run(request["words"], request["cwd"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # All that Python does at its end but for taking torch's thousands of modules apart, page by page.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_over(request: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    files = [
        os.open(os.devnull, os.O_RDONLY),
        *(os.open(path, os.O_WRONLY | os.O_CREAT) for path in request["outputs"]),
    ]
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115


def _run(words: list[str], folder: str) -> None:
    if words[0] == "-m":
        sys.path[0] = folder
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    forks.warm_up()
    print(READY, end="", flush=True)
    if asked := serve():
        become(asked)
