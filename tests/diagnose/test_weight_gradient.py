from pathlib import Path

import numpy as np
import pytest

from desat.diagnose.weight_gradient import weight_gradient_level, weight_gradient_ratio
from tests.records import deep_network, write_record


def test_the_ratio_is_first_over_last_layer(tmp_path: Path) -> None:
    ratio = weight_gradient_ratio(write_record(tmp_path / "run", deep_network(layers=5, steps=[0, 10], layer_gain=0.1)))
    assert ratio == pytest.approx({0: -80.0, 10: -80.0})


def test_one_layer_has_no_ratio(tmp_path: Path) -> None:
    assert weight_gradient_ratio(write_record(tmp_path / "run", deep_network(layers=1))) == {}


def test_the_level_is_the_largest_gradient(tmp_path: Path) -> None:
    steps, level = weight_gradient_level(write_record(tmp_path / "run", deep_network(steps=[0, 10], layer_gain=0.1)))
    assert list(steps) == [0, 10]
    assert level == pytest.approx([-80.0, -80.0])


def test_a_record_without_parameters_has_neither(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", [])
    assert weight_gradient_ratio(record) == {}
    assert not np.isfinite(weight_gradient_level(record)[1]).any()
