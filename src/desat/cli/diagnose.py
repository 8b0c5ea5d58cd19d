"""`desat diagnose`: findings of a record."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose as examine
from desat.diagnose.link_budget import measure_link_budget
from desat.diagnose.rules import all_thresholds
from desat.diagnose.settings import Settings, parse_settings, read_settings
from desat.record.reader import Record

LimitOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=NUMBER", help="Change a threshold; `desat explain CODE` names them.")
]
SilenceOption = Annotated[
    list[str] | None, typer.Option(metavar="CODE[@SITE]", help="Leave a finding out; * stands for any text.")
]


class Level(StrEnum):
    error = "error"
    warning = "warning"
    note = "note"


def settings_from(limit: list[str] | None, silence: list[str] | None) -> Settings:
    """The settings of the nearest pyproject.toml, and on top of them those of the command line."""
    known = all_thresholds()
    return read_settings(Path.cwd(), known).joined(parse_settings(limit or [], silence or [], known))


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite; the run may be live.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON (schema 1).")] = False,
    limit: LimitOption = None,
    silence: SilenceOption = None,
    fail_on: Annotated[Level, typer.Option(help="Exit with 1 at a finding of this severity or graver.")] = Level.error,
) -> None:
    """Say what is wrong in a run: what, where, since when, why, how sure, and what to change."""
    with Record(run) as record:
        diagnosis = examine(record, settings_from(limit, silence))
        if as_json:
            typer.echo(json.dumps(diagnosis.to_json(), indent=2, allow_nan=False))
        else:
            from rich.console import Console

            from desat.show.terminal import print_diagnosis

            print_diagnosis(record, diagnosis, measure_link_budget(record), Console())
    raise typer.Exit(int(diagnosis.reaches(fail_on.value)))
