"""Findings and facts as Markdown, for tools that show text; the record's own text is shown as it is, never obeyed."""

from desat.show.export.facts import Fact, Facts
from desat.show.words import plain, since


def facts_text(facts: dict[str, Fact]) -> str:
    """A table."""
    rows = [f"| {_literal(name)} | {_literal(value)} |" for name, value in facts.items()]
    return "\n".join(["| what | value |", "| --- | --- |", *rows])


def findings_text(facts: Facts) -> str:
    """A table of the findings, the first to fix first."""
    if facts.diagnosis is None:
        return "Nothing was measured."
    if not facts.diagnosis.findings:
        return "No findings."
    rows = [
        "| {} | {} | {} | {} | {} |".format(
            finding.severity, finding.code, _literal(finding.site or "the whole run"), since(finding),
            _literal(f"{finding.message} {finding.cause}"),
        )
        for finding in facts.diagnosis.findings
    ]  # fmt: skip
    return "\n".join(["| severity | finding | where | when | why |", "| --- | --- | --- | --- | --- |", *rows])


_SPECIAL = str.maketrans({character: f"&#{ord(character)};" for character in "\\`*_{}[]()#+!|<>&~$"})
"""What Markdown and HTML would read as something else than itself."""


def _literal(value: object) -> str:
    return plain(value).translate(_SPECIAL)
