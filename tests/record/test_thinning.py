import time
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from desat.record.reader import Record
from desat.record.rows import ParameterStatistics, Row, Site, Step
from desat.record.thinning import FIRST, MOST, thinned
from desat.record.writer import RecordWriter
from tests.records import statistics

SITES, STEPS = 100, 1_500


@given(st.integers(0, 3 * MOST))
def test_what_stays_and_what_goes_is_everything_in_order(count: int) -> None:
    steps = list(range(0, 7 * count, 7))
    kept, gone = thinned(steps)
    assert sorted(kept + gone) == steps
    assert kept[:FIRST] == steps[:FIRST]
    assert (not gone) == (count <= MOST)
    if gone:
        assert len(kept) < 0.55 * count + FIRST
        assert kept[-1] >= steps[-2]


def sample(step: int, bits: bytes, histogram: bytes) -> list[Row]:
    """What 100 sites, half of them nonlinearities, and 50 parameters give at one sampled step."""
    rows: list[Row] = [Step(step, 0.01 * step, 2.3, 0.01, 0.001)]
    noise = np.random.default_rng(step).random(8).tolist()
    values = {"mean": noise[0], "rms": noise[1], "minimum": noise[2], "maximum": noise[3], "zeros": noise[4]}
    for site in range(SITES):
        rows += [statistics(site, name, step, histogram=histogram, **values) for name in ("output", "gradient")]
        if site % 2:
            curve = {"gain": noise[5], "saturated_low": noise[6], "units": 256, "saturated_units": bits}
            rows.append(statistics(site, "input", step, histogram=histogram, **values, **curve))
        else:
            rows.append(ParameterStatistics(SITES + site, step, 65536, *noise[:4], noise[4]))
    return rows


def test_very_many_sampled_steps_of_a_hundred_sites_stay_small(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run")
    sites = [Site(n, f"s{n}", "nonlinearity" if n % 2 else "module", "ReLU", None, n, None) for n in range(SITES)]
    writer.put(lambda: sites)
    bits, histogram = bytes(32), bytes(40)
    for start in range(0, STEPS, 50):
        steps = range(start, start + 50)
        while not writer.put(lambda steps=steps: (row for step in steps for row in sample(step, bits, histogram))):
            time.sleep(0.05)
    writer.close(timeout=200)
    with Record(tmp_path / "run") as record:
        assert record.path.stat().st_size < 200e6
        kept = record.steps(sampled=True)["step"]
        assert FIRST < len(kept) <= MOST
        assert kept[:FIRST].tolist() == list(range(FIRST))
        assert len(record.steps()["step"]) == STEPS
        for site in record.sites()[::25]:
            assert record.tensor(site, "output")["step"].tolist() == kept.tolist()
