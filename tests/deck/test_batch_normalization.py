import math

import pytest

from desat.deck.slides.batch_normalization import SLIDE


def test_each_feature_is_normalized_by_itself_as_pytorch_does_it(fast_page) -> None:
    each = fast_page(SLIDE).statements[0]
    assert each.holds
    assert each.values["largest_mean"] < 1e-12
    assert each.values["largest_difference"] < 1e-12
    assert 0.999 < each.values["smallest_deviation"] <= each.values["largest_deviation"] <= 1.0


def test_the_sketch_that_averages_over_everything_leaves_features_apart(fast_page) -> None:
    everything = fast_page(SLIDE).statements[1]
    assert everything.holds
    assert everything.values["mean"] == pytest.approx(0.0, abs=1e-12)
    assert everything.values["deviation"] == pytest.approx(1.0, abs=1e-4)
    assert everything.values["largest_mean"] > 0.5
    assert everything.values["smallest_deviation"] < 0.7


def test_it_keeps_tanh_off_its_flat_ends(fast_page) -> None:
    unsaturated = fast_page(SLIDE).statements[2]
    assert unsaturated.holds
    # tanh's slope is 5 % where tanh^2 is 95 %.
    outside = math.erfc(math.atanh(math.sqrt(0.95)) / math.sqrt(2.0))
    assert unsaturated.values["expected"] == pytest.approx(outside, rel=1e-6)
    assert unsaturated.values["cured_first"] == pytest.approx(outside, abs=0.015)
    assert unsaturated.values["cured_last"] < 0.06
    # Weights of variance 1 make the pre-activations' about 64, and of the normal distribution so much is outside:
    wide = math.erfc(math.atanh(math.sqrt(0.95)) / 8.0 / math.sqrt(2.0))
    assert unsaturated.values["sick_first"] == pytest.approx(wide, abs=0.06)
    assert unsaturated.values["cured_accuracy"] > unsaturated.values["sick_accuracy"] + 0.05


def test_desat_finds_the_saturation_before_and_not_after(fast_page) -> None:
    found = fast_page(SLIDE).statements[3]
    assert found.holds
    assert (found.values["sick_found"], found.values["cured_found"]) == (1.0, 0.0)


def test_two_samples_say_nothing_of_a_feature(fast_page) -> None:
    tiny = fast_page(SLIDE).statements[4]
    assert tiny.holds
    assert tiny.values["median"] == pytest.approx(1.0, abs=1e-4)
    assert "`degenerate-batchnorm`" in tiny.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["histogram", "features", "training"]
    assert "0 ± 1" in page.figures[1].alt
    assert f"from {page.statements[2].values['sick_first']:.0%}" in page.figures[2].alt
    assert "whole array" in page.words[0]
