import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desat.diagnose.link_budget import measure_link_budget
from desat.record.rows import Site
from tests.records import deep_network, statistics, write_record


def test_the_loss_of_a_known_network_is_booked_to_its_nonlinearities(tmp_path: Path) -> None:
    budget = measure_link_budget(write_record(tmp_path / "run", deep_network(layers=6, layer_gain=0.1)))
    assert budget is not None
    # Five nonlinearities lie between the outputs of the first and the last one; the last one's own loss comes with it.
    assert budget.total_db == pytest.approx(-120)
    assert budget.by_share["nonlinearity"] == pytest.approx(-120)
    assert budget.fractions["nonlinearity"] == pytest.approx(1)
    assert budget.dominating_share == "nonlinearity"
    assert budget.first_site == "net.0"


@given(st.lists(st.floats(1e-30, 1e30), min_size=2, max_size=20))
@settings(deadline=None, max_examples=25)
def test_the_links_telescope(gradients: list[float]) -> None:
    rows = []
    for place, rms in enumerate(gradients):
        operation = ("Linear", "BatchNorm1d", "MaxPool2d")[place % 3]
        rows += [Site(place, f"layer.{place}", "module", operation, None, place, None)]
        rows += [statistics(place, "gradient", 0, rms=rms)]
    with TemporaryDirectory() as directory:
        budget = measure_link_budget(write_record(Path(directory) / "run", rows))
    assert budget is not None
    assert budget.total_db == pytest.approx(20 * math.log10(gradients[0] / gradients[-1]), abs=1e-6)
    assert sum(budget.by_share.values()) == pytest.approx(budget.total_db, abs=1e-6)
    assert 0 <= sum(budget.fractions.values()) <= 1 + 1e-9


def test_a_gradient_of_zero_keeps_decibels_finite(tmp_path: Path) -> None:
    rows = deep_network(layers=3, layer_gain=0.0)
    budget = measure_link_budget(write_record(tmp_path / "run", rows))
    assert budget is None or math.isfinite(budget.total_db)


def test_less_than_two_sites_make_no_budget(tmp_path: Path) -> None:
    rows = [Site(0, "only", "module", "Linear", None, 0, None), statistics(0, "gradient", 0)]
    assert measure_link_budget(write_record(tmp_path / "run", rows)) is None


def test_a_step_that_was_not_sampled_has_none(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(steps=[0, 10]))
    assert measure_link_budget(record, step=5) is None
    budget = measure_link_budget(record, step=10)
    assert budget is not None
    assert budget.step == 10


def test_the_budget_begins_at_the_last_output_that_the_loss_depends_on(tmp_path: Path) -> None:
    names = [("Linear", 1e-4), ("Tanh", 1e-3), ("Linear", 1e-2), ("Linear", 0.0), ("MSELoss", 1.0)]
    rows = []
    for place, (operation, rms) in enumerate(names):
        kind = "nonlinearity" if operation == "Tanh" else "module"
        rows += [Site(place, f"layer.{place}", kind, operation, None, place, None)]
        rows += [statistics(place, "gradient", 0, rms=rms)]
    budget = measure_link_budget(write_record(tmp_path / "run", rows))
    assert budget is not None
    assert [link.site for link in budget.links] == ["layer.2", "layer.1"]
    assert budget.first_site == "layer.0"
    assert budget.by_share["nonlinearity"] == pytest.approx(-20)
    assert budget.by_share["weight"] == pytest.approx(-20)
