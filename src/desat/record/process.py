"""Whether the process that wrote a record still lives, told from what the record notes of it."""

import os
import platform
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat behind the process's name: its state, and its start in clock ticks since the boot."""

_DEAD = "ZX"
"""States of a process that has ended, and whose parent has not asked how."""


def identity() -> dict[str, Any]:
    """Facts that tell this process from all others: host, number and, where there is /proc, boot, namespace, start."""
    known = {"host": platform.node(), "process": os.getpid()}
    return known | ({"process_start": start} if (start := _start(os.getpid())) else {})


def is_gone(information: dict[str, Any]) -> bool:
    """Whether the process of a record has certainly ended; False where that cannot be told from here.

    information: facts of a run, with those of `identity` among them. A process of another host, or of another
    container's numbering, is not judged. One that took the number of the one that ended is known by its start.
    """
    host, process, start = (information.get(name) for name in ("host", "process", "process_start"))
    if not isinstance(process, int) or process <= 0 or host != platform.node() or os.name != "posix":
        return False
    here = _start(os.getpid())
    if not isinstance(start, list) or len(start) != 3 or here is None:
        return not _is_there(process)
    if start[0] != here[0]:
        return True
    if start[1] != here[1]:
        return False
    return _start(process) != start


def _start(process: int) -> list[str] | None:
    """The boot of the machine, the namespace that numbers its processes, and when this one began; None: not there."""
    try:
        fields = (_PROC / str(process) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[_STATE] in _DEAD:
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return [boot, str((_PROC / "self/ns/pid").readlink()), fields[_START]]
    except (OSError, IndexError):
        return None


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
