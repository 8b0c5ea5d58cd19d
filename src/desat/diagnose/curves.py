"""Nonlinearities by the class of their curve, as the record describes it."""

import json

from desat.record.reader import Record
from desat.record.rows import Site


def nonlinearities(record: Record, shape: str) -> tuple[Site, ...]:
    """The nonlinearities of one class (`bounded`, `rectifier`, `open`), in order of execution."""
    return tuple(site for site in record.sites("nonlinearity") if shape_of(site) == shape)


def shape_of(site: Site) -> str | None:
    """The class of a site's curve; None where the record has none that can be read."""
    try:
        return json.loads(site.curve or "{}").get("shape")
    except (ValueError, AttributeError):
        return None
