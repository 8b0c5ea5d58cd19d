"""The summary of a run for people in a hurry: does it learn, what is wrong first, and what to do first."""

import re
from collections.abc import Sequence

from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.learning import FALLING, FEW_LOSSES, Learning, judge_learning
from desat.diagnose.rule import Rule
from desat.diagnose.rules import RULES
from desat.record.reader import Record
from desat.show.words import advice, applicable, command, count, number, operations, place, plain, script_of

RULE_OF: dict[str, Rule] = {rule.code: rule for rule in RULES}

PARTS_OF_A_RUN = {"input": "the input", "optimizer": "the optimizer", "loss": "the loss", "curvature": "the loss"}
"""How the sites are called that are no layers, by their kind."""


def summarize(record: Record, diagnosis: Diagnosis) -> tuple[str, str, str]:
    """Three sentences: whether the network learns, the first thing that is wrong, and what to do first.

    record: what `diagnosis` was made from, judged here by the thresholds in force. What is to be typed stands between
    backticks. Text of the record is without control characters, but not escaped for HTML.
    """
    learning = judge_learning(record)
    problems = [finding for finding in diagnosis.findings if finding.severity != "note"]
    return (
        _whether_it_learns(learning, diagnosis.steps),
        _what_is_wrong(record, problems) if problems else _nothing_is_wrong(len(diagnosis.findings)),
        _how_to_mend(record, problems[0]) if problems else _how_to_go_on(learning),
    )


def _whether_it_learns(learning: Learning, steps: int) -> str:
    loss, time = f"its loss {_course(learning)}", f"in {count(steps, 'step')}"
    flat = f"and has been flat since step {learning.flat_since or 0:,}"
    match learning.state:
        case "learning":
            told = f"The network learns: {loss} {time}"
        case "settled":
            told = f"The network has learned and may be done: {loss} {flat}"
        case "slow":
            told = f"The network learns, but slowly: {loss} {time}"
        case "stalled" if learning.fall >= FALLING.value:
            told = f"The network has stopped learning: {loss} {flat}"
        case "stalled":
            told = f"The network does not learn: {loss} {time}"
        case "guessing":
            told = f"The network does no better than guessing: {loss} {time}"
            told += f", where guessing costs {number(learning.guessing)}"
        case "diverging":
            told = f"The network gets worse instead of better: {loss} {time}"
        case "non-finite":
            told = _no_number_any_more(learning)
        case _:
            told = _cannot_be_told(learning, f"{loss} {time}")
    if learning.front_frozen and learning.state in ("settled", "slow", "unknown"):
        told += ", and its first layer hardly changes beside its last"
    return f"{told}."


def _course(learning: Learning) -> str:
    """The way of the loss, `fell from 2.3 to 0.1`; what a flat loss does by chance is no rise and no fall."""
    start, end = number(learning.start), number(learning.end)
    if start == end:
        return f"stayed at {start}"
    verb = "went"
    if learning.state in ("learning", "settled", "slow") and learning.end < learning.start:
        verb = "fell"
    if learning.state == "diverging" and learning.end > learning.start:
        verb = "rose"
    return f"{verb} from {start} to {end}"


def _no_number_any_more(learning: Learning) -> str:
    step = f"nan or infinite at step {learning.nonfinite_since or 0:,}"
    if _has_course(learning):
        return f"The network no longer learns: its loss {_course(learning)}, then became {step}"
    return f"The network does not learn: its loss became {step}"


def _cannot_be_told(learning: Learning, course: str) -> str:
    if not learning.losses:
        return "Whether the network learns cannot be told: no loss was recorded"
    known = course if _has_course(learning) else f"only {count(learning.losses, 'loss was', 'losses were')} recorded"
    return f"It is too early to tell whether the network learns: {known}"


def _has_course(learning: Learning) -> bool:
    return learning.start == learning.start and learning.end == learning.end


def _what_is_wrong(record: Record, problems: Sequence[Finding]) -> str:
    first = problems[0]
    head = f"The first of {len(problems)} problems" if len(problems) > 1 else "The only problem"
    where = f"{_where(record, first)}, since step {first.first_step:,}"
    return f"{head} {where}: {_what(first)}; why: {plain(first.cause)}."


def _nothing_is_wrong(notes: int) -> str:
    if not notes:
        return "Nothing wrong was found in what was measured."
    return f"Nothing wrong was found; {count(notes, 'small thing was', 'small things were')} noted, and can wait."


def _where(record: Record, finding: Finding) -> str:
    if finding.site is None:
        return "concerns the whole run"
    site = next((site for site in record.sites() if site.name == finding.site), None)
    if site is not None and site.kind in PARTS_OF_A_RUN:
        return f"is at {PARTS_OF_A_RUN[site.kind]}"
    is_path = site is None or not site.source or not site.name.startswith(site.source)
    kind = "" if not is_path else "parameter " if site is not None and site.kind == "parameter" else "layer "
    more = sum(other != finding.site for other in finding.sites)
    return f"is at {kind}{place(finding.site, operations(record))}{f' and {more:,} more' if more else ''}"


def _what(finding: Finding) -> str:
    """What a rule says of itself before it goes into detail; the words of the code where it says nothing."""
    rule = RULE_OF.get(finding.code)
    meaning = rule.meaning if rule is not None else finding.code.replace("-", " ")
    return _within(re.split("[:;]", meaning)[0])


def _how_to_mend(record: Record, finding: Finding) -> str:
    script = script_of(record)
    changes = "change" if len(applicable(finding)) == 1 else "changes"
    if typed := command(finding, script):
        if script is None:
            return f"Try the {changes} first by `{typed}` on a new model, before its training."
        return f"Run `{typed}` first; it tries the {changes} and leaves the script as it is."
    if advised := advice(finding):
        choice = "one of these" if "," in advised else "this"
        return f"First change the script by {choice}: {plain(advised)}."
    rule = RULE_OF.get(finding.code)
    return f"What helps: {_within(rule.helps)}." if rule is not None else "First look at the place that is named here."


def _how_to_go_on(learning: Learning) -> str:
    if learning.harm:
        return "Nothing that was measured explains it: look at the learning rate, the labels and the loss first."
    if learning.state == "unknown" and 0 < learning.losses < FEW_LOSSES.value:
        return f"Nothing needs to be done yet: train for {FEW_LOSSES.value:.0f} steps or more, and ask again."
    return "Nothing needs to be done."


def _within(sentence: str) -> str:
    """A sentence as it stands within another one."""
    return sentence[:1].lower() + sentence[1:].rstrip(". ")
