"""A record of a large network over many samples, made by SQLite itself, since rows from Python would take a minute."""

import contextlib
import sqlite3
from pathlib import Path

import numpy as np

from desat.record.histogram import pack_histogram
from desat.record.reader import Record
from desat.record.rows import ParameterStatistics, Site, Step
from desat.record.writer import RecordWriter
from tests.records import SIGMOID_CURVE

_BINS = np.arange(64)
_HISTOGRAMS = [pack_histogram(np.round(1000 * np.exp(-(((_BINS - mode) / 4.0) ** 2)))) for mode in range(30, 50)]
_STATISTICS = """
    INSERT INTO tensor
    SELECT site.id, :quantity, sample.number * 5, 1, 6400, 0.0, {rms}, -3.0, 3.0, 0.0, 0.0, {low}, {high}, {gain},
        {units}, {flags}, histogram.packed, 'float32'
    FROM site, sample JOIN histogram ON histogram.number = (sample.number / 100 + site.id) % 20
    WHERE site.kind = :kind
"""
_ABSENT = {"low": "NULL", "high": "NULL", "gain": "NULL", "units": "NULL", "flags": "NULL"}
_SATURATED = {
    "low": "0.1 + site.id / 1000.0", "high": "0.1 + sample.number / 5000.0", "gain": "0.2 - sample.number / 20000.0",
    "units": "64", "flags": "CASE sample.number % 3 WHEN 0 THEN randomblob(8) ELSE zeroblob(8) END",
}  # fmt: skip
_NOISE = "(0.75 + 0.5 * abs(random() % 1000) / 1000.0)"
_GRADIENT = f"exp((site.id - 300) / 30.0 - sample.number / 2000.0) * {_NOISE}"


def write_big_record(directory: Path, layers: int = 100, samples: int = 2000) -> Record:
    """A record of 3 x `layers` sites (linear, sigmoid, weight) and five steps a sample."""
    RecordWriter(directory).close()
    connection = sqlite3.connect(directory / "run.sqlite")
    with contextlib.closing(connection), connection:
        connection.executemany("INSERT INTO run VALUES (?, ?)", [("status", '"finished"'), ("script", '"train.py"')])
        connection.executemany("INSERT INTO site VALUES (?, ?, ?, ?, ?, ?, ?)", _sites(layers))
        connection.execute("CREATE TEMP TABLE sample (number INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO sample VALUES (?)", [(number,) for number in range(samples)])
        connection.execute("CREATE TEMP TABLE histogram (number INTEGER PRIMARY KEY, packed BLOB)")
        connection.executemany("INSERT INTO histogram VALUES (?, ?)", list(enumerate(_HISTOGRAMS)))
        for kind, quantity, columns in (
            ("module", "output", {"rms": f"1.0 * {_NOISE}"} | _ABSENT),
            ("module", "gradient", {"rms": _GRADIENT} | _ABSENT),
            ("nonlinearity", "input", {"rms": f"1.0 * {_NOISE}"} | _SATURATED),
            ("nonlinearity", "output", {"rms": f"0.5 * {_NOISE}"} | _ABSENT),
            ("nonlinearity", "gradient", {"rms": _GRADIENT} | _ABSENT),
        ):
            connection.execute(_STATISTICS.format(**columns), {"kind": kind, "quantity": quantity})
        names = ", ".join(ParameterStatistics._fields)
        connection.execute(
            f"INSERT INTO parameter ({names}) SELECT site.id, sample.number * 5, 4096, 0.1, {_GRADIENT}, 0.0, 0.0,"
            f" 0.01 * {_GRADIENT}, NULL FROM site, sample WHERE site.kind = 'parameter'"
        )
        steps = np.arange(5 * samples)
        losses = 0.2 + 2.1 * np.exp(-steps / samples) + 0.05 * np.sin(steps)
        connection.executemany(
            f"INSERT INTO step VALUES ({', '.join('?' * len(Step._fields))})",
            [(s, 0.01 * s, loss, 0.01, 0.002 if s % 5 == 0 else None)
             for s, loss in zip(steps.tolist(), losses.tolist(), strict=True)],
        )  # fmt: skip
    return Record(directory)


def _sites(layers: int) -> list[Site]:
    sites = []
    for layer in range(layers):
        name, number = f"encoder.layers.{layer}", 3 * layer
        sites += [
            Site(number, f"{name}.linear", "module", "Linear", None, 2 * layer, None),
            Site(number + 1, f"{name}.activation", "nonlinearity", "Sigmoid", None, 2 * layer + 1, SIGMOID_CURVE),
            Site(number + 2, f"{name}.linear.weight", "parameter", "Linear", None, 2 * layer, None),
        ]
    return sites
