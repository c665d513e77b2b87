"""A PostgreSQL server of our own, from Debian's package, for as long as a block lasts; on a unix socket only.

`python -m tests.postgres FOLDER` runs one until it is interrupted, and prints its URL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

DEBIAN = Path("/usr/lib/postgresql")
ACCOUNT = "postgres"
SECONDS = 60.0
FAST = ("fsync=off", "full_page_writes=off")
"""What is acknowledged survives the end of the server, though not of the machine."""


def binaries() -> Path | None:
    """The folder of the newest server there is; None: there is none."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


class Postgres:
    """One server. It may be stopped (at once, as by a power cut, with `kill`) and started again, by who tests that."""

    def __init__(self, folder: Path, *, durable: bool, environment: Mapping[str, str] | None = None) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError(f"no PostgreSQL server below {DEBIAN}: install the package postgresql")
        self._bin = found
        self._log = folder / "log"
        # The name of a socket has at most 107 bytes, and a test's folder may have a long name. Nor can another account
        # always get there: pytest shuts the folder of all its runs each time that it starts.
        self._home = Path(tempfile.mkdtemp(prefix="mayfly-pg-", dir="/tmp"))
        self._data = self._home / "data"
        self._settings = () if durable else FAST
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._account = ACCOUNT if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._as = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
        folder.mkdir(parents=True, exist_ok=True)
        self._data.mkdir()
        self._log.touch()
        if self._as:
            for path in (self._data, self._log, self._home):
                shutil.chown(path, ACCOUNT, ACCOUNT)
        self._run(
            "initdb", "-D", str(self._data), "-U", "mayfly", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://mayfly@/{database}?host={quote(str(self._home), safe='')}"

    def start(self) -> None:
        """Raises RuntimeError when it does not answer."""
        settings = ("listen_addresses=", f"unix_socket_directories={self._home}", "max_connections=200")
        options = [word for setting in (*settings, *self._settings) for word in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + SECONDS
        while self._ask("pg_isready", "-q").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """In good order, whoever is connected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """At once, with nothing put in order; the next start recovers."""
        self._end(signal.SIGQUIT)

    def create(self, database: str, template: str = "template0") -> str:
        """A new database, empty or a copy of `template`, which nobody may be using; its URL."""
        done = self._ask("createdb", "--template", template, "--strategy", "file_copy", database)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return self.url(database)

    def drop(self, database: str) -> None:
        self._ask("dropdb", "--force", "--if-exists", database)

    def remove(self) -> None:
        """Stop it, and leave nothing of it."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=SECONDS)
            self._process = None

    def _ask(self, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [self._bin / program, "-h", self._home, "-U", "mayfly", *words]
        return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / program, *words], cwd="/", capture_output=True, timeout=SECONDS, check=False, **self._as
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr.decode()}")


@contextmanager
def running_server(
    folder: Path, *, durable: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Postgres]:
    """`durable`: what is acknowledged survives a power cut, as in production; otherwise it is fast. `environment`: more
    variables for the server's process."""
    server = Postgres(folder, durable=durable, environment=environment)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def running_postgres(folder: Path, *, durable: bool = False) -> Iterator[str]:
    """The URL of an empty database on a server of its own."""
    with running_server(folder, durable=durable) as server:
        yield server.create("mayfly")


if __name__ == "__main__":
    with running_postgres(Path(sys.argv[1]), durable=True) as address:
        print(address, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
