"""Where things are: the environment, read once. Nothing here touches the disk."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

LEASE_SECONDS = 60.0
MIN_LEASE_SECONDS = 0.5

_PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """The folder with `images/`, `inventories/`, `playbooks/`, `templates/`: the checkout, or the wheel's."""
    checkout = _PACKAGE.parent
    return checkout if (checkout / "playbooks").is_dir() and (checkout / "images").is_dir() else _PACKAGE / "_data"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    home: `MAYFLY_HOME`, everything that Mayfly keeps on this machine (default `~/.local/share/mayfly`).
    database_url: `MAYFLY_DATABASE_URL`, as SQLAlchemy has it (default: SQLite in the home).
    one_xmlrpc: `ONE_XMLRPC`, OpenNebula's endpoint; empty means the local cloud of this home.
    one_auth: `ONE_AUTH`, the path of a file holding `user:password`, as OpenNebula's own clients have it.
    one_zmq: `ONE_ZMQ`, where OpenNebula publishes its events, `tcp://HOST:2101`, as its own clients have it; `none`: do
      without; empty: port 2101 of the endpoint's host, if somebody answers there.
    cache: what every home of this user may share, and may be deleted (`$XDG_CACHE_HOME/mayfly`, default `~/.cache`).
    inventory: `MAYFLY_INVENTORY`, the Ansible inventory with the pools (default `inventories/local`).
    lease_seconds: `MAYFLY_LEASE_SECONDS`, how long a runner may be silent before another takes its tasks (default 60).
    metrics: `MAYFLY_METRICS`, where services serve their metrics, `HOST:PORT`; empty: nowhere.
    """

    home: Path
    database_url: str
    one_xmlrpc: str
    one_auth: Path | None
    cache: Path
    inventory: Path
    lease_seconds: float = LEASE_SECONDS
    metrics: str = ""
    one_zmq: str = ""

    @classmethod
    def from_environment(cls, environment: dict[str, str] | None = None) -> Settings:
        env = dict(os.environ) if environment is None else environment
        home = Path(env.get("MAYFLY_HOME") or "~/.local/share/mayfly").expanduser().absolute()
        auth = env.get("ONE_AUTH")
        return cls(
            home=home,
            database_url=env.get("MAYFLY_DATABASE_URL") or f"sqlite+aiosqlite:///{home / 'mayfly.db'}",
            one_xmlrpc=env.get("ONE_XMLRPC") or "",
            one_auth=Path(auth).expanduser() if auth else None,
            cache=Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mayfly",
            inventory=Path(env.get("MAYFLY_INVENTORY") or data_root() / "inventories" / "local").absolute(),
            lease_seconds=_seconds(env.get("MAYFLY_LEASE_SECONDS") or str(LEASE_SECONDS)),
            metrics=env.get("MAYFLY_METRICS") or "",
            one_zmq=env.get("ONE_ZMQ") or "",
        )

    @property
    def cloud_home(self) -> Path:
        """Where the local cloud of this home keeps its state."""
        return self.home / "cloud"

    @property
    def artifacts(self) -> Path:
        """The blob store."""
        return self.home / "artifacts"

    @property
    def uses_local_cloud(self) -> bool:
        """No OpenNebula was named: the embedded one of this home serves."""
        return not self.one_xmlrpc


def _seconds(text: str) -> float:
    """Not a number, where it is none: whoever opens the house says so."""
    try:
        return float(text)
    except ValueError:
        return math.nan
