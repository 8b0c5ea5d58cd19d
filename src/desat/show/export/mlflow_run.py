"""MLflow: a run with its metrics, its settings as params, and the results as tags.

It goes to where MLFLOW_TRACKING_URI says, else to a SQLite file in the place of the export.
"""

import importlib.util
import logging
import os
import re
from typing import Any

from desat.errors import DesatError
from desat.show.export.exporter import Order
from desat.show.export.facts import Facts
from desat.show.export.findings_text import findings_text
from desat.show.export.moments import Moment

BATCH = 1000
"""Metrics in one call, the most that MLflow takes."""

LONGEST_KEY = 250
LONGEST_VALUE = 500
LONGEST_NOTE = 5000
"""Characters of a metric's name, of a param, and of a tag, in the oldest MLflow that is supported."""

STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}
"""By how the run stands; any other, one that still trains say, is left as running."""


def open_mlflow(order: Order, facts: Facts) -> "MlflowSink":
    """Raises DesatError where MLflow does not take the run."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = (None if order.is_own else os.environ.get("MLFLOW_TRACKING_URI")) or _own_store(order)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(order.project)
        artifacts = (order.place / "artifacts").absolute().as_uri() if uri.startswith("sqlite:") else None
        number = experiment.experiment_id if experiment else client.create_experiment(order.project, artifacts)
        run = client.create_run(number, start_time=int(1000 * facts.began), run_name=str(facts.settings()["run"]))
    except MlflowException as error:
        raise DesatError(f"MLflow did not take the run: {' '.join(str(error).split())}") from error
    return MlflowSink(client, run.info.run_id, uri)


def _own_store(order: Order) -> str:
    for library in ("sqlalchemy", "alembic"):
        if importlib.util.find_spec(library) is None:
            raise DesatError(f"MLflow keeps a file of its own by {library}: `pip install 'desat[mlflow]'`")
    try:
        order.place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DesatError(f"cannot write to {order.place}: {error.strerror}; choose another place with -o") from error
    return f"sqlite:///{order.place.absolute() / 'mlflow.db'}"


class MlflowSink:
    """Logs each value of a moment as a metric, at its time and step."""

    def __init__(self, client: Any, run: str, uri: str) -> None:
        self.told = f"{uri} (run {run})"
        self._client = client
        self._run = run
        self._waiting: list[Any] = []
        self._keys = Keys()
        self._last = 0.0

    def write(self, moment: Moment) -> None:
        from mlflow.entities import Metric

        at = int(1000 * moment.time)
        self._waiting += [Metric(self._keys.of(tag), value, at, moment.step) for tag, value in moment.values.items()]
        self._last = moment.time
        while len(self._waiting) >= BATCH:
            self._send()

    def flush(self) -> None:
        while self._waiting:
            self._send()

    def finish(self, facts: Facts) -> None:
        from mlflow.entities import Param, RunTag

        self.flush()
        keys = Keys()
        params = [Param(keys.of(name), str(value)[:LONGEST_VALUE]) for name, value in facts.settings().items()]
        tags = [RunTag(f"desat.{name}", str(value)[:LONGEST_NOTE]) for name, value in facts.results().items()]
        tags.append(RunTag("mlflow.note.content", findings_text(facts)[:LONGEST_NOTE]))
        self._client.log_batch(self._run, params=params[:100], tags=tags)
        if facts.status in STATUSES:
            self._client.set_terminated(self._run, STATUSES[facts.status], end_time=int(1000 * self._last))

    def _send(self) -> None:
        self._client.log_batch(self._run, metrics=self._waiting[:BATCH])
        del self._waiting[:BATCH]


class Keys:
    """Names that MLflow takes: letters, digits, `_-. :/`, and no path that leads elsewhere; no two tags share one."""

    def __init__(self) -> None:
        self._by_tag: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, tag: str) -> str:
        if tag not in self._by_tag:
            parts = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", tag).split("/")
            wanted = "/".join("_" if set(part) <= {".", " "} else part for part in parts)[:LONGEST_KEY].rstrip("/")
            key, number = wanted, 2
            while key in self._taken:
                key, number = f"{wanted[: LONGEST_KEY - 8]}_{number}", number + 1
            self._by_tag[tag] = key
            self._taken.add(key)
        return self._by_tag[tag]
