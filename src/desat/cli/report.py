"""`desat report`: one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.record.kept_cure import find_kept, read_kept
from desat.record.reader import Record


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite, or what `desat cure --keep` left.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the page goes.", show_default="report.html in the run's folder"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Write one self-contained HTML page of a run: verdict, findings, pictures, numbers.

    Of a search for a cure: what helps, what to write, and the losses of its trials.
    """
    from desat.show.cure_page import write_cure
    from desat.show.report import write_report

    kept = find_kept(run)
    if kept is not None:
        found = read_kept(kept)
        typer.echo(write_cure(found, _place(output, kept.parent, overwrite)))
        return
    with Record(run) as record:
        path = _place(output, record.path.parent, overwrite)
        typer.echo(write_report(record, diagnose(record), measure_link_budget(record), path))


def _place(output: Path | None, folder: Path, overwrite: bool) -> Path:
    """Where the page goes. The one in the run's folder is made anew each time; another file stays, unless allowed."""
    from desat.show.page import check_place

    if output is None:
        return folder / "report.html"
    check_place(output, overwrite=overwrite)
    return output
