"""Weights & Biases: a run with its history, its settings as config, and the verdict in its summary.

It never asks: where nobody is logged in, the run stays on this machine, and `wandb sync` uploads it. Of the machine
that exports nothing is told.
"""

import netrc
import os
from typing import Any
from urllib.parse import urlparse

from desat.errors import DesatError
from desat.show.export.exporter import Order
from desat.show.export.facts import Facts
from desat.show.export.moments import Moment
from desat.show.words import plain

MODES = ("online", "offline", "disabled", "shared")

QUIET: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""Settings under which W&B says nothing and tells nothing of the exporting process; those that it knows are used."""


def open_wandb(order: Order, facts: Facts) -> "WandbSink":
    """Raises DesatError where W&B does not take the run."""
    import wandb
    from wandb.errors import Error as WandbError

    place = str(order.place) if order.is_own else os.environ.get("WANDB_DIR") or str(order.place)
    known = getattr(wandb.Settings, "model_fields", None) or getattr(wandb.Settings, "__annotations__", {})
    settings = {name: value for name, value in QUIET.items() if name in known}
    mode, why = _mode(wandb)
    try:
        os.makedirs(place, exist_ok=True)
        run: Any = wandb.init(
            project=order.project,
            name=str(facts.settings()["run"]),
            dir=place,
            mode=mode,
            config=dict(facts.settings()),
            settings=wandb.Settings(**settings),
        )
    except OSError as error:
        raise DesatError(f"cannot write to {place}: {error.strerror}; choose another place") from error
    except (WandbError, ValueError) as error:
        raise DesatError(f"W&B did not take the run: {' '.join(str(error).split())}") from error
    return WandbSink(run, why)


class WandbSink:
    """Logs the values of each moment under its step. why: why the run is offline, or nothing."""

    def __init__(self, run: Any, why: str) -> None:
        self._run = run
        place = os.path.dirname(str(run.dir))
        self.told = f"{place} ({why}; `wandb sync` uploads it)" if why else str(run.url or place)

    def write(self, moment: Moment) -> None:
        # W&B has no steps below 0, and takes those of one step together.
        self._run.log({"_timestamp": moment.time, **moment.values}, step=max(moment.step, 0))

    def flush(self) -> None:
        """W&B sends by itself."""

    def finish(self, facts: Facts) -> None:
        found = facts.diagnosis.findings if facts.diagnosis is not None else ()
        told = {f"finding/{finding.code}": plain(f"{finding.message} {finding.cause}") for finding in reversed(found)}
        # Of a live run little was known when it began.
        self._run.config.update(facts.settings(), allow_val_change=True)
        self._run.summary.update(facts.results() | told)
        self._run.finish(exit_code=int(facts.status in ("failed", "killed")))


def _mode(wandb: Any) -> tuple[Any, str]:
    """The mode that the user has chosen, by WANDB_MODE or `wandb offline`; else online where somebody is logged in."""
    settings = wandb.Settings()
    chosen = os.environ.get("WANDB_MODE")
    if chosen is not None and chosen not in MODES:
        raise DesatError(f"WANDB_MODE is {chosen!r}: expected one of {', '.join(MODES)}")
    if chosen == "online" and not _is_logged_in(settings):
        raise DesatError("WANDB_MODE is online, and nobody is logged in to W&B: `wandb login`, or set WANDB_API_KEY")
    if chosen is not None:
        return chosen, "offline" if chosen == "offline" else ""
    if _is_logged_in(settings):
        return "online", ""
    return "offline", "offline, since nobody is logged in to W&B"


def _is_logged_in(settings: Any) -> bool:
    """Whether W&B would find a key without asking: in its settings, in the environment, or in the netrc file."""
    if any(getattr(settings, name, None) for name in ("api_key", "identity_token_file")):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(str(getattr(settings, "base_url", ""))).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
