"""`python -m desat` is the `desat` command."""

from desat.cli import main

main()
