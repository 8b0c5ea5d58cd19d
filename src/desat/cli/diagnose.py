"""`desat diagnose`: findings of a record."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose as examine
from desat.diagnose.link_budget import measure_link_budget
from desat.record.reader import Record


class Level(StrEnum):
    error = "error"
    warning = "warning"
    note = "note"


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite; the run may be live.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON (schema 1).")] = False,
    fail_on: Annotated[Level, typer.Option(help="Exit with 1 at a finding of this severity or graver.")] = Level.error,
) -> None:
    """Say what is wrong in a run: what, where, since when, why, how sure, and what to change."""
    with Record(run) as record:
        diagnosis = examine(record)
        if as_json:
            typer.echo(json.dumps(diagnosis.to_json(), indent=2, allow_nan=False))
        else:
            from rich.console import Console

            from desat.show.terminal import print_diagnosis

            print_diagnosis(record, diagnosis, measure_link_budget(record), Console())
    raise typer.Exit(int(diagnosis.reaches(fail_on.value)))
