"""`desat runs`: the runs of a folder."""

import json
from pathlib import Path
from typing import Annotated

import typer

from desat.errors import DesatError
from desat.record.run import RUNS, folders_of_runs, list_runs


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder that holds the runs.")] = RUNS,
    last: Annotated[int | None, typer.Option("-n", "--last", min=1, metavar="N", help="Only the N newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the runs of a folder, the newest first: how far they are and how their loss stands."""
    from desat.show.terminal import print_runs, standard_output
    from desat.show.words import plain

    if not folder.is_dir():
        raise DesatError(f"no folder {folder}: `desat run SCRIPT` makes one")
    found = list_runs(folder)[:last]
    if as_json:
        typer.echo(json.dumps([run.document() for run in found], indent=2, allow_nan=False))
    else:
        print_runs(found, standard_output())
    for name in folders_of_runs(folder):
        typer.echo(f"desat: more runs lie in {plain(folder / name)}", err=True)
