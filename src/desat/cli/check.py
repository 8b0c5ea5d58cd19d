"""`desat check`: stop a script after a few steps and say whether it is fit to train."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from desat.cli.diagnose import (
    FailOnOption,
    Format,
    FormatOption,
    JsonOption,
    Level,
    LimitOption,
    SilenceOption,
    asked_format,
    machine_text,
    settings_from,
)
from desat.cli.target import ModuleOption, ScriptArgument, ScriptArguments
from desat.diagnose.engine import diagnose as examine
from desat.diagnose.link_budget import measure_link_budget
from desat.diagnose.propagation import measure_propagation
from desat.diagnose.threshold import limited
from desat.errors import DesatError
from desat.record.reader import Record
from desat.watch.script import Script


def check(
    script: ScriptArgument,
    arguments: ScriptArguments = None,
    module: ModuleOption = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps after which the script is stopped.")] = 20,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which it is stopped in any case.")] = 300.0,
    as_json: JsonOption = False,
    form: FormatOption = Format.text,
    limit: LimitOption = None,
    silence: SilenceOption = None,
    fail_on: FailOnOption = Level.error,
) -> None:
    """Stop a training script after a few steps: is it fit to train?

    Its output goes to standard error. Exit code 0: fit; 1: a finding; 2: it could not be told.
    """
    target = Script(script, module, tuple(arguments or ()))
    target.check()
    settings, chosen = settings_from(limit, silence), asked_format(as_json, form)
    with tempfile.TemporaryDirectory(prefix="desat-check-") as place:
        directory = Path(place) / target.name.rpartition(".")[2]
        code = _train(target, directory, steps, timeout)
        with Record(directory) as record, limited(settings.limits):
            if not record.sites():
                raise DesatError(_nothing_measured(target, code))
            diagnosis = examine(record, settings)
            if chosen is not Format.text:
                typer.echo(machine_text(record, diagnosis, chosen, fail_on))
            else:
                from rich.console import Console

                from desat.show.propagation import propagation_table
                from desat.show.terminal import print_diagnosis

                console = Console()
                print_diagnosis(record, diagnosis, measure_link_budget(record), console)
                console.print()
                console.print(propagation_table(measure_propagation(record)))
    if code:
        raise DesatError(f"{script} ended with exit code {code} after {diagnosis.steps} of {steps} steps")
    raise typer.Exit(int(diagnosis.reaches(fail_on.value)))


def _train(target: Script, directory: Path, steps: int, timeout: float) -> int:
    """Run the first steps in a process of their own, all of them sampled; returns its exit code."""
    options = ["--quiet", "--every", "1", "--curvature", "--stop-after", str(steps), "--run-dir", str(directory)]
    module = ["-m"] if target.is_module else []
    command = [sys.executable, "-m", "desat", "run", *options, *module, target.target, *target.arguments]
    process = subprocess.Popen(command, stdout=sys.stderr.fileno())
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise DesatError(
            f"{target.target} was stopped after {timeout:.0f} s, before its {steps} steps were done; "
            "ask for fewer --steps, or for a longer --timeout"
        ) from None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _nothing_measured(target: Script, code: int) -> str:
    if code:
        return f"{target.target} ended with exit code {code} before its first step; its own message is above"
    return f"nothing was measured: {target.target} ended without a training step of a torch.nn.Module"
