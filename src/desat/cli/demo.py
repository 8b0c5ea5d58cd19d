"""`desat demo`: the main job on real data, from watching to cure."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.rule import Rule

from desat.cli.examples import example_path
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budget
from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.run import annotate, new_directory
from desat.show.terminal import print_comparison, print_diagnosis

REMEDIES = ("activation=relu", "initialization=he")
_ACCURACY = re.compile(r"test accuracy:?\s*([0-9.]+)", re.IGNORECASE)


def demo(
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for the two runs and the report.", show_default="desat-runs/demo-<time>")
    ] = None,
) -> None:
    """Run a sick network on real data (scikit-learn's handwritten digits), from watching to cure, in a minute."""
    from desat.show.report import write_report  # draws with plotly, which `desat run` has no use for

    if importlib.util.find_spec("sklearn") is None:
        raise DesatError("the demo trains on scikit-learn's digits: install it with `pip install 'desat[demo]'`")
    directory = run_dir or new_directory("demo")
    if directory.exists():
        raise DesatError(f"{directory} exists: choose another --run-dir")
    script = example_path("sick_digits.py")
    console = Console()

    _say(console, "1  An ordinary script trains a deep sigmoid network, watched")
    _train(script, directory / "sick", ())
    with Record(directory / "sick") as sick:
        _say(console, "2  What is wrong")
        print_diagnosis(sick, diagnose(sick), measure_link_budget(sick), console)

        _say(console, f"3  The same script, same seed, with {' and '.join(REMEDIES)}")
        _train(script, directory / "cured", REMEDIES)
        with Record(directory / "cured") as cured:
            print_comparison([sick, cured], [diagnose(sick), diagnose(cured)], console)
            page = write_report(
                sick, diagnose(sick), measure_link_budget(sick), directory / "report.html",
                compared=[(cured, diagnose(cured))],
            )  # fmt: skip
    _say(console, "4  The report")
    console.print(str(page), soft_wrap=True, highlight=False)
    console.print(f"or, as a page that follows what trains: desat serve {directory}", soft_wrap=True, highlight=False)


def _say(console: Console, title: str) -> None:
    console.print()
    console.print(Rule(title, align="left"))


def _train(script: Path, directory: Path, remedies: tuple[str, ...]) -> None:
    """Run the example as a user does, and note the accuracy that it prints."""
    apply = [word for remedy in remedies for word in ("--apply", remedy)]
    command = [sys.executable, "-u", "-m", "desat", "run", "--run-dir", str(directory), *apply, str(script)]
    accuracy = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if found := _ACCURACY.search(line):
                accuracy = float(found.group(1))
    if process.returncode:
        raise DesatError(f"{script} ended with exit code {process.returncode}; its own message is above")
    if accuracy is not None:
        annotate(directory, metrics={"accuracy": accuracy})
