"""The laboratory: what its sliders do to a measurement, and its page in a process of its own."""

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest

from desat.deck.build import build_page
from desat.deck.laboratory import KNOBS, STEPS, Wish, experiment, wish_from
from desat.deck.slide import Page, Settings
from desat.errors import DesatError

FAST = Settings(fast=True)


def measured(wish: Wish) -> Page:
    return build_page(experiment(wish), FAST)


def test_deep_sigmoids_do_not_learn_and_rectifiers_do() -> None:
    sick = measured(Wish("sigmoid", depth=10.0))
    sound = measured(Wish("leaky ReLU", depth=3.0))
    assert not sick.statements[0].holds
    assert sick.statements[0].values["accuracy"] < 0.3
    assert sound.statements[0].values["accuracy"] > 0.8
    assert len(sound.figures) == 3
    assert str(STEPS) in sound.statements[0].sentence


def test_the_input_scale_saturates() -> None:
    def first_layer(page: Page) -> float:
        return float(page.figures[2].alt.partition(": ")[2].split("%")[0])

    assert first_layer(measured(Wish("tanh", depth=2.0, input_scale=2.0))) > 80
    assert first_layer(measured(Wish("tanh", depth=2.0, input_scale=-1.0))) < 20


def test_a_wish_has_a_place_for_each_knob() -> None:
    assert {knob.name for knob in KNOBS} | {"activation"} == {field.name for field in fields(Wish)}


def test_a_query_says_what_is_asked_for() -> None:
    assert wish_from({}) == Wish()
    assert wish_from({"depth": "3", "activation": "ELU"}) == replace(Wish(), depth=3.0, activation="ELU")
    assert {knob.name: knob.value(knob.start) for knob in KNOBS}["learning_rate"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"depth": "deep"}, "expected a number"),
        ({"depth": "1000"}, "expected 1 to 16"),
        ({"depth": "nan"}, "expected 1 to 16"),
        ({"activation": "<script>"}, "expected one of"),
    ],
)
def test_what_cannot_be_set_is_refused(query: dict[str, str], message: str) -> None:
    with pytest.raises(DesatError, match=message):
        wish_from(query)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "desat", "deck", "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), process.stderr.read()
        yield line
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_the_page_has_the_sliders_and_the_measurement(address: str) -> None:
    with urllib.request.urlopen(f"{address}?activation=tanh&depth=2") as answer:
        page = answer.read().decode()
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert page.count('type="range"') == len(KNOBS)
    assert "<option selected>tanh</option>" in page
    assert page.count("<svg") == 3


def test_wrong_queries_and_foreign_pages_are_refused(address: str) -> None:
    for query, headers, status in (
        ("measure?depth=1000", {}, 400),
        ("measure", {"Host": "evil.example"}, 403),
        ("../../etc/passwd", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(address + query, headers=headers))
        assert error.value.code == status
        error.value.close()
