"""What the name of a metric says: whether more of it is better, and on which data it was measured.

A name that does not say that more is better is not taken: desat would not know which of two trials is the better one.
"""

import re
from collections.abc import Iterable

ACCURACY = frozenset({"acc", "accuracy"})

MORE_IS_BETTER = ACCURACY | {
    "auc", "auroc", "auprc", "bleu", "dice", "f", "iou", "jaccard", "map", "miou", "precision", "r", "recall", "rouge",
    "score",
}  # fmt: skip
"""Words of the names of metrics of which more is better, without the number after them: `f1`, `r2`, `acc5`."""

_NEED_A_NUMBER = frozenset({"f", "r"})

HELD_OUT = frozenset(
    {"dev", "eval", "evaluation", "heldout", "holdout", "test", "testing", "val", "valid", "validation"}
)
"""Words for data that was not trained on."""

TRAINING = frozenset({"fit", "train", "training", "trn"})

SPOILS = frozenset(
    {
        "brier", "cer", "deviation", "distance", "drop", "err", "error", "fid", "gap", "grad", "gradient", "loss",
        "mae", "mse", "perplexity", "rmse", "seconds", "std", "step", "steps", "time", "var", "variance", "wer",
    }
)  # fmt: skip
"""Words beside which the others mean something else: a Brier score, the loss of accuracy, steps of accumulation."""

_WORD = re.compile(r"([a-z]+)(\d*)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z0-9])")


def most_telling(names: Iterable[str]) -> str | None:
    """Of the names of metrics the one to judge by; None if none says that more is better, or only of the training.

    What is measured on held-out data comes first, then an accuracy before its relatives, then what is named first.
    """
    known = [(name, words) for name in names if _is_better_with_more(words := words_of(name))]
    ranked = sorted(known, key=lambda one: (HELD_OUT.isdisjoint(one[1]), ACCURACY.isdisjoint(one[1])))
    return ranked[0][0] if ranked else None


def words_of(name: str) -> frozenset[str]:
    """`valAcc@5`, `val/acc5`, `val_acc_5`: val, acc; a letter that needs its number keeps it out, too: `f1` is f."""
    found = _WORD.findall(_CAMEL.sub(" ", name).lower())
    return frozenset(word for word, number in found if number or word not in _NEED_A_NUMBER)


def _is_better_with_more(words: frozenset[str]) -> bool:
    return not words.isdisjoint(MORE_IS_BETTER) and words.isdisjoint(TRAINING | SPOILS)
