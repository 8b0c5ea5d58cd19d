"""Findings, and the document of them, schema 1; `desat diagnose --json` prints it with what desat.show.machine adds."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the gravest to the lightest."""

SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One diagnosed problem.

    site: the worst place; sites: all of them, in order of execution. source: the user's `file:line` of the worst place.
    first_step, last_step: the sampled steps between which it was seen. cause: one phrase, why it is so.
    message: one or two sentences for a beginner, with the number that matters and what it should be.
    remedies: what fits, as `family=value` for `desat run --apply`. confidence: 0 to 1.
    """

    code: str
    severity: Severity
    site: str | None
    sites: tuple[str, ...]
    source: str | None
    first_step: int
    last_step: int
    cause: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()
    confidence: float = 1.0


@dataclass(frozen=True)
class Diagnosis:
    """What a record says. overhead: the share of the wall time spent on watching."""

    run: str
    steps: int
    sampled_steps: int
    overhead: float
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """`error` or `warning` if there is such a finding, else `healthy`."""
        present = {finding.severity for finding in self.findings}
        return next((severity for severity in ("error", "warning") if severity in present), "healthy")

    def codes(self, *severities: Severity) -> tuple[str, ...]:
        """The codes of the findings of these severities, of all without any, each once and in their order."""
        wanted = severities or SEVERITIES
        return tuple(dict.fromkeys(finding.code for finding in self.findings if finding.severity in wanted))

    def reaches(self, severity: Severity) -> bool:
        """Whether a finding is as grave as `severity` or graver."""
        limit = SEVERITIES.index(severity)
        return any(SEVERITIES.index(finding.severity) <= limit for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The public document; numbers that JSON has no word for (nan, infinity) become null."""
        return _without_nonfinite(
            {
                "schema": SCHEMA,
                "run": self.run,
                "verdict": self.verdict,
                "steps": self.steps,
                "sampled_steps": self.sampled_steps,
                "overhead": self.overhead,
                "findings": [asdict(finding) for finding in self.findings],
            }
        )


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
