"""`desat run`: watch an unmodified script."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from desat.cli.target import ModuleOption, ScriptArgument, ScriptArguments
from desat.cure.seeding import seeded
from desat.record.run import new_directory, open_run
from desat.record.writer import RecordWriter
from desat.show.panel import live_panel
from desat.watch import script as scripts

if TYPE_CHECKING:
    from desat.cure.admission import Admission
    from desat.cure.family import Change
    from desat.cure.remedy import Remedy
    from desat.watch.session import Session


def run(
    script: ScriptArgument,
    arguments: ScriptArguments = None,
    module: ModuleOption = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for the record.", show_default="desat-runs/<script>-<time>")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in the folder.")] = False,
    budget: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of the wall time that watching may add.")
    ] = 0.01,
    every: Annotated[
        int | None, typer.Option(min=1, help="Sample each N-th step, whatever it costs.", metavar="N")
    ] = None,
    apply: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAMILY=VALUE", help="Apply a remedy before the first forward pass, e.g. activation=relu."
        ),
    ] = None,
    curvature: Annotated[
        bool,
        typer.Option("--curvature", help="Measure the sharpness of the loss too, in at most half of the budget."),
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="End the script after N steps, as sys.exit would.", metavar="N")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed Python, NumPy and PyTorch; added to the seeds that the script sets.", metavar="N"
        ),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOOL[=WHERE]", help="Mirror the run live: tensorboard, or =DIR; wandb, or =PROJECT. Repeatable."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live panel and no closing line.")] = False,
) -> None:
    """Watch an unmodified training script; the record goes to a folder.

    The script runs as `python SCRIPT` would run it, and its exit code is handed on. Everything after SCRIPT is its own.
    """
    target = scripts.Script(script, module, tuple(arguments or ()))
    target.check()
    remedies = _parse(apply or [])
    mirrors = _mirrors(mirror or [], overwrite, quiet)
    directory = (run_dir or new_directory(target.name)).absolute()
    shown = run_dir or Path(os.path.relpath(directory))
    writer = open_run(
        directory, overwrite=overwrite, script=script, is_module=module, arguments=list(target.arguments),
        budget=budget, every=every, asked=apply or [],
    )  # fmt: skip
    watched = _Watched(writer, budget, every, remedies, curvature, stop_after)
    try:
        scripts.when_imported("torch", watched.start)
        with mirrors(directory), live_panel(directory, wanted=not quiet):
            with seeded(seed):
                outcome = scripts.run(target)
            watched.finish(outcome.ending)
    except KeyboardInterrupt:  # before the script began, or once it had ended
        watched.finish("interrupted")
        raise
    if not quiet:
        print(watched.closing_line(shown), file=sys.stderr)
    _leave(outcome)


class _Watched:
    """Joins the script with its watcher and, if remedies are asked for, with the cure."""

    def __init__(
        self,
        writer: RecordWriter,
        budget: float,
        every: int | None,
        remedies: "list[Remedy]",
        curvature: bool,
        stop_after: int | None,
    ) -> None:
        self._writer = writer
        self._budget = budget
        self._every = every
        self._remedies = remedies
        self._curvature = curvature
        self._stop_after = stop_after
        self._session: Session | None = None
        self._admission: Admission | None = None

    def start(self) -> None:
        from desat.watch.session import Session

        first_forward = self._admit().first_forward if self._remedies else None
        self._session = Session(
            self._writer, budget=self._budget, every=self._every, first_forward=first_forward,
            curvature=self._curvature, stop_after=self._stop_after,
        )  # fmt: skip

    def finish(self, ending: scripts.Ending) -> None:
        if self._session is not None:
            self._session.finish()
        if self._admission is not None:
            self._admission.finish()
        self._writer.note(status=ending)
        self._writer.close()

    def closing_line(self, shown: Path) -> str:
        if self._session is None:
            return "desat: nothing was measured: the script never imported torch; desat watches PyTorch trainings"
        watcher = self._session.watcher
        if not watcher.steps:
            return (
                "desat: nothing was measured: no backward pass or optimizer step of a torch.nn.Module was seen; "
                "is the training in another process, or behind an argument?"
            )
        failure = f"; the record ends early: {self._writer.failure}" if self._writer.failure else ""
        return (
            f"desat: {watcher.steps} steps, {watcher.sampled_steps} sampled, watching added "
            f"{watcher.overhead:.1%}{failure}; next: desat diagnose {shown}"
        )

    def _admit(self) -> "Admission":
        from desat.cure.admission import Admission

        self._admission = Admission(self._remedies, self._note)
        return self._admission

    def _note(self, changes: "Sequence[Change]") -> None:
        from desat.cure.edit import fingerprint
        from desat.cure.written import written

        edits, by_hand = written(changes)
        sources = {edit.span.file: fingerprint(edit.span.file) for edit in edits}
        self._writer.note(
            applied=[str(change) for change in changes], edits=[edit.as_json() for edit in edits], by_hand=by_hand,
            sources=sources, redefines_loss=any(change.redefines_loss for change in changes),
        )  # fmt: skip


def _parse(texts: list[str]) -> "list[Remedy]":
    if not texts:
        return []
    from desat.cure.remedy import parse_all

    return parse_all(texts)


def _mirrors(texts: list[str], overwrite: bool, quiet: bool) -> "Callable[[Path], AbstractContextManager[None]]":
    """What opens the mirrors of the run in a folder."""
    if not texts:
        return lambda directory: contextlib.nullcontext()
    from desat.show.export.mirror import check_mirrors, live_mirrors, parse_mirror

    wanted = [parse_mirror(text) for text in texts]
    check_mirrors(wanted, overwrite=overwrite)
    return lambda directory: live_mirrors(directory, wanted, overwrite=overwrite, quiet=quiet)


def _leave(outcome: scripts.Outcome) -> None:
    if outcome.ending == "interrupted":
        # Ctrl-C ends a Python script by the signal itself, which shells tell from an exit code.
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    raise typer.Exit(outcome.exit_code)
