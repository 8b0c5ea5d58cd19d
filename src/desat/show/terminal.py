"""Findings and comparisons in the terminal, through rich; right in a pipe and at 80 columns, too."""

import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.diagnose.health import health
from desat.diagnose.link_budget import SHARES, Link, LinkBudget
from desat.record.reader import Record
from desat.record.run import Listed
from desat.show import words
from desat.show.comparison import comparison_facts
from desat.show.layers import Layer, measure_layers, sickest
from desat.show.summary import summarize
from desat.show.words import SYMBOLS, advice, command, decibels, number, places, plain, since, verdict

STYLES: dict[Severity | str, str] = {
    "error": "bold red",
    "warning": "bold yellow",
    "note": "cyan",
    "healthy": "bold green",
}

LINKS_SHOWN = 12
"""Links of the budget that are listed; of a longer one the largest, in order, and the sum of the rest."""

LAYERS_SHOWN = 8
"""Layers below full health that are listed; of more the sickest, in order of execution."""

BAR_WIDTH = 24

STATUS_STYLES = {"running": "green", "failed": "red", "killed": "red", "interrupted": "yellow"}

LEAST_SCRIPT = 12
"""Columns of a script's name in a list of runs, of which the end is shown."""

SPACES = 8
"""Columns between the five columns of that list."""

UNFOLDED = 100_000
"""Columns of what is no terminal: lines that another program reads are not folded."""


def print_diagnosis(record: Record, diagnosis: Diagnosis, link_budget: LinkBudget | None, console: Console) -> None:
    """The summary and the health; each finding with what is known of it; sick layers; the gradient's link budget."""
    script = words.script_of(record)
    operations = words.operations(record)
    console.print()
    head = Text(verdict(diagnosis), style=STYLES[diagnosis.verdict])
    console.print(head.append(f" · health {words.health(health(diagnosis))} of 1", style="not bold"))
    console.print(Text("\n".join(summarize(record, diagnosis))))
    console.print(
        Text(
            f"run {plain(diagnosis.run)}: {diagnosis.steps} steps, {diagnosis.sampled_steps} sampled, "
            f"watching added {diagnosis.overhead:.1%}",
            style="dim",
        )
    )
    for finding in diagnosis.findings:
        console.print()
        console.print(_card(finding, script, operations))
    sick = [layer for layer in measure_layers(record, diagnosis) if layer.health < 1.0]
    if sick:
        console.print()
        console.print(_layers(sickest(sick, LAYERS_SHOWN), max(len(sick) - LAYERS_SHOWN, 0), operations))
    if link_budget is not None and link_budget.links:
        console.print()
        console.print(_budget(link_budget, operations))


def print_comparison(records: Sequence[Record], diagnoses: Sequence[Diagnosis], console: Console) -> None:
    """Runs side by side, one column each."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column("")
    for record in records:
        table.add_column(Text(plain(record.name)), justify="right", overflow="fold")
    rows = [comparison_facts(record, diagnosis) for record, diagnosis in zip(records, diagnoses, strict=True)]
    for fact in dict.fromkeys(name for row in rows for name in row):
        table.add_row(Text(plain(fact)), *(Text(row.get(fact, "–")) for row in rows))
    console.print()
    console.print(table)


def print_runs(runs: Sequence[Listed], console: Console) -> None:
    """The runs of a folder, a line each."""
    if not runs:
        console.print("no runs")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("run", "script", "status", "steps", "loss")
    for heading in headings:
        is_number = heading in headings[3:]
        table.add_column(heading, overflow="fold", justify="right" if is_number else "left")
    told = [run for run in runs if run.problem is None]
    rows = [(plain(run.name), plain(run.script), plain(run.status), f"{run.steps:,}", _loss(run)) for run in told]
    # A script's folders are what a narrow terminal has no room for: names are typed, numbers are compared.
    taken = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = max(console.width - sum(taken) + taken[1] - SPACES, LEAST_SCRIPT)
    for name, script, status, *numbers in rows:
        table.add_row(
            Text(name), Text(_end_of(script, room)), Text(status, style=STATUS_STYLES.get(status, "")), *numbers
        )
    console.print(table)
    for run in runs:
        if run.problem is not None:
            console.print(Text(f"{plain(run.name)}: ").append(plain(run.problem), style=STYLES["error"]))


def standard_output() -> Console:
    """Standard output for tables: as wide as the terminal; in a pipe as wide as they need, a line for each row."""
    return Console(width=None if sys.stdout.isatty() else UNFOLDED)


def _loss(run: Listed) -> str:
    return "–" if run.loss is None else number(run.loss)


def _end_of(text: str, room: int) -> str:
    return text if len(text) <= room else f"…{text[len(text) - room + 1 :]}"


def _card(finding: Finding, script: str | None, operations: dict[str, str]) -> RenderableType:
    head = Text()
    head.append(f"{SYMBOLS[finding.severity]} {finding.severity} ", style=STYLES[finding.severity])
    head.append(finding.code, style="bold")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("where", Text(places(finding, operations, shown=3)))
    if finding.source:
        facts.add_row("source", Text(plain(finding.source)))
    facts.add_row("since", Text(since(finding)))
    facts.add_row("why", Text(plain(finding.cause)))
    facts.add_row("how sure", Text(f"{finding.confidence:.0%}"))
    if finding.severity != "note":
        _add_what_to_do(facts, finding, script)
    return Group(head, Padding(Group(Text(plain(finding.message)), facts), (0, 0, 0, 2)))


def _add_what_to_do(facts: Table, finding: Finding, script: str | None) -> None:
    if evidence := words.evidence(finding):
        facts.add_row("evidence", Text(", ".join(f"{name} {value}" for name, value in evidence)))
    if typed := command(finding, script):
        facts.add_row("try", Text(typed, style="bold"))
    if advised := advice(finding):
        facts.add_row("or", Text(advised))


def _layers(listed: Sequence[Layer], more: int, operations: dict[str, str]) -> RenderableType:
    title = Text()
    title.append("Health ", style="bold")
    title.append("of the layers that a finding touches, from 0 to 1")
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=40)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for layer in listed:
        table.add_row(Text(words.place(layer.name, operations)), words.health(layer.health), _health_bar(layer))
    rest = [Text(f"  and {words.count(more, 'layer')} more, none of them sicker", style="dim")] if more else []
    return Group(title, Padding(table, (0, 0, 0, 2)), *rest)


def _health_bar(layer: Layer) -> Text:
    filled = round(BAR_WIDTH * layer.health)
    bar = Text("█" * filled, style=STYLES[layer.severity or "healthy"])
    return bar.append("·" * (BAR_WIDTH - filled), style="dim")


def _budget(budget: LinkBudget, operations: dict[str, str]) -> RenderableType:
    title = Text()
    title.append("Link budget ", style="bold")
    title.append(
        "of the gradient, from the loss back to the first layer "
        f"({words.place(budget.first_site, operations)}), at step {budget.step}"
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=40)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    rows = listed_links(budget)
    largest = max((abs(gain) for _, _, gain in rows), default=0.0) or 1.0
    for site, share, gain in rows:
        table.add_row(Text(words.place(site, operations)), share, decibels(gain), _bar(gain, largest))
    table.add_row(Text("total", style="bold"), "", Text(decibels(budget.total_db), style="bold"), "")
    shares = ", ".join(
        f"{share} {decibels(budget.by_share[share])} ({budget.fractions[share]:.0%})"
        for share in SHARES
        if budget.by_share[share]
    )
    return Group(title, Padding(table, (0, 0, 0, 2)), Text(f"  by cause: {shares}"))


def listed_links(budget: LinkBudget) -> list[tuple[str, str, float]]:
    """Site, share and gain of the links to be listed; the small ones of a long budget are summed up in one row."""
    if len(budget.links) <= LINKS_SHOWN:
        return [(link.site, link.share, link.gain_db) for link in budget.links]
    largest = sorted(budget.links, key=lambda link: -abs(link.gain_db))[: LINKS_SHOWN - 1]
    kept: list[Link] = [link for link in budget.links if link in largest][: LINKS_SHOWN - 1]
    rest = budget.total_db - sum(link.gain_db for link in kept)
    rows = [(link.site, str(link.share), link.gain_db) for link in kept]
    return [*rows, (f"{len(budget.links) - len(kept)} smaller ones", "", rest)]


def _bar(gain: float, largest: float) -> Text:
    length = round(BAR_WIDTH * abs(gain) / largest)
    return Text("█" * length if gain < 0 else "░" * length, style="red" if gain < 0 else "green")
