"""CSV: a file for each table of a run, without the histograms.

Numbers have all their digits, what is missing is an empty cell. Text is made safe for spreadsheets: what they would
take for a formula has an apostrophe before it, and control characters are replaced.
"""

import csv
import io
from collections.abc import Iterator

from desat.record.reader import Record
from desat.record.tables import Column, Table
from desat.show.export.exporter import Order, Tell
from desat.show.export.facts import facts_of
from desat.show.export.files import prepare, write_file
from desat.show.export.moments import Progress
from desat.show.export.tables import NAMES, all_tables
from desat.show.words import plain

FORMULA = ("=", "+", "-", "@")
"""How text begins that a spreadsheet would compute (OWASP, CSV Injection); tabs and returns are replaced anyway."""


def export_csv(record: Record, order: Order, tell: Tell) -> str:
    """Raises DesatError where a file is there already, or cannot be written."""
    prepare(order, [f"{name}.csv" for name in NAMES])
    for done, (name, table) in enumerate(all_tables(record, facts_of(record)), start=1):
        write_file(order.place / f"{name}.csv", csv_text(table).encode())
        tell(Progress(done, len(NAMES)))
    return str(order.place)


def csv_text(table: Table) -> str:
    """RFC 4180, but that lines end with a line feed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*map(_cells, table.values()), strict=True))
    return file.getvalue()


def _cells(column: Column) -> Iterator[object]:
    if column.kind == "text":
        return (None if value is None else _safe(value) for value in column.objects().tolist())
    return iter(column.objects().tolist())


def _safe(value: object) -> str:
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text
