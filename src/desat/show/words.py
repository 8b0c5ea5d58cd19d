"""Words and numbers as people read them, the same in the terminal and in the report."""

import json
import math
import re
import shlex
from collections.abc import Iterable

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


def count(amount: int, noun: str, plural: str | None = None) -> str:
    """How many of what there are: `1 step`, `1,290 steps`."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def health(value: float) -> str:
    """A health with two decimals; only what is 1 or 0 is shown as such."""
    if 0.0 < value < 0.01:
        return "<0.01"
    return f"{value if value == 1.0 else min(value, 0.99):.2f}"


def verdict(diagnosis: Diagnosis) -> str:
    """How the run is, in a word or two; desat.show.summary says it in sentences."""
    return {"error": "Sick", "warning": "Not quite well", "healthy": "Healthy"}[diagnosis.verdict]


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


def script_of(record: Record) -> str | None:
    """The script of a run with its arguments, as they are typed; None where there was none: in a notebook, say."""
    information = record.information
    script, arguments = information.get("script"), information.get("arguments")
    if script is None:
        return None
    words = map(plain, arguments if isinstance(arguments, list) else [])
    return as_typed(plain(script), information.get("is_module") is True, words)


def as_typed(script: str, is_module: bool, arguments: Iterable[str]) -> str:
    """A script and its arguments behind `desat run`, as a shell takes them."""
    return shlex.join([*(["-m"] if is_module else []), script, *arguments])


def command(finding: Finding, script: str | None) -> str | None:
    """What to type to try the remedies of a finding that can be applied; without a script, what to write."""
    remedies = applicable(finding)
    if not remedies:
        return None
    if script is None:
        return f"desat.apply(model, optimizer, {', '.join(map(json.dumps, remedies))})"
    return f"desat run {' '.join(f'--apply {remedy}' for remedy in remedies)} {script}"


_SPELLING = re.compile(r"[a-z]+=[a-z0-9_.:-]+")
"""How remedies are written; what is written otherwise is shown and not proposed to be typed."""

TOGETHER = 2
"""Remedies that are proposed to be tried at once: more of them hide which one helped, and disturb each other."""


def applicable(finding: Finding) -> list[str]:
    """The remedies of a finding that are to be tried together: of each family the first, TOGETHER of these."""
    first: dict[str, str] = {}
    for remedy in finding.remedies:
        if _SPELLING.fullmatch(remedy):
            first.setdefault(remedy.partition("=")[0], remedy)
    return list(first.values())[:TOGETHER]


def advice(finding: Finding) -> str | None:
    """The other remedies, which are to be tried next."""
    tried = applicable(finding)
    return ", ".join(remedy for remedy in finding.remedies if remedy not in tried) or None
