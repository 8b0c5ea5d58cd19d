"""Small records made by hand, for the tests of what reads records."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from desat.record.reader import Record
from desat.record.rows import ParameterStatistics, Row, Site, Step, TensorStatistics
from desat.record.writer import RecordWriter

SIGMOID_CURVE = json.dumps({"shape": "bounded", "low": -4.357, "high": 4.357, "peak_gain": 0.25})
RELU_CURVE = json.dumps({"shape": "rectifier", "low": 0.0, "high": None, "peak_gain": 1.0})


def write_record(directory: Path, rows: Iterable[Row], **information: Any) -> Record:
    """A finished record that holds `rows`."""
    writer = RecordWriter(directory)
    writer.note(**{"status": "finished", "script": "train.py", "overhead": 0.01} | information)
    writer.put(lambda: rows)
    writer.close()
    return Record(directory)


def statistics(site: int, quantity: str, step: int, **values: Any) -> TensorStatistics:
    """A plausible row of the table `tensor`, with `values` in place of the defaults."""
    defaults: dict[str, Any] = {
        "calls": 1, "elements": 6400, "mean": 0.0, "rms": 1.0, "minimum": -3.0, "maximum": 3.0, "zeros": 0.0,
        "nonfinite": 0.0, "saturated_low": None, "saturated_high": None, "gain": None, "units": None,
        "saturated_units": None, "histogram": None, "dtype": "float32",
    }  # fmt: skip
    return TensorStatistics(site=site, quantity=quantity, step=step, **(defaults | values))


def deep_network(
    layers: int = 6,
    steps: Iterable[int] = range(0, 100, 10),
    *,
    operation: str = "Sigmoid",
    saturated_low: float = 0.0,
    saturated_high: float = 0.0,
    layer_gain: float = 1.0,
    loss: Callable[[int], float | None] = lambda step: 2.3 * 0.97**step,
    dead_units: int = 0,
    nonfinite_from: int | None = None,
) -> list[Row]:
    """Rows of a chain of `layers` x (Linear, nonlinearity), 64 units wide, sampled at `steps`.

    layer_gain: rms(gradient) of a layer's output over that of the next layer's, all of it lost in the nonlinearity.
    dead_units: so many units of each nonlinearity are saturated on every sample. nonfinite_from: from that step on, all
    values are non-finite. Loss is given for every step up to the last sampled one.
    """
    steps = list(steps)
    curve = RELU_CURVE if operation == "ReLU" else SIGMOID_CURVE
    units = np.packbits(np.arange(64) < dead_units).tobytes()
    rows: list[Row] = []
    for layer in range(layers):
        linear, activation, weight = 3 * layer, 3 * layer + 1, 3 * layer + 2
        rows += [
            Site(linear, f"net.{2 * layer}", "module", "Linear", None, 2 * layer, None),
            Site(activation, f"net.{2 * layer + 1}", "nonlinearity", operation, None, 2 * layer + 1, curve),
            Site(weight, f"net.{2 * layer}.weight", "parameter", "Linear", None, 2 * layer, None),
        ]
        after, before = layer_gain ** (layers - 1 - layer), layer_gain ** (layers - layer)
        for step in steps:
            sick = nonfinite_from is not None and step >= nonfinite_from
            broken: dict[str, Any] = {"nonfinite": 1.0, "rms": None, "mean": None} if sick else {}
            rows += [
                statistics(linear, "output", step, **broken),
                statistics(linear, "gradient", step, **{"rms": 1e-2 * before} | broken),
                statistics(
                    activation, "input", step, **{
                        "saturated_low": saturated_low, "saturated_high": saturated_high, "gain": 0.2 * layer_gain,
                        "units": 64, "saturated_units": units,
                    } | broken,
                ),
                statistics(activation, "output", step, **broken),
                statistics(activation, "gradient", step, **{"rms": 1e-2 * after} | broken),
                ParameterStatistics(weight, step, 4096, 0.1, 1e-3 * before, 0.0, float(sick), 1e-4 * before),
            ]  # fmt: skip
    sampled = set(steps)
    for step in range(max(steps, default=-1) + 1):
        watching = 0.002 if step in sampled else None
        rows.append(Step(step, 0.01 * step, loss(step), 0.01, watching))
    return rows
