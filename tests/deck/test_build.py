import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from desat.deck import cache
from desat.deck.build import Deck, Outcome, build_deck, build_page
from desat.deck.drawing import INK, inlined, literal, picture
from desat.deck.files import prepare
from desat.deck.page import picture_name, render_deck, write_deck
from desat.deck.slide import MissingNeedError, Page, Reading, Settings, Slide, Statement
from desat.errors import DesatError
from tests.browser import chromium, needs_chromium, visit

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> $x$ `--><b>` {{ 7*7 }}"


class Told:
    """Notes what a builder tells."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []

    def begin(self, slide: Slide) -> None:
        self.lines.append(("begin", slide.number, ""))

    def tell(self, slide: Slide, what: str, share: float) -> None:
        self.lines.append(("tell", slide.number, f"{what} {share:g}"))

    def end(self, outcome: Outcome) -> None:
        self.lines.append(("end", outcome.slide.number, outcome.state))


class Counted:
    """A slide's build that counts how often it was called; `fault` is raised instead of a page."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.calls = 0
        self.fault = fault

    def __call__(self, settings: Settings) -> Page:
        self.calls += 1
        settings.progress("counting", 0.5)
        if self.fault is not None:
            raise self.fault
        return plain_page(settings)


def plain_page(settings: Settings) -> Page:
    def draw(canvas) -> None:
        canvas.add_subplot().plot([0.0, 1.0], [settings.seed, 1.0])

    statement = Statement("A claim.", "It is 1.5.", True, {"number": 1.5})
    return Page(("Some words.",), (picture("line", draw, alt="a line"),), (statement,), (Reading("Somebody 1990"),))


def slide(number: int, build: Callable[[Settings], Page] = plain_page, **fields) -> Slide:
    return Slide(number, f"slide{number}", f"Slide {number}", build, ("dead-units",), ("activation=relu",), **fields)


def counted(number: int, monkeypatch: pytest.MonkeyPatch, fault: BaseException | None = None) -> tuple[Slide, Counted]:
    build = Counted(fault)
    monkeypatch.setattr(build, "__module__", __name__, raising=False)
    return slide(number, build), build


def states(deck: Deck) -> list[str]:
    return [outcome.state for outcome in deck.outcomes]


def test_a_slide_is_made_once_and_then_taken_from_the_cache(tmp_path: Path, monkeypatch) -> None:
    one, build = counted(1, monkeypatch)
    first = build_deck([one], Settings(), tmp_path, Told())
    second = build_deck([one], Settings(), tmp_path, Told())
    assert (states(first), states(second), build.calls) == (["built"], ["cached"], 1)
    assert first.outcomes[0].page == second.outcomes[0].page


def test_force_makes_it_again(tmp_path: Path, monkeypatch) -> None:
    one, build = counted(1, monkeypatch)
    build_deck([one], Settings(), tmp_path, Told())
    assert states(build_deck([one], Settings(), tmp_path, Told(), force=True)) == ["built"]
    assert build.calls == 2


@pytest.mark.parametrize("other", [Settings(fast=True), Settings(seed=1)])
def test_other_settings_make_another_page_and_keep_this_one(tmp_path: Path, monkeypatch, other: Settings) -> None:
    one, build = counted(1, monkeypatch)
    for settings in (Settings(), other, Settings(), other):
        build_deck([one], settings, tmp_path, Told())
    assert build.calls == 2


def test_changed_source_and_changed_versions_make_it_again(tmp_path: Path, monkeypatch) -> None:
    one, build = counted(1, monkeypatch)
    build_deck([one], Settings(), tmp_path, Told())
    monkeypatch.setattr(cache, "source_digest", lambda module: "other source")
    build_deck([one], Settings(), tmp_path, Told())
    monkeypatch.setattr(cache, "_version", lambda library: "99")
    build_deck([one], Settings(), tmp_path, Told())
    assert build.calls == 3
    assert len(list(tmp_path.glob("*.json"))) == 1  # what is out of date has gone


def test_the_source_of_a_slide_is_that_of_all_that_it_imports(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "desat"
    shutil.copytree(cache.SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "SOURCE", source)
    module = "desat.deck.slides.vanishing"
    before = cache.source_digest(module)
    assert cache.source_digest(module) == before
    for file, matters in (
        ("deck/slides/saturation.py", False),
        ("deck/page.py", False),
        ("deck/slides/vanishing.py", True),
        ("deck/training.py", True),
        ("diagnose/rules/vanishing_gradient.py", True),
    ):
        with (source / file).open("a") as text:
            text.write("\n# changed\n")
        after = cache.source_digest(module)
        assert (after != before) == matters, file
        before = after


def test_a_data_folder_counts_for_the_slides_that_use_it(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    settings = Settings(data=data)

    def entries() -> list[Path]:
        return [cache.entry_of(slide(1, uses_data=uses), settings, folder) for uses in (True, False)]

    before = entries()
    (data / "images.npz").write_bytes(b"x")
    assert [old == new for old, new in zip(before, entries(), strict=True)] == [False, True]


def test_an_entry_that_cannot_be_read_is_made_again(tmp_path: Path, monkeypatch) -> None:
    one, build = counted(1, monkeypatch)
    for broken in ("", "[]", '{"words": []}', "\x00"):
        build_deck([one], Settings(), tmp_path, Told())
        (entry,) = tmp_path.glob("*.json")
        entry.write_text(broken)
    build_deck([one], Settings(), tmp_path, Told())
    assert build.calls == 5


def test_missing_needs_and_faults_leave_the_other_slides_alone(tmp_path: Path, monkeypatch) -> None:
    missing, _ = counted(1, monkeypatch, MissingNeedError("needs keras: pip install keras"))
    failed, _ = counted(2, monkeypatch, ValueError("two\nlines"))
    told = Told()
    deck = build_deck([missing, failed, slide(3)], Settings(), tmp_path, told)
    assert states(deck) == ["missing", "failed", "built"]
    assert [outcome.reason for outcome in deck.outcomes] == [
        "needs keras: pip install keras",
        "ValueError: two lines",
        "",
    ]
    assert ("tell", 1, "counting 0.5") in told.lines
    assert told.lines[-1] == ("end", 3, "built")
    page = render_deck(deck)
    assert "needs keras: pip install keras" in page
    assert 'id="slide3-title"' in page


def test_one_slide_alone_keeps_those_that_are_there(tmp_path: Path, monkeypatch) -> None:
    slides = [slide(1), slide(2), slide(3)]
    assert states(build_deck(slides, Settings(), tmp_path, Told(), wanted=[2])) == ["left out", "built", "left out"]
    assert states(build_deck(slides, Settings(), tmp_path, Told(), wanted=[3])) == ["left out", "cached", "built"]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch) -> None:
    stopped, _ = counted(2, monkeypatch, KeyboardInterrupt())
    late, build = counted(3, monkeypatch)
    deck = build_deck([slide(1), stopped, late], Settings(), tmp_path, Told())
    assert deck.interrupted
    assert states(deck) == ["built", "left out", "left out"]
    assert {outcome.reason for outcome in deck.outcomes[1:]} == {"interrupted"}
    assert build.calls == 0
    assert states(build_deck([slide(1)], Settings(), tmp_path, Told())) == ["cached"]


def test_building_is_seeded_and_leaves_random_numbers_and_threads_as_they_were() -> None:
    drawn: list[list[float]] = []

    def build(settings: Settings) -> Page:
        assert torch.get_num_threads() == 1
        drawn.append([torch.rand(1).item(), float(np.random.rand()), random.random()])
        torch.set_num_threads(2)
        return Page(("words",))

    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    for seed in (0, 0, 1):
        build_page(slide(1, build), Settings(seed=seed))
    assert torch.rand(1).item() == expected
    assert torch.get_num_threads() == threads
    assert drawn[0] == drawn[1]
    assert all(first != other for first, other in zip(drawn[0], drawn[2], strict=True))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DesatError, match="holds something else"):
        prepare(tmp_path, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    prepare(tmp_path, overwrite=True)
    prepare(tmp_path, overwrite=False)  # it is ours from then on
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "deck").write_text("")
    for overwrite in (False, True):
        with pytest.raises(DesatError, match="is not a folder"):
            prepare(tmp_path / "deck", overwrite=overwrite)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile(settings: Settings) -> Page:
    def draw(canvas) -> None:
        axes = canvas.add_subplot()
        axes.text(0.0, 0.0, literal(HOSTILE)).set_in_layout(False)

    figure = picture("line", draw, alt=HOSTILE, caption=HOSTILE)
    return Page((HOSTILE,), (figure,), (Statement(HOSTILE, HOSTILE, False, {HOSTILE: 1.0}),), (Reading(HOSTILE),))


def made(tmp_path: Path, *builds: Callable[[Settings], Page]) -> Deck:
    slides = [slide(number, build) for number, build in enumerate(builds, 1)]
    return build_deck(slides, Settings(), tmp_path, Told())


def test_hostile_text_is_text(tmp_path: Path) -> None:
    deck = made(tmp_path, hostile)
    assert states(deck) == ["built"]
    deck = replace(deck, outcomes=tuple(replace(o, slide=replace(o.slide, title=HOSTILE)) for o in deck.outcomes))
    text = render_deck(deck)
    tags = Elements(text).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [tag for tag, _ in tags if tag in ("img", "b")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in text
    assert "$x$" in text.split("<svg", 1)[1].split("</svg>", 1)[0]
    assert "It does not hold in this build." in text


def test_the_page_asks_nobody(tmp_path: Path) -> None:
    text = render_deck(made(tmp_path, plain_page, hostile))
    for tag, attributes in Elements(text).tags:
        for name in ("src", "href", "action", "xlink:href", "poster"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")) or (tag == "a" and value.endswith(".png")), (tag, value)
    assert "default-src 'none'; script-src 'sha256-" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_script_is_the_one_that_the_policy_lets_run(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = render_deck(made(tmp_path, plain_page))
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_identifiers_are_unique_and_references_lead_somewhere(tmp_path: Path) -> None:
    text = render_deck(made(tmp_path, plain_page, plain_page))
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert references
    assert {one or other for one, other in references} <= set(identifiers)


def test_a_picture_takes_the_page_s_colours_and_the_png_its_own() -> None:
    figure = plain_page(Settings()).figures[0]
    svg = inlined(figure, "here")
    assert "currentColor" in svg
    assert "var(--blue)" in svg
    assert INK not in svg
    assert "<style" not in svg
    assert "<text" in svg  # fonts as text, not as paths
    assert figure.png.startswith(b"\x89PNG")


def test_a_picture_is_the_same_each_time_and_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert plain_page(Settings()).figures == plain_page(Settings()).figures
    assert dict(matplotlib.rcParams) == before


def test_the_folder_has_the_page_and_a_png_of_each_picture(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "deck", overwrite=False)
    deck = made(folder, plain_page, plain_page)
    page = write_deck(deck, tmp_path / "deck")
    names = sorted(path.name for path in page.parent.iterdir())
    assert names == [".cache", "01-slide1-line.png", "02-slide2-line.png", "index.html"]
    outcome = deck.outcomes[0]
    assert outcome.page is not None
    name = picture_name(outcome.slide, outcome.page.figures[0])
    assert f'href="{name}"' in page.read_text(encoding="utf-8")


def test_a_reading_s_address_is_a_web_page() -> None:
    with pytest.raises(ValueError, match="https"):
        Reading("Somebody", "javascript:alert(1)")


@needs_chromium
def test_arrow_keys_go_from_slide_to_slide_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(render_deck(made(tmp_path, hostile, plain_page)), encoding="utf-8")
    with chromium() as browser, visit(browser, page.as_uri()) as seen:
        seen.page.goto(page.as_uri())
        places = []
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Home"):
            seen.page.keyboard.press(key)
            places.append(seen.page.evaluate("location.hash || 'top'"))
        assert places == ["#slide1", "#slide2", "#slide2", "#slide1", "top"]
        assert seen.page.title().startswith("Addressing Saturation")
        assert seen.complaints == []
