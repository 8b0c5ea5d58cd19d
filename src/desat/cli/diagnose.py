"""`desat diagnose`: findings of a record."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose as examine
from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import measure_link_budget
from desat.diagnose.rules import RULES, all_thresholds
from desat.diagnose.settings import Settings, parse_settings, read_settings
from desat.diagnose.threshold import limited
from desat.errors import DesatError
from desat.record.reader import Record

LimitOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=NUMBER", help="Change a threshold; `desat explain CODE` names them.")
]
SilenceOption = Annotated[
    list[str] | None, typer.Option(metavar="CODE[@SITE]", help="Leave a finding out; * stands for any text.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the findings as JSON (schema 1).")]


class Level(StrEnum):
    error = "error"
    warning = "warning"
    note = "note"


class Format(StrEnum):
    text = "text"
    json = "json"
    sarif = "sarif"
    junit = "junit"


FormatOption = Annotated[Format, typer.Option("--format", help="How the findings are printed.")]
FailOnOption = Annotated[Level, typer.Option(help="Exit with 1 at a finding of this severity or graver.")]


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite; the run may be live.")],
    as_json: JsonOption = False,
    form: FormatOption = Format.text,
    limit: LimitOption = None,
    silence: SilenceOption = None,
    fail_on: FailOnOption = Level.error,
) -> None:
    """Say what is wrong in a run: what, where, since when, why, how sure, and what to change."""
    settings, chosen = settings_from(limit, silence), asked_format(as_json, form)
    with Record(run) as record, limited(settings.limits):
        diagnosis = examine(record, settings)
        if chosen is Format.text:
            from rich.console import Console

            from desat.show.terminal import print_diagnosis

            print_diagnosis(record, diagnosis, measure_link_budget(record), Console())
        else:
            typer.echo(machine_text(record, diagnosis, chosen, fail_on))
    raise typer.Exit(int(diagnosis.reaches(fail_on.value)))


def settings_from(limit: list[str] | None, silence: list[str] | None) -> Settings:
    """The settings of the nearest pyproject.toml, and on top of them those of the command line."""
    known = all_thresholds()
    return read_settings(Path.cwd(), known).joined(parse_settings(limit or [], silence or [], known))


def asked_format(as_json: bool, form: Format) -> Format:
    """`--json` is short for `--format json`. Raises DesatError where the two disagree."""
    if as_json and form not in (Format.text, Format.json):
        raise DesatError(f"--json and --format {form.value} were both asked for: choose one")
    return Format.json if as_json else form


def machine_text(record: Record, diagnosis: Diagnosis, form: Format, fail_on: Level) -> str:
    """The findings in one of the formats for programs."""
    from desat.show.machine import document, junit, sarif

    if form is Format.junit:
        return junit(diagnosis, RULES, fail_on.value)
    told = sarif(diagnosis, RULES) if form is Format.sarif else document(record, diagnosis)
    return json.dumps(told, indent=2, allow_nan=False)
