import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatterSciNotation

from desat.deck.powers import PlainPowers, plain, write_powers


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (r"$\mathdefault{10^{-3}}$", "10⁻³"),
        (r"$\mathdefault{10^{0}}$", "10⁰"),
        (r"$\mathdefault{2\times10^{12}}$", "2×10¹²"),
        (r"$\mathdefault{10^{−3}}$", "10⁻³"),
        ("", ""),
        ("0.5", "0.5"),
    ],
)
def test_a_power_is_written_in_plain_characters(formula: str, expected: str) -> None:
    assert plain(formula) == expected


@pytest.mark.parametrize("ends", [(1e-6, 1e3), (2.0, 7.0), (0.3, 40.0)])
def test_the_ticks_that_have_a_label_are_matplotlib_s(ends: tuple[float, float]) -> None:
    labels = []
    for wanted in (False, True):
        canvas = Canvas()
        axes = canvas.add_subplot()
        axes.set(yscale="log", ylim=ends)
        if wanted:
            write_powers(canvas)
            assert isinstance(axes.yaxis.get_major_formatter(), PlainPowers)
        canvas.draw_without_rendering()
        labels.append([plain(one.get_text()) for one in axes.get_yticklabels(which="both")])
    assert labels[0] == labels[1]
    assert any(labels[1])


def test_labels_of_the_slide_s_own_and_straight_axes_are_left_alone() -> None:
    canvas = Canvas()
    axes = canvas.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4], ["one", "two", "four"])
    write_powers(canvas)
    canvas.draw_without_rendering()
    assert [one.get_text() for one in axes.get_xticklabels()] == ["one", "two", "four"]
    assert not isinstance(axes.yaxis.get_major_formatter(), LogFormatterSciNotation)
