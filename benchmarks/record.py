"""What a long run leaves behind: size of the record, memory of the writer, time to read one site's series.

`python -m benchmarks.record` prints the figures for a run that is sampled at every step.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.overhead import resident
from desat.record.histogram import BINS, pack_histogram
from desat.record.reader import Record
from desat.record.rows import ParameterStatistics, Reading, Row, Site, Step, TensorStatistics
from desat.record.writer import RecordWriter

QUANTITIES = ("input", "output", "gradient")
READINGS = ("effective_rank", "gradient_snr")
UNITS = 256


def sample(sites: int, step: int, generator: np.random.Generator) -> list[Row]:
    """A sampled step of a network with so many nonlinearities and as many parameters, with numbers that do not pack."""
    rows: list[Row] = [Step(step, 0.01 * step, float(generator.random()), 0.01, 0.001)]
    histogram = pack_histogram(generator.integers(0, 300, BINS) * (np.abs(np.arange(BINS) - 45) < 8))
    bits = generator.integers(0, 256, UNITS // 8, np.uint8).tobytes()
    for site in range(sites):
        numbers = generator.random(9).tolist()
        rows += [
            TensorStatistics(site, quantity, step, 1, 32768, *numbers, UNITS, bits, histogram, "float32")
            for quantity in QUANTITIES
        ]
        rows.append(ParameterStatistics(sites + site, step, 65536, *generator.random(5).tolist()))
        rows += [Reading(site, name, step, float(generator.random())) for name in READINGS]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=100)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        writer = RecordWriter(Path(place))
        sites = [
            Site(number, f"layer.{number}", "nonlinearity", "ReLU", None, number, None)
            for number in range(options.sites)
        ]
        parameters = [
            Site(options.sites + site.id, f"{site.name}.weight", "parameter", "Linear", None, site.id, None)
            for site in sites
        ]
        writer.put(lambda: [*sites, *parameters])
        memory, began = [], time.perf_counter()
        for step in range(options.steps):
            rows = sample(options.sites, step, generator)
            while not writer.put(lambda rows=rows: rows):
                time.sleep(0.01)
            if step % max(1, options.steps // 10) == 0:
                memory.append(resident() / 1e6)
        writer.close(timeout=600)
        took, size = time.perf_counter() - began, writer.path.stat().st_size / 1e6
        with Record(Path(place)) as record:
            times = []
            for quantity in QUANTITIES * 10:
                began = time.perf_counter()
                record.tensor(sites[options.sites // 2], quantity)
                times.append(time.perf_counter() - began)
    print(f"{options.steps} samples of {options.sites} sites: {size:.0f} MB, written in {took:.0f} s")
    print(f"memory after each tenth, MB: {', '.join(f'{value:.0f}' for value in memory)}")
    print(f"one site's series: {1000 * np.median(times):.1f} ms, at most {1000 * max(times):.1f} ms")


if __name__ == "__main__":
    main()
