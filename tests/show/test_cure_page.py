import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from desat.errors import DesatError
from desat.show.cure_page import render_cure, write_cure
from desat.show.curves import MOST_TRIALS, curve_of, curves_figure
from desat.show.loss_curve import SMOOTHED_SHARE, smoothed
from tests.browser import needs_chromium, visit
from tests.pages import elements, views_of, without_data
from tests.show.test_cure import trial
from tests.show.test_report import HOSTILE


def curve(*apply: str, losses: list[list[float | None]], stride: int = 1) -> dict[str, Any]:
    runs = [
        {"seed": seed, "steps": list(range(0, stride * len(row), stride)), "losses": row}
        for seed, row in enumerate(losses)
    ]
    return {"apply": list(apply), "runs": runs}


FLAT: list[list[float | None]] = [[2.3 + 0.01 * seed] * 100 for seed in range(3)]
FALLING: list[list[float | None]] = [[2.3 - 0.02 * step + 0.05 * seed for step in range(100)] for seed in range(3)]
CURVES = [
    curve(losses=FLAT),
    curve("activation=relu", "initialization=he", losses=FALLING),
    curve("clipping=norm", losses=[[2.4] * 38]),
]


def document(*trials: dict[str, Any], curves: list[dict[str, Any]] | None = None, **values: Any) -> dict[str, Any]:
    finding = {"code": "vanishing-gradient", "severity": "error", "site": "net.3", "cause": "too deep"}
    baseline = {
        "verdict": "error", "findings": [finding], "metric": 2.345, "measure": "loss", "steps": 200, "seconds": 9.0,
        "seeds": [0, 1, 2], "ending": "stopped",
    }  # fmt: skip
    found = {
        "schema": 1, "script": "train.py --epochs 3", "baseline": baseline, "trials": list(trials), "chosen": None,
        "diff": None, "by_hand": [], "applied": [], "interrupted": False, "seconds": 61.5, "steps": 1234,
        "curves": CURVES if curves is None else curves,
    }  # fmt: skip
    return found | values


BEST = trial("activation=relu", "initialization=he", metric=0.512, effect=1.833, without=2.345, seconds=36.5)
PRUNED = trial(
    "clipping=norm", metric=2.4, effect=-0.055, interval=None, accepted=False, findings_gone=[], seeds=[0], steps=38,
    findings_new=["dead-units"], seconds=4.25, ending="pruned",
    reason="it was stopped after 38 steps: others did better",
)  # fmt: skip


def cured(**values: Any) -> dict[str, Any]:
    defaults = {
        "chosen": BEST["apply"], "diff": "--- train.py\n+++ train.py\n@@ -1 +1 @@\n-\told < 1\n+\tnew & 2\n",
        "by_hand": ["initialization=he"], "applied": ["1: Sigmoid() -> ReLU()", "3: Sigmoid() -> ReLU()"],
    }  # fmt: skip
    return document(BEST, PRUNED, **(defaults | values))


def words(page: str) -> str:
    """The text of a page, in one line."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", without_data(page), flags=re.S)
    text = re.sub(r"<[^>]*>", " ", text).replace("\N{WORD JOINER}", "")
    return " ".join(text.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&amp;", "&").split())


def traces(found: dict[str, Any]) -> tuple[Any, ...]:
    figure = curves_figure(found)
    assert figure is not None
    return go.Figure(figure).data


def lines(found: dict[str, Any]) -> dict[str, Any]:
    """The traces that the legend of the figure names, by name."""
    return {trace.name: trace for trace in traces(found) if trace.showlegend is not False}


def test_the_page_says_what_helps_by_how_much_and_over_how_many_seeds() -> None:
    page = render_cure(cured())
    header = words(page.partition("</header>")[0])
    assert "What helps: activation=relu with initialization=he, loss 2.345→0.512 in 200 steps, over 3 seeds." in header
    assert "Better by 1.833 than without it, 95 % interval 1.5 to 2.1." in header
    assert "Gone with it: vanishing-gradient." in header
    assert (
        "<code>desat run --apply activation=relu --apply initialization=he train.py --epochs 3</code>"
        in page.partition("</header>")[0]
    )


def test_every_number_of_every_trial_is_on_the_page() -> None:
    text = words(render_cure(cured()))
    assert (
        "activation=relu initialization=he 0.512 2.345 1.833 1.5 to 2.1 accepted gone: vanishing-gradient 3 200 36.5"
        in text
    )
    assert (
        "clipping=norm 2.4 2.3 -0.055 – it was stopped after 38 steps: others did better new: dead-units 1 38 4.25"
        in text
    )
    assert (
        "its loss ends at 2.345 its steps 200 candidates tried 2 accepted 1 steps of all trials 1,234 seconds 61.5"
        in text
    )
    assert "vanishing-gradient where net.3 why too deep" in text


def test_the_diff_is_text_with_its_tabs_and_what_it_does_not_hold_is_told() -> None:
    page = render_cure(cured())
    assert '<span class="removed">-\told &lt; 1</span>\n<span class="added">+\tnew &amp; 2</span>\n</pre>' in page
    assert "The diff holds only part of it. By hand: initialization=he" in words(page)
    assert 'desat.apply(model, optimizer, "initialization=he", batch=inputs)' in words(page)
    assert "1, 3: Sigmoid() -> ReLU()" in words(page)
    by_hand = words(render_cure(cured(diff=None, by_hand=BEST["apply"])))
    assert "No diff can say it. By hand: activation=relu with initialization=he" in by_hand


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (document(PRUNED), "No remedy helped, of 1 candidate."),
        (document(), "No remedy was tried to its end."),
        (document(baseline=document()["baseline"] | {"verdict": "healthy", "findings": []}), "The network is healthy"),
        (cured(interrupted=True), "The search was interrupted: this is what was known by then."),
        (document(curves=[]), "The trials None."),
    ],
    ids=["none helped", "nothing tried", "healthy", "interrupted", "no curves"],
)
def test_what_came_out_is_said(found: dict[str, Any], said: str) -> None:
    page = render_cure(found)
    assert said in words(page)
    assert ("What to write" in page) == (found["chosen"] is not None)


def test_the_figure_has_the_baseline_and_the_trials_and_ends_where_they_ended() -> None:
    drawn = lines(cured())
    assert list(drawn) == ["activation=relu<br>initialization=he", "clipping=norm", "baseline"]
    assert [trace.line.dash for trace in drawn.values()] == ["solid", "dot", "solid"]
    assert [int(trace.x[-1]) for trace in drawn.values()] == [99, 37, 99]
    (mark,) = [trace for trace in traces(cured()) if trace.mode == "markers"]
    assert (mark.x[0], mark.marker.symbol) == (37, "circle-open")
    bands = [trace for trace in traces(cured()) if trace.fill == "toself"]
    assert len(bands) == 2  # of those with several seeds
    assert min(bands[1].y) == pytest.approx(2.3)
    assert max(bands[1].y) == pytest.approx(2.32)
    np.testing.assert_allclose(drawn["baseline"].y, 2.31)


def test_of_many_trials_the_best_are_drawn_each_as_another_line() -> None:
    trials = [trial(f"a={number}", accepted=number < 2) for number in range(20)]
    curves = [curve(f"a={number}", losses=[[1.0, 0.9]]) for number in range(20)]
    drawn = lines(document(*trials, curves=[CURVES[0], *curves]))
    assert list(drawn) == [*(f"a={number}" for number in range(MOST_TRIALS)), "baseline"]
    assert len({(trace.line.color, trace.line.dash) for trace in drawn.values()}) == MOST_TRIALS + 1


def test_a_loss_that_was_lost_breaks_the_line_and_a_trial_without_any_is_not_drawn() -> None:
    trials = [trial("a=b"), trial("c=d", metric=None, without=None, effect=None, interval=None)]
    lost = curve("a=b", losses=[[1.0] * 60 + [None] * 40, [1.0] * 100])
    found = document(*trials, curves=[CURVES[0], lost, curve("c=d", losses=[[None] * 100])])
    drawn = lines(found)
    assert list(drawn) == ["a=b", "baseline"]
    np.testing.assert_array_equal(np.isfinite(drawn["a=b"].y), np.arange(100) < 60)
    page = views_of(render_cure(found))["curves"]
    assert all(len(trace["x"]) for trace in page["data"])


def test_a_seed_that_was_cut_short_does_not_stand_in_the_mean() -> None:
    found = document(trial("a=b"), curves=[CURVES[0], curve("a=b", losses=[[1.0] * 100, [5.0] * 10, []])])
    np.testing.assert_array_equal(lines(found)["a=b"].y, np.ones(100))


def test_where_no_loss_is_finite_there_is_no_figure() -> None:
    found = document(trial("a=b"), curves=[curve(losses=[[None] * 9]), curve("a=b", losses=[[None] * 9])])
    assert curves_figure(found) is None
    assert "The losses" not in render_cure(found)


@pytest.mark.parametrize(
    ("losses", "kind"),
    [([1.0, 1e-3], "log"), ([1.0, 0.5], None), ([1.0, -1e-3], None), ([1e308, -1e308], None), ([0.0, 0.0], None)],
)
def test_the_axis_is_logarithmic_where_losses_lie_far_apart(losses: list[float], kind: str | None) -> None:
    figure = curves_figure(document(curves=[curve(losses=[list(losses)])]))
    assert figure is not None
    axis = figure["layout"]["yaxis"]
    assert axis.get("type") == kind
    assert np.isfinite(axis["range"]).all()
    ends = [10**end for end in axis["range"]] if kind == "log" else axis["range"]
    assert ends[0] < min(losses) <= max(losses) < ends[1]


def test_smoothing_is_the_mean_of_what_is_finite_around_a_point() -> None:
    generator = np.random.default_rng(0)
    losses = generator.normal(size=200)
    losses[generator.integers(0, 200, 40)] = np.nan
    half = int(SMOOTHED_SHARE * 200) // 2
    expected = [
        float(np.nanmean(losses[max(0, place - half) : place + half + 1])) if np.isfinite(losses[place]) else np.nan
        for place in range(200)
    ]
    assert half > 1
    np.testing.assert_allclose(smoothed(losses), expected)
    for short in ([], [1.5], [np.nan], [1.0, 2.0, 4.0]):
        np.testing.assert_array_equal(smoothed(np.array(short)), short)


def test_seeds_lie_on_the_steps_that_any_of_them_has() -> None:
    runs = curve("a=b", losses=[[1.0, 2.0, None], [4.0]], stride=3)["runs"]
    both = curve_of(runs)
    np.testing.assert_array_equal(both.steps, [0, 3, 6])
    np.testing.assert_array_equal(both.losses, [[1, 2, np.nan], [4, np.nan, np.nan]])
    np.testing.assert_array_equal(both.lengths, [3, 1])


def hostile() -> dict[str, Any]:
    """A document in which every text is code."""

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [spoil(one, key) for one in value]
        return HOSTILE + "\ud800" if isinstance(value, str) and key not in ("verdict", "severity", "ending") else value

    return spoil(cured(trials=[BEST, PRUNED | {"accepted": False}]))


def test_hostile_text_is_text() -> None:
    page = render_cure(hostile())
    assert HOSTILE not in page
    tags = [tag for tag, _ in elements(page)]
    assert "img" not in tags
    assert "b" not in tags
    assert tags.count("script") == len([tag for tag, _ in elements(render_cure(cured())) if tag == "script"])
    assert "<b>bold" not in without_data(page)
    assert all("<img" not in trace.get("name", "") for trace in views_of(page)["curves"]["data"])
    assert page.encode("utf-8")


def test_the_page_is_one_file_that_asks_nobody() -> None:
    page = render_cure(cured())
    assert len(page.encode()) < 6_000_000
    for _, attributes in elements(page):
        for name in ("src", "href", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "default-src 'none'" in page


def test_a_page_that_cannot_be_written_is_said_with_the_option_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DesatError, match=r"cannot write the report to .*; choose another place with --report"):
        write_cure(cured(), tmp_path / "file" / "cure.html", "--report")


@needs_chromium
@pytest.mark.parametrize("found", [cured(), hostile()], ids=["sound", "hostile"])
def test_a_browser_draws_the_figure_without_a_complaint(browser: Any, found: dict[str, Any], tmp_path: Path) -> None:
    path = write_cure(found, tmp_path / "cure.html").resolve()
    with visit(browser, path.as_uri()) as seen:
        seen.open()
        assert seen.page.locator(".main-svg").count()
        assert seen.page.title().startswith("cure of ")
        assert seen.complaints == []
