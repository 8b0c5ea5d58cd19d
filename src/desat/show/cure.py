"""The search for a cure in the terminal: its progress, what helps and what to write, and a table of the trials."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from desat.show.terminal import STYLES
from desat.show.words import SYMBOLS, count, number, plain

ACCEPTED = 10
"""Remedies that are listed, of those that were accepted; of more the best."""

REJECTED = 5
"""The same, of the others."""

CHANGES = 8
"""Kinds of changes of the chosen remedy that are listed."""

SITES = 4
"""Places that are named of one kind of change."""

LINE_SECONDS = 5.0
"""Seconds between two lines of progress where there is no terminal to draw a bar in."""

_IN_SHORT = {
    "it changes nothing": "changes nothing",
    "good on one seed, but not among the best, and so not confirmed": "not confirmed",
    "the loss diverged with it": "diverged",
    "no better without it": "no difference",
    "it was not tried to its end": "not finished",
}
"""By reason, up to its colon, what the table says of it; those that are short enough are not in here."""

_ENDED = {"pruned": "fell behind", "timed out": "out of time", "failed": "failed", "no steps": "trains nothing"}
"""By the ending of a trial that counts for nothing, the same."""


class SearchProgress:
    """Shows how far a search is: a bar, or plain lines where the console is no terminal; nothing if not `wanted`."""

    def __init__(self, console: Console, *, wanted: bool = True) -> None:
        self._console = console
        self._wanted = wanted
        self._told: tuple[str, float] = ("", 0.0)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        drawn = wanted and console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True) if drawn else None
        self._task = self._bar.add_task("starting", total=None) if self._bar is not None else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, done: int, planned: int, running: Sequence[Sequence[str]]) -> None:
        """phase: what is being done. running: the remedies of each trial that runs."""
        what = f"{phase}: {names(running)}" if phase != "baseline" else "baseline: the script as it is"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=plain(what), completed=done, total=planned)
        elif self._wanted and running:
            told, at = self._told
            if phase != told or time.monotonic() - at >= LINE_SECONDS:
                self._console.print(Text(f"desat: {done} of {planned} trials done; {plain(what)}"), soft_wrap=True)
                self._told = (phase, time.monotonic())


def names(running: Sequence[Sequence[str]]) -> str:
    return ", ".join(" + ".join(remedies) or "baseline" for remedies in running)


def print_cure(document: dict[str, Any], script: str, console: Console) -> None:
    """The baseline in short, what helps, how it is written, and the table.

    document: as `desat cure --json` prints it.
    """
    _print_baseline(document["baseline"], console)
    console.print()
    _print_choice(document, script, console)
    if document["chosen"] is not None:
        _print_code(document, console)
    if document["trials"]:
        console.print()
        _print_trials(document, console)


def _print_code(document: dict[str, Any], console: Console) -> None:
    """The code to write: the diff, what it does not hold, and what the remedies did in the network."""
    diff, by_hand = document["diff"], document["by_hand"]
    if diff:
        console.print()
        console.print(Text("What to write:", style="bold"))
        for line in diff.splitlines():
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            console.print(Text(plain(line), style=style), soft_wrap=True)
    if by_hand:
        console.print()
        _print_by_hand(by_hand, console, is_rest=bool(diff))
    if document["applied"]:
        console.print()
        console.print(Text("What was changed in the network:"))
        kinds = kinds_of_changes(document["applied"])
        for change in kinds[:CHANGES]:
            console.print(Text(f"  {plain(change)}"), soft_wrap=True)
        if len(kinds) > CHANGES:
            console.print(Text(f"  and {len(kinds) - CHANGES} more"))


def _print_by_hand(remedies: Sequence[str], console: Console, *, is_rest: bool) -> None:
    named = plain(" with ".join(remedies))
    what = f"The diff holds only part of it. By hand: {named}" if is_rest else f"No diff can say it. By hand: {named}"
    console.print(Text(what, style="bold"))
    console.print(Text("Before the first step, where `inputs` is a batch that the model is called with:"))
    arguments = ", ".join(f'"{plain(remedy)}"' for remedy in remedies)
    console.print(Text("    import desat"))
    console.print(Text(f"    desat.apply(model, optimizer, {arguments}, batch=inputs)"), soft_wrap=True)


def kinds_of_changes(applied: Sequence[str]) -> list[str]:
    """Changes, with the sites of equal ones in one line."""
    sites: dict[str, list[str]] = defaultdict(list)
    for change in applied:
        site, _, what = change.partition(": ")
        sites[what].append(site)
    return [f"{_several(places)}: {what}" if what else _several(places) for what, places in sites.items()]


def _several(places: Sequence[str]) -> str:
    more = len(places) - SITES
    return ", ".join(places[:SITES]) + (f" and {more} more" if more > 0 else "")


def _print_baseline(baseline: dict[str, Any], console: Console) -> None:
    verdict = baseline["verdict"]
    what = "the metric is" if baseline["measure"] == "metric" else "the loss ends at"
    value = number(baseline["metric"])
    head = Text("Baseline ", style="bold")
    head.append({"error": "sick", "warning": "not quite well", "healthy": "healthy"}[verdict], style=STYLES[verdict])
    console.print(head.append(f", {count(baseline['steps'], 'step')}; {what} {value}"))
    findings = Table.grid(padding=(0, 1), pad_edge=True)
    for finding in baseline["findings"]:
        if finding["severity"] != "note":
            line = Text(finding["code"], style="bold").append(f"  {plain(finding['cause'])}", style="not bold")
            findings.add_row(Text(f" {SYMBOLS[finding['severity']]}", style=STYLES[finding["severity"]]), line)
    if findings.row_count:
        console.print(findings)


def _print_trials(document: dict[str, Any], console: Console) -> None:
    """Those that were accepted, and the best of the others."""
    trials = document["trials"]
    accepted = [trial for trial in trials if trial["accepted"]]
    rejected = [trial for trial in trials if not trial["accepted"]]
    console.print(_table([*accepted[:ACCEPTED], *rejected[:REJECTED]], trials))
    unseen = [(len(accepted) - ACCEPTED, "accepted"), (len(rejected) - REJECTED, "not accepted")]
    more = [f"{amount} {what}" for amount, what in unseen if amount > 0]
    if more:
        console.print(Text(f"and {' and '.join(more)}; --json lists all, with the reasons"))


def _table(shown: Sequence[dict[str, Any]], trials: Sequence[dict[str, Any]]) -> Table:
    measure = next((trial["measure"] for trial in trials if trial["measure"]), "loss")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tried", no_wrap=True)
    table.add_column(measure, justify="right", no_wrap=True)
    table.add_column("better by", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for trial in shown:
        table.add_row(
            Text("\n".join(map(plain, trial["apply"]))), number(trial["metric"]), number(trial["effect"]),
            interval(trial), _verdict(trial),
        )  # fmt: skip
    return table


def interval(trial: dict[str, Any]) -> str:
    if trial["interval"] is None:
        return "–"
    low, high = trial["interval"]
    return f"{low:.2g} to {high:.2g}"


def _verdict(trial: dict[str, Any]) -> Text:
    if trial["accepted"]:
        return Text("accepted", style=STYLES["healthy"])
    return Text(plain(_in_short(trial)), style="dim")


def _in_short(trial: dict[str, Any]) -> str:
    """Why a remedy was not accepted, in two words or three."""
    reason = trial["reason"] or "not accepted"
    if trial["findings_new"] and reason.startswith("a new error"):
        codes = trial["findings_new"]
        return f"new: {codes[0]}" + (f" and {len(codes) - 1} more" if len(codes) > 1 else "")
    first = reason.partition(":")[0]
    if first in _IN_SHORT:
        return _IN_SHORT[first]
    return _ENDED.get(trial["ending"], first) if reason.startswith("it ") else first


def _print_choice(document: dict[str, Any], script: str, console: Console) -> None:
    chosen = document["chosen"]
    if chosen is not None:
        best = next(trial for trial in document["trials"] if trial["apply"] == chosen)
        line = Text("What helps: ", style="bold").append(plain(" with ".join(chosen)), style=STYLES["healthy"])
        console.print(line.append(f", {gain(best, document['baseline'])}", style="not bold default"))
        if best["findings_gone"]:
            console.print(Text(f"Gone with it: {plain(', '.join(best['findings_gone']))}"))
        options = " ".join(f"--apply {remedy}" for remedy in chosen)
        console.print(Text(plain(f"Try it: desat run {options} {script}")), soft_wrap=True)
    elif document["trials"]:
        console.print(Text(f"No remedy helped, of {count(len(document['trials']), 'candidate')}."))
    elif document["baseline"]["verdict"] == "healthy":
        console.print(Text("The network is healthy: nothing needs a cure. With --force, some are tried."))
    else:
        console.print(Text("No remedy was tried to its end."))


def gain(trial: dict[str, Any], baseline: dict[str, Any]) -> str:
    """What a remedy brought, in a phrase, over how many seeds that were run with it and without."""
    without, value = trial["without"], trial["metric"]
    course = f"{trial['measure']} {number(without)} -> {number(value)}"
    if trial["effect"] is None and "mismatched-loss" in trial["findings_gone"]:
        course = f"the loss was a wrong one; as it is now it falls to {number(value)}"
    elif without is None:
        course = f"the loss no longer diverges and ends at {number(value)}"
    elif trial["measure"] == "loss" and math.isclose(without, value or 0.0):
        course = "the loss no longer diverges"
    seeds = len(set(trial["seeds"]) & set(baseline["seeds"]))
    return f"{course} in {count(trial['steps'], 'step')}, over {count(seeds, 'seed')}"
