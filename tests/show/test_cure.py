import io
from typing import Any

import pytest
from rich.console import Console

from desat.show.cure import SearchProgress, print_cure

HOSTILE = "\x1b[2J[red]x"


def trial(*apply: str, **values: Any) -> dict[str, Any]:
    defaults = {
        "apply": list(apply), "metric": 0.5, "effect": 1.8, "interval": [1.5, 2.1], "accepted": True, "measure": "loss",
        "without": 2.3, "reason": None, "findings_gone": ["vanishing-gradient"], "findings_new": [], "seeds": [0, 1, 2],
        "steps": 200, "seconds": 12.0, "ending": "stopped",
    }  # fmt: skip
    return defaults | values


def document(
    *trials: dict[str, Any], chosen: list[str] | None = None, verdict: str = "error", **values: Any
) -> dict[str, Any]:
    finding = {"code": "vanishing-gradient", "severity": "error", "site": "1", "cause": "too deep"}
    note = finding | {"code": "dead-units", "severity": "note"}
    baseline = {"verdict": verdict, "findings": [finding, note], "metric": 2.3, "measure": "loss", "steps": 200,
                "seeds": [0, 1, 2]}  # fmt: skip
    found = {"baseline": baseline, "trials": list(trials), "chosen": chosen, "diff": None, "by_hand": [], "applied": []}
    return found | values


def printed(found: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_cure(found, "train.py", console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_ranks_and_the_best_is_named_with_what_to_type() -> None:
    both = trial("activation=relu", "initialization=he")
    rejected = trial("clipping=1.0", effect=None, metric=None, interval=None, accepted=False, reason="worse with it")
    text = printed(document(both, rejected, chosen=both["apply"]))
    assert "Baseline sick, 200 steps; the loss ends at 2.3" in text
    assert "vanishing-gradient  too deep" in text
    assert "dead-units" not in text
    assert "1.5 to 2.1" in text
    assert text.index("What helps") < text.index("tried ") < text.index("clipping=1.0") < text.index("worse with it")
    assert "Gone with it: vanishing-gradient" in text
    assert "What helps: activation=relu with initialization=he, loss 2.3 -> 0.5 in 200 steps, over 3 seeds" in text
    assert "desat run --apply activation=relu --apply initialization=he train.py" in text


def test_a_remedy_is_never_broken_at_80_columns() -> None:
    text = printed(document(trial("normalization=batch", "initialization=orthogonal")), width=80)
    assert "normalization=batch" in text
    assert "initialization=orthogonal" in text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (document(trial("a=b", accepted=False, reason="worse with it")), "No remedy helped, of 1 candidate."),
        (document(verdict="healthy"), "The network is healthy"),
        (document(), "No remedy was tried to its end."),
    ],
)
def test_that_nothing_helped_is_said(found: dict[str, Any], words: str) -> None:
    assert words in printed(found)


def test_a_divergence_that_ended_is_told() -> None:
    best = trial("clipping=1.0", without=None, effect=None, interval=None)
    assert "the loss no longer diverges and ends at 0.5" in printed(document(best, chosen=best["apply"]))


def test_a_loss_that_was_a_wrong_one_is_not_compared() -> None:
    best = trial("loss=logits", effect=None, interval=None, findings_gone=["mismatched-loss"])
    text = printed(document(best, chosen=best["apply"]))
    assert "the loss was a wrong one; as it is now it falls to 0.5 in 200 steps" in text
    assert "2.3 -> 0.5" not in text


def test_a_long_table_is_cut_and_what_was_accepted_stays() -> None:
    accepted = [trial(f"a={number}") for number in range(12)]
    rejected = [trial(f"b={number}", accepted=False, reason="worse with it") for number in range(9)]
    text = printed(document(*accepted, *rejected))
    assert [name for name in ("a=0", "a=9", "a=10", "b=0", "b=4", "b=5") if name in text] == [
        "a=0",
        "a=9",
        "b=0",
        "b=4",
    ]
    assert "and 2 accepted and 4 not accepted; --json lists all, with the reasons" in text
    assert "--json" not in printed(document(*rejected[:3]))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"reason": "it was stopped after 38 steps: others did better", "ending": "pruned"}, "fell behind"),
        ({"reason": "it was stopped after 18 s, after 50 steps", "ending": "timed out"}, "out of time"),
        ({"reason": "it ended with exit code 1 after 3 steps: Boom", "ending": "failed"}, "failed"),
        ({"reason": "it changes nothing: no weights", "ending": "pruned"}, "changes nothing"),
        ({"reason": "too small: less than 2% of the loss without it"}, "too small"),
        ({"reason": "a new error: one", "findings_new": ["exploding-gradient"]}, "new: exploding-gradient"),
    ],
)
def test_the_table_says_in_short_why_a_remedy_was_not_accepted(values: dict[str, Any], verdict: str) -> None:
    text = printed(document(trial("a=b", accepted=False, **values)))
    assert any(line.startswith("a=b") and line.rstrip().endswith(f"  {verdict}") for line in text.splitlines()), text


def test_a_row_takes_one_line_at_80_columns() -> None:
    one = trial("initialization=orthogonal", accepted=False, metric=0.00123, effect=-0.00123,
                interval=[-0.00123, -0.00012], reason="too small: less than 2% of the loss without it")  # fmt: skip
    lines = printed(document(one), width=80).splitlines()
    assert len(lines) - lines.index(next(line for line in lines if line.startswith("tried"))) == 2


def test_the_code_is_shown_as_a_diff_and_what_was_changed_with_equal_ones_together() -> None:
    applied = [f"{number}: Sigmoid() -> ReLU()" for number in range(1, 13, 2)] + ["12: Tanh() -> ReLU()"]
    best = trial("activation=relu")
    diff = "--- a.py\n+++ a.py\n-old\n+new"
    text = printed(document(best, chosen=best["apply"], diff=diff, applied=applied), width=80)
    assert "-old\n+new\n" in text
    assert "  1, 3, 5, 7 and 2 more: Sigmoid() -> ReLU()\n  12: Tanh() -> ReLU()\n" in text
    assert "By hand" not in text
    assert text.index("+new") < text.index("tried ")
    many = printed(document(best, chosen=best["apply"], applied=[f"{number}: a -> {number}" for number in range(10)]))
    assert "  and 2 more\n" in many


def test_what_the_diff_does_not_hold_is_told_with_what_to_paste() -> None:
    best = trial("activation=relu", "initialization=he")
    part = printed(document(best, chosen=best["apply"], diff="-old\n+new", by_hand=["initialization=he"]), width=80)
    assert "The diff holds only part of it. By hand: initialization=he\n" in part
    assert '    desat.apply(model, optimizer, "initialization=he", batch=inputs)\n' in part
    whole = printed(document(best, chosen=best["apply"], by_hand=best["apply"]), width=80)
    assert "No diff can say it. By hand: activation=relu with initialization=he\n" in whole
    assert '    desat.apply(model, optimizer, "activation=relu", "initialization=he", batch=inputs)\n' in whole


def test_text_of_a_script_cannot_command_a_terminal() -> None:
    best = trial(HOSTILE, reason=HOSTILE)
    rejected = trial("a=b", accepted=False, reason=HOSTILE)
    found = document(best, rejected, chosen=[HOSTILE], diff=HOSTILE, by_hand=[HOSTILE], applied=[HOSTILE])
    console = Console(file=io.StringIO(), width=80)
    print_cure(found, HOSTILE, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "\x1b" not in text
    assert "[red]x" in text


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with SearchProgress(console) as progress:
        progress.update("baseline", 0, 1, [()])
        progress.update("general remedies", 1, 4, [("a=b",), ("c=d", "e=f")])
        progress.update("general remedies", 2, 4, [("a=b",)])
        progress.update("confirmation", 4, 9, [()])
    assert console.file.getvalue().splitlines() == [  # pyright: ignore[reportAttributeAccessIssue]
        "desat: 0 of 1 trials done; baseline: the script as it is",
        "desat: 1 of 4 trials done; general remedies: a=b, c=d + e=f",
        "desat: 4 of 9 trials done; confirmation: baseline",
    ]


def test_progress_draws_a_bar_in_a_terminal_and_nothing_if_it_is_not_wanted() -> None:
    for wanted in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=True, legacy_windows=False)
        with SearchProgress(console, wanted=wanted) as progress:
            progress.update("general remedies", 1, 4, [("a=b",)])
        assert ("a=b" in console.file.getvalue()) is wanted  # pyright: ignore[reportAttributeAccessIssue]
