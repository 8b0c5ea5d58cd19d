"""Candidates: which remedies are to be tried, and in which order."""

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations as choose

from desat.cure.remedy import Remedy, parse
from desat.diagnose.finding import SEVERITIES, Diagnosis
from desat.errors import DesatError

Candidate = tuple[str, ...]
"""Remedies that are tried together, each of another family."""

GENERAL = (
    "normalization=batch",
    "initialization=he",
    "optimizer=adam",
    "optimizer=rate:0.1",
    "initialization=torch",
    "activation=relu",
    "optimizer=defaults",
    "optimizer=rate:10",
    "clipping=1.0",
    "residual=skip",
    "input=standardize",
    "normalization=layer",
    "optimizer=missing",
)
"""What helps most networks that do not learn, the most frequent cures first; tried after what the findings name."""

LARGEST_COMBINATION = 3


def named_candidates(diagnosis: Diagnosis) -> list[Candidate]:
    """Remedies of the findings, one by one and those of a finding together.

    Errors come before warnings; notes count for nothing. Remedies that do not exist are left out.
    """
    grave = SEVERITIES[:2]
    findings = sorted((f for f in diagnosis.findings if f.severity in grave), key=lambda f: grave.index(f.severity))
    named = [existing(finding.remedies) for finding in findings]
    singles = [(remedy,) for remedies in named for remedy in remedies]
    together = [candidate for remedies in named if len(candidate := one_of_each_family(remedies)) > 1]
    return without_doubles([*singles, *together])


def general_candidates(named: Collection[Candidate]) -> list[Candidate]:
    """What helps most networks, as far as no finding names it."""
    return [candidate for remedy in existing(GENERAL) if (candidate := (remedy,)) not in named]


def combinations(ranked: Sequence[Candidate], tried: Iterable[Candidate] = ()) -> list[Candidate]:
    """Two and three of the best candidates, of different families; those of better ones first.

    ranked: from the best on. tried: candidates that are not to come again.
    """
    known = {frozenset(candidate) for candidate in tried}
    found: list[tuple[int, Candidate]] = []
    for size in range(2, LARGEST_COMBINATION + 1):
        for chosen in choose(range(len(ranked)), size):
            together = tuple(dict.fromkeys(remedy for place in chosen for remedy in ranked[place]))
            if len({family_of(remedy) for remedy in together}) == len(together) <= LARGEST_COMBINATION:
                found.append((sum(chosen) + size, together))
    ordered = [candidate for _, candidate in sorted(found, key=lambda one: one[0])]
    return [candidate for candidate in without_doubles(ordered) if frozenset(candidate) not in known]


def existing(texts: Iterable[str]) -> list[str]:
    """Those that can be applied, in the spelling of `desat run --apply`."""
    return [str(remedy) for text in texts if (remedy := _parsed(text)) is not None]


def one_of_each_family(remedies: Iterable[str]) -> Candidate:
    """The first of each family, at most LARGEST_COMBINATION of them."""
    first: dict[str, str] = {}
    for remedy in remedies:
        first.setdefault(family_of(remedy), remedy)
    return tuple(first.values())[:LARGEST_COMBINATION]


def without_doubles(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each set of remedies once, at its first place."""
    seen: dict[frozenset[str], Candidate] = {}
    for candidate in candidates:
        seen.setdefault(frozenset(candidate), candidate)
    return list(seen.values())


def family_of(remedy: str) -> str:
    return remedy.partition("=")[0]


def _parsed(text: str) -> Remedy | None:
    try:
        return parse(text)
    except DesatError:
        return None
