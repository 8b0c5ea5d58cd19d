"""The example scripts that come with desat."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example_path(name: str) -> Path:
    """Where an example script of this name lies; in a checkout that is the working directory, by its short name."""
    here, installed = Path("examples", name), EXAMPLES / name
    return here if here.exists() and here.samefile(installed) else installed
