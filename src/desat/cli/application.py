"""The typer application that the subcommands hang on."""

from typing import Annotated

import typer

from desat import __version__
from desat.cli.check import check
from desat.cli.compare import compare
from desat.cli.cure import cure
from desat.cli.deck import deck
from desat.cli.demo import demo
from desat.cli.diagnose import diagnose
from desat.cli.explain import explain
from desat.cli.export import export
from desat.cli.report import report
from desat.cli.run import run
from desat.cli.runs import runs
from desat.cli.serve import serve

application = typer.Typer(
    name="desat",
    help="The training doctor: where a network has stopped learning, why, and which change brings it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"desat {__version__}")
        raise typer.Exit


@application.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


# Everything after the script's name belongs to the script.
application.command(context_settings={"allow_interspersed_args": False})(run)
application.command(context_settings={"allow_interspersed_args": False})(check)
application.command(context_settings={"allow_interspersed_args": False})(cure)
application.command()(diagnose)
application.command()(explain)
application.command()(report)
application.command()(compare)
application.command()(export)
application.command()(runs)
application.command()(serve)
application.command()(demo)
application.command()(deck)
