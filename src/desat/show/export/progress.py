"""How far an export is, as a bar in a terminal."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from desat.show.export import moments


class ExportProgress:
    """A bar while the context is open; nothing where the console is no terminal, or nothing is told."""

    def __init__(self, console: Console, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(f"export to {name}", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, progress: moments.Progress) -> None:
        self._bar.update(self._task, completed=progress.done, total=progress.planned)
