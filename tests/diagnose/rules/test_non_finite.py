from pathlib import Path
from typing import Any

import pytest

from desat.diagnose.learning import Learning
from desat.diagnose.rules.non_finite import NON_FINITE
from desat.record.rows import ParameterStatistics, Row, Site, TensorStatistics
from tests.diagnose.rules.cases import HARMED, LEARNED, SAMPLES, UNKNOWN, examine, spliced, with_input
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


LOST = Learning("non-finite", 100, nonfinite_since=100)


def losing(chain: str, operation: str = "Sigmoid", loss_before: float = 1.0) -> list[Row]:
    """A network of sound tensors whose loss is nan from step 100 on, after `loss_before` at step 99."""
    rows = network(
        operation=operation, loss=lambda step: float("nan") if step >= 100 else loss_before if step == 99 else 1.0
    )
    return [*rows, Site(90, "loss", "loss", chain, "train.py:9", 90, None)]


CROSS_ENTROPY = "NllLoss <- LogSoftmax <- Addmm"


def test_bad_data_is_seen_in_the_input(tmp_path: Path) -> None:
    rows = [
        row._replace(nonfinite=0.02) if isinstance(row, TensorStatistics) and row[:3] == (600, "output", 100) else row
        for row in with_input(network(nonfinite_from=100))
    ]
    found = examine(NON_FINITE, tmp_path, rows, LOST)
    assert found is not None
    assert found.cause == "the data holds nan or infinity: 0.02 of input at step 100"
    assert "The network's input (float32) holds nan or infinity" in found.message
    assert (found.site, found.remedies) == ("input", ("clipping=finite",))


@pytest.mark.parametrize(
    ("bad_step", "loss_before", "cause"),
    [(150, 1.0, "the data holds nan or infinity: 0.02 of the network's input at step 150"),
     (150, 9.0, "an update between steps 90 and 100"), (None, 1.0, "an update between steps 90 and 100")],
    ids=["bad input later, sound loss", "the loss had grown", "no bad input"],
)  # fmt: skip
def test_a_bad_batch_between_samples(tmp_path: Path, bad_step: int | None, loss_before: float, cause: str) -> None:
    broken_rows = [row for row in network(nonfinite_from=100) if isinstance(row, TensorStatistics)]
    rows = [row for row in losing(CROSS_ENTROPY, loss_before=loss_before) if not isinstance(row, TensorStatistics)]
    at = (600, "output", bad_step)
    bad = [
        row._replace(nonfinite=0.02) if isinstance(row, TensorStatistics) and row[:3] == at else row
        for row in with_input([*rows, *broken_rows])
    ]
    found = examine(NON_FINITE, tmp_path, bad, LOST)
    assert found is not None
    assert found.cause.startswith(cause)


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (losing(CROSS_ENTROPY), "the loss was sound up to step 100, and lost at once"),
        (losing(CROSS_ENTROPY, loss_before=50.0), "the loss itself overflows"),
        (losing("Log <- Softmax <- Addmm"), "the loss itself overflows"),
        (network(loss=lambda step: 1.0 if step < 100 else float("nan")), "the loss itself overflows"),
        ([*losing(CROSS_ENTROPY), Site(91, "lstm.l0", "recurrent", "RNN", None, 3, None)], "the loss itself overflows"),
    ],
    ids=["at once", "it had grown", "a logarithm by hand", "an old record without the loss's make", "recurrent"],
)
def test_a_loss_that_is_lost_at_once_is_a_bad_batch(tmp_path: Path, rows: list[Row], cause: str) -> None:
    found = examine(NON_FINITE, tmp_path, rows, LOST)
    assert found is not None
    assert found.cause.startswith(cause)


@pytest.mark.parametrize(
    ("chain", "cause"),
    [
        ("Log <- Softmax <- Addmm", "the logarithm of a softmax or sigmoid is taken by hand"),
        ("Log <- Sum <- Exp <- Addmm", "a logarithm of exponentials is computed by hand"),
        (CROSS_ENTROPY, "the backward pass overflowed"),
    ],
)
def test_a_gradient_that_is_lost_in_the_loss(tmp_path: Path, chain: str, cause: str) -> None:
    rows = [*broken("gradient", (0, 1, 3, 4, 6, 7), since=0), Site(90, "loss", "loss", chain, None, 90, None)]
    found = examine(NON_FINITE, tmp_path, rows, UNKNOWN)
    assert found is not None
    assert found.cause.startswith(cause)


def test_an_input_site_before_it_does_not_make_the_first_layer_a_later_one(tmp_path: Path) -> None:
    found = examine(NON_FINITE, tmp_path, with_input(network(nonfinite_from=100)), UNKNOWN)
    assert found is not None
    assert "an update between steps 90 and 100" in found.cause
