"""The example scripts that come with desat."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example_path(name: str) -> Path:
    """Where an example script of this name lies, in a checkout and in an installed wheel alike."""
    return EXAMPLES / name
