"""`desat compare`: runs side by side."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from desat.diagnose.engine import diagnose
from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.comparison import MOST_COMPARED


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two to five runs' folders.")],
) -> None:
    """Put runs side by side: verdict, losses, findings, what watching cost. The runs may be live."""
    from desat.show.terminal import print_comparison, standard_output

    if not 2 <= len(runs) <= MOST_COMPARED:
        raise DesatError(f"compare takes two to {MOST_COMPARED} runs, not {len(runs)}")
    with contextlib.ExitStack() as stack:
        records = [stack.enter_context(Record(run)) for run in runs]
        print_comparison(records, [diagnose(record) for record in records], standard_output())
