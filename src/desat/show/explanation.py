"""What the finding codes mean: for the terminal, and as the page docs/findings.md, from the rules' own texts."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from desat.diagnose.rule import Rule
from desat.diagnose.threshold import Threshold

PARTS = (("What it means", "meaning"), ("How it is measured", "measured"), ("What helps", "helps"))


def explanation(rule: Rule) -> RenderableType:
    """One code: what it means, how it is measured, what helps, and its thresholds with their sources."""
    parts: list[RenderableType] = [Text(rule.code, style="bold")]
    for title, name in PARTS:
        parts += [Text(f"\n{title}", style="dim"), Padding(Text(getattr(rule, name)), (0, 2))]
    parts += [Text("\nThresholds", style="dim"), Padding(threshold_table(rule.thresholds), (0, 2))]
    return Group(*parts)


def threshold_table(thresholds: Sequence[Threshold]) -> Table:
    """Key, value in force, unit, meaning and source."""
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for threshold in thresholds:
        told = Text(f"{threshold.unit}: {threshold.meaning}").append(f" [{threshold.source}]", style="dim")
        table.add_row(threshold.key, f"{threshold.value:g}", told)
    return table


def summary_table(rules: Sequence[Rule]) -> Table:
    """All codes with their meaning."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=1)
    for rule in rules:
        table.add_row(rule.code, rule.meaning)
    return table


def findings_page(rules: Sequence[Rule], common: Sequence[Threshold]) -> str:
    """docs/findings.md: every code, in the order of what to fix first, and the thresholds that all of them share."""
    lines = [
        "# Findings",
        "",
        "Written by `desat explain --markdown`; do not edit. In the order of what to fix first. A threshold is changed "
        "by its key, in `[tool.desat.limits]` of pyproject.toml or with `--limit KEY=NUMBER`; a finding is silenced by "
        '`silence = ["code@site"]` in `[tool.desat]` or with `--silence`.',
    ]
    for rule in rules:
        lines += ["", f"## {rule.code}", ""]
        for title, name in PARTS:
            lines += [f"**{title}.** {getattr(rule, name)}", ""]
        lines += _markdown_table(rule.thresholds)
    lines += ["", "## Harm", "", "A symptom is an error only together with harm. Harm is judged by these:", ""]
    return "\n".join([*lines, *_markdown_table(common)]) + "\n"


def _markdown_table(thresholds: Sequence[Threshold]) -> list[str]:
    rows = [
        f"| `{threshold.key}` | {threshold.default:g} | {threshold.unit} | {threshold.meaning} | {threshold.source} |"
        for threshold in thresholds
    ]
    return ["| threshold | default | unit | meaning | source |", "| --- | --- | --- | --- | --- |", *rows]
