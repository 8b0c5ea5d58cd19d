import re
from pathlib import Path

import pytest

from desat.cure.metric import Logged, Source, check_logged, metric_series, parse_source, settle_source
from desat.cure.metric_names import most_telling
from desat.errors import DesatError
from desat.record.rows import Metric
from tests.records import write_record


def series(text: str, directory: Path, asked: Source | None = None) -> tuple[float, ...]:
    """What a trial that prints this reported, were it the first one."""
    output = directory / "output.txt"
    output.write_text(text)
    return metric_series(directory, output, settle_source(directory, output, asked))


def log(directory: Path, *names: str, values: tuple[float, ...] = (0.5,)) -> None:
    rows = [Metric(name, step, value, float(step)) for step, value in enumerate(values) for name in names]
    write_record(directory, rows).close()


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
    assert series(text, tmp_path, parse_source(r"bleu = (\w+)|never")) == (21.0, 22.0)
    assert series(text, tmp_path, parse_source(r"bleu = ([0-9.]+)")) == (21.5, 22.0)


def test_an_output_that_is_not_there_has_no_metric(tmp_path: Path) -> None:
    assert settle_source(tmp_path, tmp_path / "missing", None) is None
    assert metric_series(tmp_path, tmp_path / "missing", parse_source("(.)")) == ()
    assert metric_series(tmp_path, tmp_path / "missing", Logged("accuracy")) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "no regular expression"),
        ("", "0 groups"),
        ("score: [0-9.]+", "0 groups"),
        ("a|b", "0 groups"),
        ("(a)(b)", "2 groups"),
    ],
)
def test_what_is_neither_a_pattern_of_a_number_nor_a_name_is_refused(text: str, message: str) -> None:
    with pytest.raises(DesatError, match=message):
        parse_source(text)


@pytest.mark.parametrize("name", ["f1", "val/acc@5", "mean score", "top-1", "bleu.4"])
def test_a_text_without_a_group_is_the_name_of_a_logged_metric(name: str) -> None:
    assert parse_source(name) == Logged(name)


def test_what_is_logged_wins_over_what_is_printed(tmp_path: Path) -> None:
    log(tmp_path, "accuracy", values=(0.1, float("nan"), 0.2))
    assert series("validation accuracy: 0.93", tmp_path) == (0.1, 0.2)


@pytest.mark.parametrize("name", ["loss", "train_accuracy", "epoch", "brier_score"])
def test_what_is_logged_and_says_nothing_leaves_what_is_printed(name: str, tmp_path: Path) -> None:
    log(tmp_path, name)
    assert series("validation accuracy: 0.93", tmp_path) == (0.93,)


def test_the_users_choice_wins_over_the_usual_one(tmp_path: Path) -> None:
    log(tmp_path, "accuracy", "perplexity", values=(0.5, 0.25))
    assert series("bleu = 22", tmp_path, parse_source("bleu = ([0-9]+)")) == (22.0,)
    assert series("perplexity: 9", tmp_path, parse_source("perplexity")) == (0.5, 0.25)


def test_all_trials_are_read_as_the_first_one(tmp_path: Path) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    log(first, "accuracy", "val_accuracy")
    log(later, "accuracy")
    output = tmp_path / "output.txt"
    output.write_text("accuracy: 0.9")
    source = settle_source(first, output, None)
    assert source == Logged("val_accuracy")
    assert metric_series(later, output, source) == ()
    (tmp_path / "held-out.txt").write_text("val accuracy: 0.8")
    printed = settle_source(tmp_path, tmp_path / "held-out.txt", None)
    assert isinstance(printed, re.Pattern)
    assert metric_series(first, output, printed) == ()


def test_a_name_that_is_not_logged_is_said_with_those_that_are(tmp_path: Path) -> None:
    log(tmp_path / "some", "loss", "f1")
    log(tmp_path / "none")
    with pytest.raises(DesatError, match=r"'score': .* it logs 'f1', 'loss'; for one that it prints give a pattern"):
        check_logged(tmp_path / "some", Logged("score"))
    with pytest.raises(DesatError, match="it logs none"):
        check_logged(tmp_path / "none", Logged("score"))
    check_logged(tmp_path / "some", Logged("f1"))
    check_logged(tmp_path / "none", parse_source("score: (.)"))
    check_logged(tmp_path / "none", None)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["loss", "accuracy"], "accuracy"),
        (["accuracy", "val_acc"], "val_acc"),
        (["f1", "accuracy"], "accuracy"),
        (["val_f1", "accuracy"], "val_f1"),
        (["val_f1", "test_accuracy"], "test_accuracy"),
        (["validation_accuracy", "test_accuracy"], "validation_accuracy"),
        (["train_accuracy", "r2"], "r2"),
        (["trainAcc", "valAcc"], "valAcc"),
        (["eval/top5_acc"], "eval/top5_acc"),
        (["acc@5"], "acc@5"),
        (["acc1"], "acc1"),
        (["val/mAP50"], "val/mAP50"),
        (["ROC-AUC"], "ROC-AUC"),
        (["dev.macro_F1"], "dev.macro_F1"),
        (["mean IoU"], "mean IoU"),
        (["training/accuracy", "train_f1"], None),
        (["val_loss", "perplexity", "error", "lr", "epoch", "f", "r", "mean_reward"], None),
        (["accuracy_loss", "accuracy_std", "brier_score", "fid_score", "grad_acc_steps"], None),
        (["accelerate", "mapping", "recallable", "interval"], None),
        ([], None),
    ],
)
def test_the_most_telling_name_is_of_what_is_better_with_more_and_not_of_the_training(
    names: list[str], chosen: str | None
) -> None:
    assert most_telling(names) == chosen
