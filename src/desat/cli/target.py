"""The script that a command runs: its name, its own arguments, and whether it is a module's name."""

from typing import Annotated

import typer

ScriptArgument = Annotated[
    str, typer.Argument(metavar="SCRIPT", help="The training script; with -m, a module's name.", show_default=False)
]
ScriptArguments = Annotated[
    list[str] | None, typer.Argument(metavar="ARGS", help="The script's own arguments.", show_default=False)
]
ModuleOption = Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as in `python -m`.")]
