"""`desat serve`: the runs of a folder as pages, live while they train."""

import contextlib
import importlib.util
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from desat.errors import DesatError
from desat.record.run import RUNS

PORT = 8124

NICENESS = 10
"""Added to the process's own: a training on the same machine goes first."""


def serve(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder that holds the runs.")] = RUNS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = PORT,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; elsewhere than here it takes a token to enter.")
    ] = "127.0.0.1",
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = False,
) -> None:
    """Show the runs of a folder in a browser, live while they train; Ctrl-C ends it.

    It reads the records alone, and changes none. The page is for this machine; with --host for others as well, by the
    address that is printed, which has a token in it. Exit code 0: ended by Ctrl-C; 2: a wrong call.
    """
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise DesatError("the dashboard needs Starlette and uvicorn: install them with `pip install 'desat[serve]'`")
    if not folder.is_dir():
        raise DesatError(f"no folder {folder}: `desat run SCRIPT` makes one")
    from desat.show import guard
    from desat.show.dashboard.application import dashboard

    def tell(address: str) -> None:
        typer.echo(address)
        if show:
            webbrowser.open(address)

    with guard.listening(port, host) as place:
        with contextlib.suppress(OSError, AttributeError):
            os.nice(NICENESS)
        token = None if guard.is_loopback(host) else guard.new_token()
        guard.serve(dashboard(folder, token), place, tell, token)
