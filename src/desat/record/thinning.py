"""Thinning: what keeps the record of a long run small.

At most MOST samples are kept in detail. When there are more, every second one is removed, except for the first ones,
which tell most: so a long run keeps its beginning whole and the rest ever more sparsely, evenly spaced. The steps
themselves, with their losses, all stay.
"""

import sqlite3

MOST = 1024
"""Samples kept in detail: the record's size is bounded by this, the sites and the number of steps."""

FIRST = 64
"""Samples at the beginning that always stay."""

_TABLES = ("tensor", "parameter", "reading")


def thinned(steps: list[int]) -> tuple[list[int], list[int]]:
    """Of sampled steps, in rising order, which stay and which go."""
    if len(steps) <= MOST:
        return steps, []
    later = steps[FIRST:]
    return steps[:FIRST] + later[1::2], later[::2]


def remove_samples(connection: sqlite3.Connection, steps: list[int]) -> None:
    """Remove the detail of sampled steps; they count as unsampled from then on."""
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone (step INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM gone")
    connection.executemany("INSERT INTO gone VALUES (?)", [(step,) for step in steps])
    for table in _TABLES:
        connection.execute(f"DELETE FROM {table} WHERE step IN (SELECT step FROM gone)")
    connection.execute("UPDATE step SET watching = NULL WHERE step IN (SELECT step FROM gone)")
