"""JSON: one document with all that is known of a run; docs/export.md describes it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from desat import __version__
from desat.errors import DesatError
from desat.record.histogram import LOWEST_EXPONENT
from desat.record.reader import Record
from desat.show.export.exporter import Order, Tell
from desat.show.export.facts import Facts, facts_of
from desat.show.export.files import cannot_write, write_file
from desat.show.export.moments import Moment, Stream
from desat.show.export.tables import finite
from desat.show.machine import document as findings_document

SCHEMA = 1

STANDARD_OUTPUT = Path("-")


def export_json(record: Record, order: Order, tell: Tell) -> str:
    """To a file, or to standard output. Raises DesatError where it is there already, or cannot be written."""
    if order.place == STANDARD_OUTPUT:
        json.dump(document(record, tell), sys.stdout, allow_nan=False)
        sys.stdout.write("\n")
        return ""
    if order.place.is_dir():
        raise DesatError(f"{order.place} is a folder: -o takes the name of a file")
    if order.place.exists() and not order.overwrite:
        raise DesatError(f"{order.place} exists: choose another name with -o, or pass --overwrite")
    try:
        order.place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(order.place, error) from error
    write_file(order.place, json.dumps(document(record, tell), allow_nan=False).encode())
    return str(order.place)


def document(record: Record, tell: Tell) -> dict[str, Any]:
    """The document; what JSON has no number for is null."""
    facts = facts_of(record)
    series: dict[str, dict[str, list[Any]]] = {}
    histograms: dict[str, dict[str, list[Any]]] = {}
    for progress, moments in Stream().read(record):
        for moment in moments:
            _add(moment, series, histograms)
        tell(progress)
    return finite(
        {
            "schema": SCHEMA,
            "desat": __version__,
            "run": facts.run,
            "information": facts.information,
            "sites": [_site(site) for site in record.sites()],
            "steps": {name: values.tolist() for name, values in record.steps().items()},
            "series": series,
            "histograms": histograms,
            "findings": _findings(record, facts),
        }
    )


def _add(moment: Moment, series: dict[str, dict[str, list[Any]]], histograms: dict[str, dict[str, list[Any]]]) -> None:
    for tag, value in moment.values.items():
        if "/" in tag:  # what is of a whole step is in `steps`
            one = series.setdefault(tag, {"step": [], "value": []})
            one["step"].append(moment.step)
            one["value"].append(value)
    for tag, counts in moment.histograms.items():
        filled = np.flatnonzero(counts)
        if len(filled):
            one = histograms.setdefault(tag, {"step": [], "exponent": [], "counts": []})
            one["step"].append(moment.step)
            one["exponent"].append(LOWEST_EXPONENT + int(filled[0]))
            one["counts"].append(counts[filled[0] : filled[-1] + 1].astype(int).tolist())


def _site(site: Any) -> dict[str, Any]:
    told = site._asdict()
    try:
        told["curve"] = json.loads(site.curve) if site.curve is not None else None
    except ValueError:
        told["curve"] = None
    del told["id"]
    return told


def _findings(record: Record, facts: Facts) -> dict[str, Any] | None:
    return findings_document(record, facts.diagnosis) if facts.diagnosis is not None else None
