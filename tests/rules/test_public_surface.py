"""What is promised to stay: the commands and the rooms' exports; a listing does not import what it does not need."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app

COMMANDS = (
    *("run", "submit", "list", "show", "logs", "cancel", "results", "trace"),
    *("up", "runner", "scheduler", "chore", "vm", "pool", "image", "cloud", "doctor"),
)
GROUPS = {
    "vm": ("list",),
    "pool": ("list", "check", "plan", "apply", "drain", "resume", "rotate"),
    "image": ("build", "list", "promote", "rollback"),
    "cloud": ("start", "status", "stop"),
}
ROOMS = ("store", "artifacts", "guest", "opennebula", "receipts", "telemetry")


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for command in COMMANDS:
        assert command in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0, shown.output
    for word in GROUPS.get(command, ("--help",)):
        assert word in shown.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_what_it_names(room: str) -> None:
    module = importlib.import_module(f"orchestrator.{room}")
    assert len(set(module.__all__)) == len(module.__all__) > 0
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_a_listing_imports_neither_cloud_nor_guest() -> None:
    code = (
        "import sys; import orchestrator.cli.tasks; "
        "print([name for name in ('pyone', 'asyncssh', 'ansible_runner', 'apscheduler') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("wrong", [["--timeout", "soon"], ["--no-such-option"], ["--entrypoint", "none"]])
def test_wrong_options_of_run_are_no_exit_status_of_a_job(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["run", *wrong, "--", "true"]).exit_code == 125
    assert CliRunner().invoke(app, ["submit", *wrong, "--", "true"]).exit_code == 2
