"""A trial on a leash: `python -m desat.cure.leash FOLDER` runs one and ends with whoever holds its standard input.

The plan is the first line of the input, as JSON. The line `end` ends the trial. The end of the input, which comes
however its holder dies, ends the trial, too, and removes the folder: so neither a process nor a file is left behind.
How the trial ended is in FOLDER/ending.json once it has; its record and output are in FOLDER/trial.
"""

import json
import os
import shutil
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from desat.cure.trial import Plan, run_here
from desat.watch.script import Script

END = b"end\n"
PLACE = "trial"
ENDING = "ending.json"


def plan_to_line(plan: Plan) -> bytes:
    return json.dumps(asdict(plan)).encode() + b"\n"


def plan_from_line(line: bytes) -> Plan:
    values = json.loads(line)
    script = values.pop("script")
    remedies = tuple(values.pop("remedies"))
    return Plan(Script(script["target"], script["is_module"], tuple(script["arguments"])), remedies, **values)


def run_on_leash(folder: Path, leash: BinaryIO) -> None:
    """Run the trial that `leash` names, and keep its folder until the leash is let go."""
    stop, released = threading.Event(), threading.Event()

    def listen() -> None:
        for line in leash:
            if line == END:
                stop.set()
        released.set()
        stop.set()

    try:
        plan = plan_from_line(leash.readline())
        threading.Thread(target=listen, daemon=True).start()
        outcome = run_here(plan, folder / PLACE, lambda losses: False, stop)
        _write(folder / ENDING, {key: getattr(outcome, key) for key in ("ending", "exit_code", "seconds")})
        released.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, values: dict[str, Any]) -> None:
    """Write a file that is never seen half written."""
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(values))
    unfinished.replace(path)


if __name__ == "__main__":
    # Not the holder's child: when a Ray worker ends, Ray kills its children, and then who would end the script?
    if os.fork():
        os._exit(0)
    # A Ray worker blocks Ctrl-C, and what it starts would inherit that: the script is to be ended by it first.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Unbuffered, since the thread that listens may be in the middle of a read when the process leaves.
    run_on_leash(Path(sys.argv[1]), os.fdopen(os.dup(0), "rb", buffering=0))
