import io

import pytest
from rich.console import Console

from desat.show.export.moments import Progress
from desat.show.export.progress import ExportProgress


@pytest.mark.parametrize("is_terminal", [True, False])
def test_there_is_a_bar_in_a_terminal_and_nothing_elsewhere(is_terminal: bool) -> None:
    file = io.StringIO()
    with ExportProgress(Console(file=file, force_terminal=is_terminal, width=80), "csv") as progress:
        progress.tell(Progress(1, 2))
    assert ("export to csv" in file.getvalue()) == is_terminal
    assert bool(file.getvalue()) == is_terminal
