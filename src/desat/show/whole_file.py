"""Files that are there whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, readable to all, by way of a partial one beside it. Raises OSError where it cannot be written."""
    partial = partial_beside(path)
    try:
        partial.write_bytes(content)
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_beside(path: Path) -> Path:
    """A new empty file in the folder of `path`. Raises OSError where none can be made."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    os.close(descriptor)
    return Path(partial)
