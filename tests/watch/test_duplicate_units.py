import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.watch.rank import ALIKE, duplicate_units
from tests.watch.loops import classify


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10), st.floats(-30, 30))
@settings(deadline=None, max_examples=40)
def test_copies_are_counted_whatever_their_size(rows: int, units: int, copies: int, exponent: float) -> None:
    matrix = np.random.default_rng(rows * 31 + units).standard_normal((rows, units)) * 10.0**exponent
    copies = min(copies, units // 2)
    matrix[:, :copies] = matrix[:, units - copies :]
    found = duplicate_units(matrix.astype(np.float32))["duplicate_units"]
    expected = np.mean([
        any(
            np.linalg.norm(one - other) <= ALIKE * max(np.linalg.norm(one), np.linalg.norm(other))
            for place, other in enumerate(matrix.T) if place != number
        )
        for number, one in enumerate(matrix.T)
    ])  # fmt: skip
    assert found == pytest.approx(expected)
    assert found >= 2 * copies / units - 1e-9


@pytest.mark.parametrize(("difference", "share"), [(0.5 * ALIKE, 1.0), (2.0 * ALIKE, 0.0)])
def test_nearly_alike_counts_by_the_tolerance(difference: float, share: float) -> None:
    unit = np.random.default_rng(0).standard_normal(50)
    other = unit + difference * np.linalg.norm(unit) * np.eye(50)[0]
    assert duplicate_units(np.stack([unit, other], 1).astype(np.float32)) == {"duplicate_units": share}


def test_units_that_are_off_are_no_duplicates() -> None:
    matrix = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    matrix[:, 2:] = 0.0
    assert duplicate_units(matrix) == {"duplicate_units": 0.0}
    assert duplicate_units(matrix[:, 1:]) == {}
    assert duplicate_units(np.zeros((4, 3), np.float32)) == {}


def test_nothing_is_said_of_values_that_are_not_finite() -> None:
    assert duplicate_units(np.array([[1.0, np.nan], [2.0, 3.0]], np.float32)) == {}
    assert duplicate_units(np.array([[1.0, np.inf], [2.0, 3.0]], np.float32)) == {}


def test_a_layer_that_is_drawn_has_none_and_one_that_is_constant_only_those(watched) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.fill_(0.1)
    record = watched(model, classify(steps=1))
    found = {site.name: record.readings(site)["duplicate_units"]["value"].tolist() for site in record.sites("module")}
    assert found == {"0": [1.0], "2": [0.0]}
