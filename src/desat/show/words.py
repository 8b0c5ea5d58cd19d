"""Words and numbers as people read them, the same in the terminal and in the report."""

import math

from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.record.reader import Record

SYMBOLS: dict[Severity, str] = {"error": "✖", "warning": "▲", "note": "●"}
"""Severity is never told by colour alone."""


def plain(text: object) -> str:
    """Text of a record without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def number(value: float | None) -> str:
    """Four significant digits; a dash for what was not measured."""
    if value is None or math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4g}"


def decibels(value: float) -> str:
    return f"{value:+.1f} dB"


def verdict(diagnosis: Diagnosis) -> str:
    """The verdict as one sentence."""
    grave = [finding for finding in diagnosis.findings if finding.severity == diagnosis.verdict]
    if not grave:
        return "Healthy: no finding asks for a change."
    names = ", ".join(finding.code for finding in grave)
    return {
        "error": f"Sick: this network has stopped learning, or is about to ({names}).",
        "warning": f"Learning, but look at this ({names}).",
    }[diagnosis.verdict]


def operations(record: Record) -> dict[str, str]:
    """What each site does, by its name."""
    return {site.name: site.operation for site in record.sites()}


def places(finding: Finding, operations: dict[str, str], shown: int = 1) -> str:
    """Where a finding is: the worst place, and how many more there are."""
    if finding.site is None:
        return "the whole run"
    others = [site for site in finding.sites if site != finding.site]
    named = [finding.site, *others[: shown - 1]]
    more = len(others) - (len(named) - 1)
    return ", ".join(place(name, operations) for name in named) + (f" and {more} more" if more else "")


def place(name: str, operations: dict[str, str]) -> str:
    """A site's name with what it does, unless the name says so: `net.3 (Sigmoid)`."""
    operation = operations.get(name, "")
    return plain(name if not operation or operation in name else f"{name} ({operation})")


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The numbers of a finding that say something, with their names in words."""
    return [(plain(name).replace("_", " "), number(value)) for name, value in finding.evidence.items() if value]


def since(finding: Finding) -> str:
    if finding.first_step == finding.last_step:
        return f"at step {finding.first_step}"
    return f"from step {finding.first_step} to step {finding.last_step}"


def command(finding: Finding, script: str) -> str | None:
    """What to type to try the remedies of a finding that can be applied."""
    if not finding.remedies:
        return None
    options = " ".join(f"--apply {remedy}" for remedy in finding.remedies if remedy.split("=")[0] in APPLICABLE)
    return f"desat run {options} {plain(script)}" if options else None


APPLICABLE = ("activation", "initialization")
"""Families that `desat run --apply` knows; a remedy of another family is named as advice."""


def advice(finding: Finding) -> str | None:
    """The remedies that the user has to write, because no `--apply` exists for them."""
    others = [remedy for remedy in finding.remedies if remedy.split("=")[0] not in APPLICABLE]
    return ", ".join(others) or None
