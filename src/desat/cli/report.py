"""`desat report`: one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.errors import DesatError
from desat.record.reader import Record


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the page goes.", show_default="report.html in the run's folder"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Write one self-contained HTML page of a run: verdict, findings, pictures, numbers."""
    from desat.show.report import write_report

    with Record(run) as record:
        path = output or record.path.parent / "report.html"
        if path.exists() and output is not None and not overwrite:
            raise DesatError(f"{path} exists: choose another name, or pass --overwrite")
        typer.echo(write_report(record, diagnose(record), measure_link_budget(record), path))
