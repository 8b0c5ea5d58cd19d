"""`desat export`: a run for the tools of other projects."""

from pathlib import Path
from typing import Annotated

import typer

from desat.errors import DesatError
from desat.record.reader import Record


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder or its run.sqlite; the run may be live.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="tensorboard, wandb, mlflow, parquet, csv or json.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PLACE",
            help="Where it goes; - is standard output, for json.",
            show_default="in the run's folder",
        ),
    ] = None,
    project: Annotated[str, typer.Option(help="The project in W&B, the experiment in MLflow.")] = "desat",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export that is there.")] = False,
) -> None:
    """Hand a run to TensorBoard, Weights & Biases, MLflow, or to files: Parquet, CSV, JSON."""
    from rich.console import Console

    from desat.show.export.exporter import Order, check_library
    from desat.show.export.formats import find_format
    from desat.show.export.progress import ExportProgress

    form = find_format(to)
    check_library(to, form.library)
    if output == Path("-") and to != "json":
        raise DesatError(f"only json goes to standard output: {to} takes a place with -o")
    with Record(run) as record:
        place = output if output is not None else record.path.parent / form.place
        order = Order(place, project, is_own=output is not None, overwrite=overwrite)
        with ExportProgress(Console(stderr=True), to) as progress:
            told = form.export(record, order, progress.tell)
    if told:
        typer.echo(told)
