import numpy as np
import pytest
import torch

from desat.deck.slides.attention import SLIDE, jacobian_norm


def test_the_norm_of_the_jacobian_is_that_of_autograd() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.5], [9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [
        float(torch.linalg.norm(torch.as_tensor(torch.autograd.functional.jacobian(lambda z: z.softmax(-1), row))))
        for row in logits
    ]
    np.testing.assert_allclose(jacobian_norm(logits.softmax(-1).numpy()), expected, rtol=1e-10)


def test_the_formula_is_pytorch_s_and_stays_finite(fast_page) -> None:
    statement = fast_page(SLIDE).statements[0]
    assert statement.holds
    assert statement.values["error"] < 1e-12
    assert statement.values["row_error"] < 1e-12


def test_without_the_division_the_softmax_saturates_with_the_width(fast_page) -> None:
    statement = fast_page(SLIDE).statements[1]
    assert statement.holds
    assert statement.values["deviation"] == pytest.approx(512**0.5, rel=0.05)
    assert statement.values["deviation_scaled"] == pytest.approx(1.0, rel=0.05)
    assert statement.values["largest"] > 0.85 > 0.2 > statement.values["largest_scaled"]
    assert statement.values["entropy"] < 0.1 < 0.8 < statement.values["entropy_scaled"]
    assert statement.values["slope"] < 0.1 * statement.values["steepest"]


def test_a_transformer_without_the_division_collapses(fast_page) -> None:
    statement = fast_page(SLIDE).statements[2]
    assert statement.holds
    assert statement.values["entropy_first"] < 0.3 < 0.8 < statement.values["entropy_first_scaled"]
    assert statement.values["entropy_last"] < 0.1 < 0.2 < statement.values["entropy_last_scaled"]
    assert statement.values["accuracy"] < statement.values["accuracy_scaled"]
    assert "`collapsed-attention`" in statement.sentence


def test_rescaled_weights_start_well_and_norms_hold_the_logits(fast_page) -> None:
    statement = fast_page(SLIDE).statements[3]
    assert statement.holds
    assert statement.values["entropy_last"] < 0.2 < 0.7 < statement.values["entropy_first"]
    assert statement.values["logit_normed"] < statement.values["logit"]


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["weights", "width", "slope", "entropy"]
    assert f"rises to {page.statements[1].values['largest']:.2f}" in page.figures[1].alt
