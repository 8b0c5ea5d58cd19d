"""Settings of a diagnosis: the user's own limits, and findings that are silenced."""

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from desat.diagnose.finding import Finding
from desat.errors import DesatError


@dataclass(frozen=True)
class Settings:
    """limits: the user's values by the key of the threshold. silenced: `code` or `code@site`, with `*` for any text."""

    limits: Mapping[str, float] = field(default_factory=dict)
    silenced: tuple[str, ...] = ()

    def joined(self, other: "Settings") -> "Settings":
        """Both; where they differ, the other's limits hold."""
        return Settings({**self.limits, **other.limits}, (*self.silenced, *other.silenced))

    def silences(self, finding: Finding) -> bool:
        """Whether the user does not want to hear of a finding."""
        for pattern in self.silenced:
            code, _, site = pattern.partition("@")
            if fnmatch.fnmatchcase(finding.code, code) and (not site or fnmatch.fnmatchcase(finding.site or "", site)):
                return True
        return False


def read_settings(directory: Path, known: Iterable[str]) -> Settings:
    """The table [tool.desat] of the nearest pyproject.toml at or above `directory`; nothing where there is none.

    `silence` is a list of strings, `limits` a table of numbers by the keys in `known`. Raises DesatError where the file
    says something else.
    """
    for folder in (directory.resolve(), *directory.resolve().parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("desat", {})
            except (OSError, ValueError) as error:
                raise DesatError(f"{path} cannot be read: {error}") from error
            return _checked(table, set(known), f"[tool.desat] in {path}")
    return Settings()


def parse_settings(limits: Sequence[str], silenced: Sequence[str], known: Iterable[str]) -> Settings:
    """Settings from `key=number` and `code[@site]`, as the command line takes them. Raises DesatError for others."""
    values = {}
    for text in limits:
        key, equals, number = text.partition("=")
        try:
            values[key] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise DesatError(f"no limit {text!r}: expected KEY=NUMBER, such as saturated-share=0.4")
    return _checked({"limits": values, "silence": list(silenced)}, set(known), "the options")


def _checked(table: Mapping[str, object], known: set[str], place: str) -> Settings:
    limits, silenced = table.get("limits", {}), table.get("silence", [])
    if unknown := set(table) - {"limits", "silence"}:
        raise DesatError(f"{place}: no setting {sorted(unknown)[0]!r}; there are limits and silence")
    if not isinstance(silenced, list) or not all(isinstance(pattern, str) for pattern in silenced):
        raise DesatError(f"{place}: silence is a list of texts such as 'dead-units@net.3'")
    if not isinstance(limits, dict):
        raise DesatError(f"{place}: limits is a table of numbers")
    for key, value in limits.items():
        if key not in known:
            raise DesatError(f"{place}: no limit {key!r}; `desat explain` names those there are")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DesatError(f"{place}: the limit {key} is a number; it was {value!r}")
    return Settings({str(key): float(value) for key, value in limits.items()}, tuple(map(str, silenced)))
