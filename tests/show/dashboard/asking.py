"""What the dashboard answers, without a network; and made-up runs, some of which are made to do harm."""

import asyncio
import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from desat.record.kept_cure import write_kept
from desat.record.rows import Row, Site
from tests.record.test_kept_cure import document
from tests.records import deep_network, write_record

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=document.title='owned'>"

ENDLESS = """
DROP TABLE step;
CREATE VIEW step AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
SELECT i AS step, 0 AS time, 0 AS loss, 0 AS learning_rate, 0 AS watching FROM n;
"""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def asked(app: Any, path: str, query: str = "", method: str = "GET", **headers: str) -> Answer:
    """The answer to one request, whole. headers: their names with _ for -."""
    given = {"host": "127.0.0.1:8124"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
        "server": ("127.0.0.1", 8124), "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    found = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, body.decode())


def hostile(rows: list[Row]) -> list[Row]:
    return [
        row._replace(name=f"{SCRIPT}{row.name}", operation=IMAGE, source=IMAGE) if isinstance(row, Site) else row
        for row in rows
    ]


def make_runs(folder: Path, outside: Path) -> None:
    """Sound runs, sick ones, and broken ones of all kinds."""
    sick = deep_network(layers=8, layer_gain=0.2, loss=lambda step: 2.3)
    nan = deep_network(layers=3, nonfinite_from=50, loss=lambda step: 2.0 if step < 50 else math.nan)

    def run(name: str, rows: list[Row], day: int, **information: Any) -> Path:
        record = write_record(folder / name, rows, started=f"2026-01-{day:02d}T10:00:00+00:00", **information)
        record.close()
        return record.path

    def change(path: Path, script: str) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.executescript(script)
        connection.close()

    run("sound", deep_network(layers=8, operation="ReLU"), 9, script="digits.py")
    run("sick", sick, 8, script="digits.py")
    run("nan", nan, 7, status="failed")
    run("one-step", deep_network(layers=2, steps=[0]), 6)
    run("nothing", [], 5)
    run("only-nan", deep_network(layers=2, loss=lambda step: math.nan, nonfinite_from=0), 4)
    run(IMAGE.replace("/", ""), hostile(sick), 3, script=SCRIPT, status=IMAGE)
    change(run("endless", deep_network(layers=2), 2), ENDLESS)
    change(run("text", deep_network(layers=2), 2), "UPDATE tensor SET rms = 'many'")
    change(run("json", deep_network(layers=2), 2), "UPDATE run SET value = replace(hex(zeroblob(50000)), '00', '[')")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.sqlite").write_bytes(b"no database" * 100)
    (folder / "empty").mkdir()
    (folder / "empty" / "run.sqlite").write_bytes(b"")
    write_record(outside / "secret", deep_network(layers=2), script="secret.py").close()
    (folder / "outside").symlink_to(outside / "secret")
    (folder / "outside-file").mkdir()
    (folder / "outside-file" / "run.sqlite").symlink_to(outside / "secret" / "run.sqlite")
    (folder / "kept").mkdir()
    write_kept(folder / "kept", document() | {"script": SCRIPT})
