"""The Python face of desat: watch a loop, open a record, apply remedies."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis
from desat.record.reader import Record
from desat.record.run import new_directory, open_run, state
from desat.watch.listeners import listeners, tell

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from desat.cure.family import Change


class Run:
    """A watched run, live or finished; `directory` is its folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(self) -> Record:
        """The run's record, as it is now."""
        return Record(self.directory)

    def diagnose(self) -> Diagnosis:
        """The findings of the record, as it is now; see desat.diagnose.engine."""
        with self.record() as record:
            return diagnose(record)

    def __repr__(self) -> str:
        """One line: where, how it stands, how far it is."""
        try:
            with self.record() as record:
                information = record.information
            told = f"{state(information)}, {information.get('steps') or 0} steps"
        except Exception:  # whatever is wrong with the file, a repr never raises
            told = "no record that can be read"
        return f"<desat.Run {str(self.directory)!r}: {told}>"

    def _repr_html_(self) -> str:
        """The run as a card, which notebooks show; a live one as it is now. Never raises."""
        from desat.show.card import card, problem_card

        try:
            with self.record() as record:
                return card(record, diagnose(record))
        except Exception as problem:  # into a notebook's page no error of desat may come
            return problem_card(str(self.directory), str(problem) or type(problem).__name__)


@contextlib.contextmanager
def watch(
    model: "nn.Module",
    optimizer: "Optimizer | None" = None,
    *,
    budget: float = 0.01,
    every: int | None = None,
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    curvature: bool = False,
) -> Iterator[Run]:
    """Watch a training loop while the context is open; the loop stays as it is.

    model: the network; optimizer: the one whose steps are counted (None: the first that steps).
    budget: share of the wall time that watching may add, over a run of a minute or more; every: sample each `every`-th
    step instead of by the budget. run_dir: where the record goes (default: a new folder in ./desat-runs); a run that is
    there already is kept unless `overwrite`. curvature: measure the sharpness of the loss at some of the sampled steps
    too, in at most half of the budget; see desat.watch.curvature.

    Raises DesatError where the record cannot be written or an argument is out of its range.
    """
    from desat.watch.session import Session

    directory = new_directory(type(model).__name__.lower()) if run_dir is None else Path(run_dir)
    writer = open_run(directory, overwrite=overwrite)
    ending = "failed"
    try:
        session = Session(writer, model=model, optimizer=optimizer, budget=budget, every=every, curvature=curvature)
        try:
            yield Run(directory)
            ending = "finished"
        except KeyboardInterrupt:
            ending = "interrupted"
            raise
        finally:
            session.finish()
    finally:
        writer.note(status=ending)
        writer.close()


def log(**values: SupportsFloat) -> None:
    """Tell desat of the script's own metrics, as in `desat.log(validation_accuracy=0.93, f1=0.8)`.

    values: numbers by name; a tensor or an array of one element will do. They go to the record of the run that is
    watched, under the number of the last optimizer step done (-1 before the first), where the last value of a name at a
    step counts; `desat cure` judges remedies by them. At most 64 names, of up to 128 characters.

    Does nothing where nothing watches, and in any but the first process of torch.distributed; call it outside of
    compiled code, where it does nothing either. Never raises for a value that is no number: it warns, once a name.
    """
    if listeners:
        tell(values)


def open(path: str | Path) -> Record:
    """The record of a run: `path` is its folder or its run.sqlite. Raises DesatError where there is none."""
    return Record(path)


def apply(
    model: "nn.Module", optimizer: "Optimizer | None", *remedies: str, batch: object = None
) -> "tuple[Change, ...]":
    """Apply remedies such as `activation=relu` to a live model and its optimizer, in place.

    optimizer: None where there is none yet; it is then to be made after this call. batch: the arguments of a forward
    pass, a tuple or the only one; some remedies need a real batch to see what the network does with it. Returns what
    was changed, and what was not, and why.

    Raises DesatError for a remedy that does not exist.
    """
    from desat.cure.patient import Batch, Patient
    from desat.cure.remedy import apply as apply_remedies
    from desat.cure.remedy import parse_all

    wanted = parse_all(remedies)
    args = None if batch is None else Batch(batch if isinstance(batch, tuple) else (batch,))
    return apply_remedies(Patient(model, () if optimizer is None else (optimizer,), args), wanted)
