"""The notebook face: `%load_ext desat` gives `%%desat`, which watches the training in a cell."""

import ast
import keyword
import os
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from desat.api import Run
from desat.diagnose.engine import diagnose
from desat.errors import DesatError
from desat.record.run import new_directory, open_run
from desat.record.writer import RecordWriter
from desat.watch import script
from desat.watch.listeners import listeners
from desat.watch.schedule import Schedule

if TYPE_CHECKING:
    from desat.watch.session import Session

NAME = "_desat"
"""The variable that a run is bound to, unless the user names one."""


def load(shell: InteractiveShell) -> None:
    """Add `%%desat` to a shell."""
    shell.register_magics(TrainingMagics)


def unload(shell: InteractiveShell) -> None:
    """Remove it again."""
    shell.magics_manager.magics["cell"].pop("desat", None)
    shell.magics_manager.registry.pop(TrainingMagics.__name__, None)


@magics_class
class TrainingMagics(Magics):
    """`%%desat`."""

    @magic_arguments("%desat")
    @argument(
        "name", nargs="?", default=NAME, metavar="NAME",
        help=f"Variable for the run, a desat.Run; there from the cell's start on. Default: {NAME}.",
    )  # fmt: skip
    @argument("--every", type=int, metavar="N", help="Sample each N-th step, whatever it costs.")
    @argument(
        "--budget", type=float, default=0.01, metavar="SHARE",
        help="Share of the wall time that watching may add. Default: 0.01.",
    )  # fmt: skip
    @argument("--run-dir", metavar="DIR", help="Folder for the record. Default: a new one in ./desat-runs.")
    @argument("--overwrite", action="store_true", help="Replace a run that is in the folder.")
    @argument("--curvature", action="store_true", help="Measure the sharpness of the loss too.")
    @argument("--quiet", action="store_true", help="No card and no line after the cell.")
    @cell_magic
    def desat(self, line: str, cell: str) -> None:
        """Watch the training in this cell, and show afterwards how the network fares.

        The cell runs as it would without, with the same results, and its variables stay. Its run is bound to NAME:
        `NAME.diagnose()` gives the findings, `NAME.record()` the numbers.
        """
        options = parse_argstring(self.desat, line)
        if not options.name.isidentifier() or keyword.iskeyword(options.name):
            raise UsageError(f"%%desat: {options.name} is no name for a variable")
        if listeners:
            raise UsageError("%%desat: a training is being watched already, by %%desat or desat.watch: end that first")
        shell = self.shell
        assert shell is not None
        blocks = _compiled(shell, cell)
        watched = _begin(shell, options)
        shell.user_ns[options.name] = watched.run
        ending: script.Ending = "failed"
        try:
            for code in blocks:
                exec(code, shell.user_global_ns, shell.user_ns)
            ending = "finished"
        except KeyboardInterrupt as interrupt:
            ending = "interrupted"
            _show_from_the_cell_on(shell, interrupt)
            raise
        except SystemExit as leaving:
            ending = "failed" if leaving.code else "finished"
            raise
        except BaseException as error:
            _show_from_the_cell_on(shell, error)
            raise
        finally:
            watched.finish(ending)
            if not options.quiet:
                watched.show()


class _Watched:
    """One cell that is watched, from when it imports torch on."""

    def __init__(self, shell: InteractiveShell, directory: Path, writer: RecordWriter, options: Any) -> None:
        self.run = Run(directory)
        self._shell = shell
        self._writer = writer
        self._options = options
        self._session: Session | None = None
        self._give_up = script.when_imported("torch", self._start)

    def finish(self, ending: script.Ending) -> None:
        try:
            self._give_up()
            if self._session is not None:
                self._session.finish()
        finally:
            self._writer.note(status=ending)
            self._writer.close()

    def show(self) -> None:
        """The card, or in a terminal its words; a line where there is nothing to tell of."""
        if self._session is None or not self._session.watcher.steps:
            print(
                "desat: nothing was measured: no backward pass or optimizer step of a torch.nn.Module was seen in this "
                "cell"
            )
            return
        if self._writer.failure:
            print(f"desat: the record ends early: {self._writer.failure}")
        self._shell.display_pub.publish({"text/html": self.run._repr_html_(), "text/plain": _words(self.run)})

    def _start(self) -> None:
        from desat.watch.session import Session

        options = self._options
        self._session = Session(self._writer, budget=options.budget, every=options.every, curvature=options.curvature)


def _begin(shell: InteractiveShell, options: Any) -> _Watched:
    """Open the record. Raises UsageError, which IPython shows as one line, for what is the user's to mend."""
    directory = Path(options.run_dir) if options.run_dir else new_directory(_stem(options.name))
    try:
        Schedule(options.budget, options.every)
        writer = open_run(directory, overwrite=options.overwrite, budget=options.budget, every=options.every)
    except DesatError as error:
        raise UsageError(f"%%desat: {error}") from None
    return _Watched(shell, directory, writer, options)


def _stem(name: str) -> str:
    """What the run's folder is called by: the variable, or the notebook where Jupyter's server tells it."""
    return name if name != NAME else Path(os.environ.get("JPY_SESSION_NAME", "")).stem or "notebook"


def _words(run: Run) -> str:
    from desat.show.card import told

    try:
        with run.record() as record:
            return told(record, diagnose(record))
    except Exception as error:  # it would hide an error of the cell
        return f"desat: {error}"


def _compiled(shell: InteractiveShell, cell: str) -> list[CodeType]:
    """The cell's code as IPython would run it, with the line of the magic counted, so that tracebacks name its lines.

    Raises SyntaxError, which IPython shows.
    """
    empty = cell[: len(cell) - len(cell.lstrip())].count("\n")  # lines at the top, which IPython drops
    source = "\n" * (1 + empty) + shell.transform_cell(cell)
    name = shell.compile.cache(source, shell.execution_count, raw_code=cell)
    body = shell.transform_ast(shell.compile.ast_parse(source, filename=name)).body
    shown = {"all": len(body), "none": 0}.get(shell.ast_node_interactivity, 1)
    is_silent = DisplayHook.semicolon_at_end_of_expression(cell)
    first = len(body) - (0 if is_silent else shown)
    compiled: Any = shell.compile
    return [
        compiled(ast.Interactive([node]), name, "single")
        if index >= first and isinstance(node, ast.Expr)
        else compiled(ast.Module([node], []), name, "exec")
        for index, node in enumerate(body)
    ]


def _show_from_the_cell_on(shell: InteractiveShell, error: BaseException) -> None:
    """Have IPython show an error as it would without the magic: without the frames of the magic's machinery."""
    traceback = error.__traceback__
    within = traceback.tb_next if traceback is not None else None

    def rendered() -> list[str]:
        return shell.InteractiveTB.structured_traceback(type(error), error, within, tb_offset=0)

    try:
        error._render_traceback_ = rendered  # pyright: ignore[reportAttributeAccessIssue]  # IPython asks for it
    except AttributeError:  # an exception with slots is shown with these frames
        pass
