"""The command line: one file per subcommand, each thin."""

import sys

from desat.cli.application import application
from desat.errors import DesatError


def main() -> None:
    """The `desat` command. A user's mistake is one line on standard error and exit code 2."""
    try:
        application()
    except DesatError as error:
        print(f"desat: {error}", file=sys.stderr)
        sys.exit(2)
