"""Tables of the pages that benchmarks write."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its heading."""
    heading, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [heading, f"| {' | '.join(['---'] * len(rows[0]))} |", *body]
