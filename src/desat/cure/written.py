"""What of a remedy's changes the user's source can say, and which remedies are left to be made by hand."""

import os
from collections.abc import Sequence
from pathlib import Path

from desat.cure.edit import Edit, compatible
from desat.cure.family import Change

WHOLE_OR_NOT = frozenset({"optimizer", "clipping"})
"""Families of which no part is written: the rest is made by applying the remedy, and a rate would change twice."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of packages that are installed, which are not the user's to edit."""


def written(changes: Sequence[Change]) -> tuple[list[Edit], list[str]]:
    """The edits that are to be made, and the remedies that they hold only in part or not at all.

    Of edits that overlap one alone can be made; the remedy of the other is among those by hand.
    """
    done = [change for change in changes if change.refused is None]
    local = {edit for change in done for edit in change.edits if not _is_installed(edit.span.file)}
    made = set(compatible(local))
    by_hand = [one.remedy for one in done if not one.edits or not made.issuperset(one.edits)]
    left = {remedy for remedy in by_hand if remedy.partition("=")[0] in WHOLE_OR_NOT}
    edits = [edit for change in done if change.remedy not in left for edit in change.edits if edit in made]
    return list(dict.fromkeys(edits)), list(dict.fromkeys(by_hand))


def _is_installed(file: str) -> bool:
    return not _INSTALLED.isdisjoint(Path(os.path.realpath(file)).parts)
