"""`desat explain`: what a finding code means, how it is measured, its thresholds and their sources."""

import difflib
from typing import Annotated

import typer

from desat.diagnose.learning import THRESHOLDS
from desat.diagnose.rule import SEVERE
from desat.diagnose.rules import RULES
from desat.errors import DesatError


def explain(
    code: Annotated[str | None, typer.Argument(help="A finding's code; all of them without one.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all as a page of documentation.")] = False,
) -> None:
    """Say what a finding means, how it is measured, its thresholds and their sources."""
    from rich.console import Console

    from desat.show.explanation import explanation, findings_page, summary_table

    if markdown:
        typer.echo(findings_page(RULES, (*THRESHOLDS, SEVERE)), nl=False)
        return
    rules = {rule.code: rule for rule in RULES}
    if code is None:
        Console().print(summary_table(RULES))
    elif code in rules:
        Console().print(explanation(rules[code]))
    else:
        near = difflib.get_close_matches(code, rules, n=1)
        hint = f"did you mean {near[0]}?" if near else "`desat explain` lists them"
        raise DesatError(f"no finding code {code!r}: {hint}")
