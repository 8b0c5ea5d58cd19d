"""W&B, offline: the file that `wandb sync` uploads, read by its own messages."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from desat.errors import DesatError
from desat.show.export.facts import Facts
from desat.show.export.moments import Moment, Stream
from desat.show.export.wandb_run import WandbSink, _is_logged_in, _mode
from tests.records import write_record
from tests.show.export.runs import STARTED, small_run

HEADER, BLOCK = 7, 32768
"""Bytes of the file's header, and of the blocks of LevelDB's log format that follow it."""


def messages(file: Path) -> Iterator[bytes]:
    """The messages in a log: of each block, pieces behind a checksum, their length and their type."""
    octets, at, whole = file.read_bytes(), HEADER, b""
    while at + 7 <= len(octets):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(octets[at + 4 : at + 6], "little"), octets[at + 6]
        whole += octets[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole message, or the last piece of one
            yield whole
            whole = b""


def read_offline_run(file: Path) -> tuple[list[dict], dict, dict]:
    """History, config and summary."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    history, config, summary = [], {}, {}
    for octets in messages(file):
        message = Message.FromString(octets)
        kind = message.WhichOneof("record_type")
        if kind == "history":
            history.append({one.key or "/".join(one.nested_key): json.loads(one.value_json)
                            for one in message.history.item})  # fmt: skip
        elif kind == "run":
            config |= {one.key: json.loads(one.value_json) for one in message.run.config.update}
        elif kind == "summary":
            summary |= {one.key or "/".join(one.nested_key): json.loads(one.value_json)
                        for one in message.summary.update}  # fmt: skip
    return history, config, summary


@pytest.mark.filterwarnings("ignore")  # of W&B's modules
def test_an_offline_run_has_the_history_of_the_record_and_says_that_it_is_offline(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(), started=STARTED, budget=0.01) as record:
        moments = [moment for _, found in Stream().read(record) for moment in found]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "desat", "export", "run", "--to", "wandb", "--project", "trials"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "offline, since nobody is logged in to W&B" in done.stdout
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert done.stdout.startswith(f"run/wandb/{file.parent.name} (")
    assert done.stderr == ""
    history, config, summary = read_offline_run(file)
    expected: dict[int, dict] = {}
    for moment in moments:
        expected.setdefault(max(moment.step, 0), {}).update(moment.values)
    found = {row["_step"]: {tag: value for tag, value in row.items() if not tag.startswith("_")} for row in history}
    assert expected[0].pop("output_maximum/net.3") == float("inf")
    assert found[0].pop("output_maximum/net.3") in (float("inf"), "Infinity")
    assert found[0] == pytest.approx(expected[0])
    assert found[1] == pytest.approx(expected[1])
    assert found[3]["metric/accuracy"] == 0.7
    assert [row["_timestamp"] for row in history][1] == pytest.approx(moments[2].time)
    assert config["budget"] == 0.01
    assert summary["verdict"] in ("healthy", "warning", "error")
    assert not list(file.parent.glob("files/requirements.txt"))


class Remembering:
    """Stands for a run of W&B and for its parts: keeps what is called with what."""

    def __init__(self) -> None:
        self.dir, self.calls, self.config, self.summary = "wandb/run/files", [], {}, {}

    def log(self, values: dict, step: int) -> None:
        self.calls.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)


class Config(dict):
    def update(self, values: dict, allow_val_change: bool = False) -> None:
        assert allow_val_change
        super().update(values)


def test_what_was_not_known_when_a_live_run_began_is_told_at_its_end() -> None:
    run = Remembering()
    run.config = Config(run="r")
    sink = WandbSink(run, "offline")
    sink.write(Moment(-1, 5.0, {"metric/f1": 0.5}))
    sink.finish(Facts("r", {"script": "train.py", "status": "failed"}, None))
    assert sink.told == "wandb/run (offline; `wandb sync` uploads it)"
    assert run.calls == [(0, {"_timestamp": 5.0, "metric/f1": 0.5}), 1]
    assert run.config == {"run": "r", "script": "train.py"}
    assert run.summary == {"status": "failed"}


class Settings:
    api_key = None
    base_url = "https://api.wandb.ai"


class Wandb:
    Settings = Settings


def test_the_mode_is_the_users_and_offline_where_nobody_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert _mode(Wandb) == ("offline", "offline, since nobody is logged in to W&B")
    (tmp_path / "netrc").write_text("machine elsewhere login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert not _is_logged_in(Settings())
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert _mode(Wandb) == ("online", "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _mode(Wandb) == ("offline", "offline")
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(DesatError, match="nobody is logged in"):
        _mode(Wandb)
    monkeypatch.setenv("WANDB_API_KEY", "made up")
    assert _mode(Wandb) == ("online", "")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(DesatError, match="expected one of online"):
        _mode(Wandb)
