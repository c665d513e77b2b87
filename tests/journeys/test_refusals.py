"""Bad input at the command line: a clear error that names the field and the remedy, nothing half-done left."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import Mayfly


@pytest.fixture(scope="module")
def mayfly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """A home with a local cloud of no machines, shared by the tests: a refusal leaves nothing behind in it."""
    home = tmp_path_factory.mktemp("refusals") / "home"
    mayfly = Mayfly({"MAYFLY_HOME": str(home), "ONE_XMLRPC": "", "ONE_AUTH": ""})
    started = mayfly("cloud", "start", "--hypervisor", "simulated")
    assert started.exit_code == 0, started.stderr
    yield mayfly
    assert mayfly("cloud", "stop").exit_code == 0


def tasks(mayfly: Mayfly) -> list[str]:
    """Every task's row, straight from the home's database."""
    with contextlib.closing(sqlite3.connect(mayfly.home / "mayfly.db")) as database:
        if not database.execute("select 1 from sqlite_master where name = 'tasks'").fetchall():
            return []
        return [row[0] for row in database.execute("select id from tasks order by id")]


def refused(mayfly: Mayfly, *words: str | Path, names: tuple[str, ...], exit_code: int = 125) -> None:
    """The command fails with every one of `names` in its message, and no task was made."""
    before = tasks(mayfly)
    done = mayfly(*words)
    assert done.exit_code == exit_code, done.stdout + done.stderr
    for name in names:
        assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert tasks(mayfly) == before


def test_an_unknown_pool(mayfly: Mayfly) -> None:
    refused(mayfly, "run", "-p", "defualt", "--", "true", names=("pool", "defualt", "default"))


def test_a_missing_input(mayfly: Mayfly) -> None:
    refused(mayfly, "run", "-i", "/no/such/file", "--", "true", names=("input", "/no/such/file"))


@pytest.mark.parametrize("source", ["", ":data"])
def test_an_input_that_is_an_unset_variable(mayfly: Mayfly, source: str) -> None:
    refused(mayfly, "run", "-i", source, "--", "true", names=("input", "names no file", "SRC:DEST"))


def test_an_input_that_is_a_socket(mayfly: Mayfly, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        cwd = Path.cwd()
        os.chdir(folder)  # a socket's path may not be longer than 107 bytes
        try:
            listening.bind("talk")
        finally:
            os.chdir(cwd)
        refused(mayfly, "run", "-i", folder, "--", "true", names=("input", "talk", "socket"))


def test_an_input_that_is_a_device(mayfly: Mayfly) -> None:
    refused(mayfly, "run", "-i", "/dev/null", "--", "true", names=("input", "/dev/null", "device"))


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../*", "a/../../b"])
def test_an_output_pattern_outside_the_outputs(mayfly: Mayfly, pattern: str) -> None:
    refused(mayfly, "run", "-o", pattern, "--", "true", names=("output", pattern, "/task/out"))


@pytest.mark.parametrize("command", [[""], []])
def test_an_empty_command(mayfly: Mayfly, command: list[str]) -> None:
    refused(mayfly, "run", "--", *command, names=("command",))


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_out_that_is_none(mayfly: Mayfly, seconds: str) -> None:
    refused(mayfly, "run", f"--timeout={seconds}", "--", "true", names=("timeout",))


def test_a_memory_size_that_is_none(mayfly: Mayfly) -> None:
    refused(mayfly, "run", "--memory", "lots", "--", "true", names=("memory", "lots", "512M"))


def test_results_that_exist(mayfly: Mayfly, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    refused(mayfly, "run", "-d", full, "--", "true", names=("results", "not empty"))
    assert (full / "mine.txt").read_text() == "mine"
    assert list(full.iterdir()) == [full / "mine.txt"]


def test_results_in_no_folder(mayfly: Mayfly, tmp_path: Path) -> None:
    refused(mayfly, "run", "-d", tmp_path / "no" / "such", "--", "true", names=("results",))


def test_results_that_are_a_file(mayfly: Mayfly, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    refused(mayfly, "run", "-d", file, "--", "true", names=("results", "not a folder"))


def test_an_image_that_was_never_built(mayfly: Mayfly) -> None:
    done = mayfly("run", "--", "true")
    assert done.exit_code == 125
    assert "debian-12" in done.stderr
    assert "mayfly image build debian-12" in done.stderr
    task = mayfly("list", "--json").json()[0]
    assert task["state"] == "FAILED"
    assert mayfly("vm", "list", "--json").json() == []


def test_a_wrong_one_auth(mayfly: Mayfly, tmp_path: Path) -> None:
    url = mayfly("cloud", "status", "--json").json()["url"]
    wrong = tmp_path / "wrong"
    wrong.write_text("oneadmin:wrong\n")
    refused(mayfly.with_environment(ONE_XMLRPC=url, ONE_AUTH=str(wrong)), "run", "--", "true", names=("ONE_AUTH",))


def test_a_one_auth_that_is_not_there(mayfly: Mayfly, tmp_path: Path) -> None:
    url = mayfly("cloud", "status", "--json").json()["url"]
    missing = tmp_path / "missing"
    refused(
        mayfly.with_environment(ONE_XMLRPC=url, ONE_AUTH=str(missing)),
        *("run", "--", "true"),
        names=("ONE_AUTH", str(missing)),
    )


def test_no_cloud_listening(mayfly: Mayfly, tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.write_text("oneadmin:secret\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(
        mayfly.with_environment(ONE_XMLRPC=f"http://127.0.0.1:{port}/RPC2", ONE_AUTH=str(auth)),
        *("run", "--", "true"),
        names=("ONE_XMLRPC", str(port)),
    )


def test_a_second_up_on_the_same_home(mayfly: Mayfly) -> None:
    first = mayfly.start("up")
    assert first.stderr is not None
    assert "up:" in first.stderr.readline()
    try:
        second = mayfly("up", seconds=60)
        assert second.exit_code == 2
        assert "MAYFLY_HOME" in second.stderr
        assert str(first.pid) in second.stderr
    finally:
        first.terminate()
        first.communicate(timeout=60)
    assert first.returncode == 0


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = Mayfly({"MAYFLY_HOME": str(file / "home"), "ONE_XMLRPC": "", "ONE_AUTH": ""})("list")
    assert done.exit_code == 2
    assert "MAYFLY_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_that_is_not_there(mayfly: Mayfly) -> None:
    done = mayfly("show", "0000000000000000")
    assert done.exit_code == 2
    assert "no task" in done.stderr.lower()
