from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.non_finite import NON_FINITE
from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced
from tests.records import deep_network


def network(**values: Any) -> list[Row]:
    return deep_network(**({"layers": 3, "steps": SAMPLES} | values))


def broken(quantity: str, sites: tuple[int, ...], share: float = 1.0, since: int = 100) -> list[Row]:
    """A network with non-finite values in one quantity of some sites."""
    return [
        row._replace(nonfinite=share)
        if isinstance(row, TensorStatistics) and row.quantity == quantity and row.site in sites and row.step >= since
        else row
        for row in network()
    ]


def test_a_finite_network_has_none(tmp_path: Path) -> None:
    assert examine(NON_FINITE, tmp_path, network()) is None


def test_it_names_the_first_place_and_step(tmp_path: Path) -> None:
    found = examine(NON_FINITE, tmp_path, network(nonfinite_from=100), UNKNOWN)
    assert found is not None
    assert (found.severity, found.site, found.first_step) == ("error", "net.0", 100)
    assert "between steps 90 and 100" in found.cause
    assert found.sites[0] == "net.0"


@pytest.mark.parametrize(
    ("quantity", "sites", "site", "cause"),
    [
        ("output", (1,), "net.1", "Sigmoid turned finite inputs into"),
        ("output", (3,), "net.2", "grow from layer to layer"),
        ("gradient", (0, 1, 3), "net.2", "backward pass overflowed"),
    ],
    ids=["a function", "a layer in the middle", "backward, nearest to the loss"],
)
def test_the_cause_is_where_it_came_from(
    tmp_path: Path, quantity: str, sites: tuple[int, ...], site: str, cause: str
) -> None:
    found = examine(NON_FINITE, tmp_path, broken(quantity, sites))
    assert found is not None
    assert found.site == site
    assert cause in found.cause


def test_a_weights_gradient_alone(tmp_path: Path) -> None:
    rows = [row._replace(gradient_nonfinite=0.2) if isinstance(row, ParameterStatistics) else row for row in network()]
    found = examine(NON_FINITE, tmp_path, rows)
    assert found is not None
    assert found.site == "net.4.weight"


def test_from_the_first_sample_on_it_is_the_data_or_the_initial_weights(tmp_path: Path) -> None:
    found = examine(NON_FINITE, tmp_path, network(nonfinite_from=0), UNKNOWN)
    assert found is not None
    assert "initial weights" in found.cause


def test_a_mask_in_a_network_that_learns_is_a_note(tmp_path: Path) -> None:
    found = examine(NON_FINITE, tmp_path, broken("output", (3,), share=0.2, since=0), LEARNED)
    assert found is not None
    assert found.severity == "note"


def test_what_is_over_is_a_note_and_one_sample_of_it_nothing(tmp_path: Path) -> None:
    over = examine(NON_FINITE, tmp_path / "over", spliced(broken("gradient", (0,), since=0), network(), 100), HARMED)
    assert over is not None
    assert over.severity == "note"
    once = spliced(spliced(network(), broken("gradient", (0,)), 100), network(), 110)
    assert examine(NON_FINITE, tmp_path / "once", once, LEARNED) is None


def test_a_loss_alone_is_an_error_without_a_site(tmp_path: Path) -> None:
    found = examine(NON_FINITE, tmp_path, network(), Learning("non-finite", 60, nonfinite_since=60))
    assert found is not None
    assert (found.severity, found.site, found.first_step) == ("error", None, 60)
