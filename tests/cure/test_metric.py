import re
from pathlib import Path

import pytest

from desat.cure.metric import compile_pattern, metric_series
from desat.errors import DesatError


def series(text: str, directory: Path, pattern: re.Pattern[str] | None = None) -> tuple[float, ...]:
    output = directory / "output.txt"
    output.write_text(text)
    return metric_series(directory, output, pattern)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("validation accuracy: 0.93", (0.93,)),
        ("epoch 1 loss 0.3 val_acc=0.9\nepoch 2 loss 0.2 val_acc=0.95", (0.9, 0.95)),
        ("Test Accuracy 93.1%", (0.931,)),
        ("test accuracy: 93.1 %", (0.931,)),
        ("accuracy: 0.9", (0.9,)),
        ("{'val/acc': 0.5}", (0.5,)),
        ('{"eval_accuracy": 0.25}', (0.25,)),
        ("val acc is .75", (0.75,)),
        ("train acc 0.99 val acc 0.80", (0.8,)),
        ("accuracy 0.99, validation accuracy 0.7", (0.7,)),
        ("train accuracy: 0.99", ()),
        ("train_acc=0.99", ()),
        ("accurate to 3 digits", ()),
        ("val accuracy: nan", ()),
        ("training loss 2.3", ()),
        ("", ()),
    ],
)
def test_accuracies_are_found_as_people_print_them(text: str, expected: tuple[float, ...], tmp_path: Path) -> None:
    assert series(text, tmp_path) == pytest.approx(expected)


def test_the_users_pattern_finds_what_it_says(tmp_path: Path) -> None:
    text = "accuracy 0.9\nbleu = 21.5%\nbleu = x\nnever\nbleu = 22"
    assert series(text, tmp_path, compile_pattern(r"bleu = (\w+)|never")) == (21.0, 22.0)
    assert series(text, tmp_path, compile_pattern(r"bleu = ([0-9.]+)")) == (21.5, 22.0)


def test_an_output_that_is_not_there_has_no_metric(tmp_path: Path) -> None:
    assert metric_series(tmp_path, tmp_path / "missing") == ()


@pytest.mark.parametrize(
    ("text", "message"), [("(", "no regular expression"), ("a", "0 groups"), ("(a)(b)", "2 groups")]
)
def test_a_pattern_that_finds_no_number_is_refused(text: str, message: str) -> None:
    with pytest.raises(DesatError, match=message):
        compile_pattern(text)
