"""The main job, as a person does it: `mayfly run`, a real machine, the truth about how the process ended."""

from __future__ import annotations

import csv
import io
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.driver import Mayfly, TestCloud


def report(mayfly: Mayfly) -> dict[str, Any]:
    """The newest task's report."""
    task = mayfly("list", "--json").json()[0]["id"]
    return mayfly("show", task, "--json").json()


def proven_gone(mayfly: Mayfly, cloud: TestCloud) -> None:
    vm = report(mayfly)["attempts"][-1]["vm"]
    assert vm["state"] == "DESTROYED"
    assert "DONE" in vm["proof"]
    assert mayfly("vm", "list", "--json").json() == []
    assert cloud.machines() == []
    assert cloud.processes() == []


def trace_of(mayfly: Mayfly) -> str:
    return mayfly("trace", report(mayfly)["id"], "--raw").stdout


def test_an_analysis_of_real_data_gives_its_outputs(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = mayfly(
        *("run", "-i", "examples/penguins", "-o", "*.csv", "-d", results, "--", "python3"),
        *("/task/in/penguins/analyse.py", "/task/in/penguins/data/penguins.csv"),
    )
    assert done.exit_code == 0, done.stderr
    assert "342 penguins, 2 left out" in done.stdout
    assert sorted(path.name for path in results.iterdir()) == ["dimorphism.csv", "regression.csv"]
    rows = {row["group"]: row for row in csv.DictReader(io.StringIO((results / "regression.csv").read_text()))}
    assert rows["all"]["grams_per_mm"] == "49.69"
    assert report(mayfly)["state"] == "FINISHED"
    assert "analyse.py" in trace_of(mayfly)
    proven_gone(mayfly, cloud)


def test_the_exit_status_is_the_jobs(mayfly: Mayfly, cloud: TestCloud) -> None:
    done = mayfly("run", "-o", "*", "--", "sh", "-c", "echo part > part.txt; echo out; echo err >&2; exit 7")
    assert done.exit_code == 7
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    told = report(mayfly)
    assert (told["state"], told["reason"]) == ("FAILED", "exit_nonzero")
    assert [file["path"] for file in told["attempts"][0]["outputs"]["files"]] == ["part.txt"]
    assert "execve" in trace_of(mayfly)
    proven_gone(mayfly, cloud)


def test_a_signal_is_named(mayfly: Mayfly, cloud: TestCloud) -> None:
    done = mayfly("run", "-o", "*", "--", "sh", "-c", "echo part > part.txt; kill -9 $$")
    assert done.exit_code == 128 + signal.SIGKILL
    assert "SIGKILL" in done.stderr
    told = report(mayfly)
    assert told["reason"] == "signaled"
    assert [file["path"] for file in told["attempts"][0]["outputs"]["files"]] == ["part.txt"]
    assert "SIGKILL" in trace_of(mayfly)
    proven_gone(mayfly, cloud)


def test_a_time_out_is_told(mayfly: Mayfly, cloud: TestCloud) -> None:
    done = mayfly("run", "-o", "*", "--timeout", "2", "--", "sh", "-c", "echo part > part.txt; sleep 99")
    assert done.exit_code == 124
    assert "timed out after 2 s" in done.stderr
    told = report(mayfly)
    assert told["reason"] == "timed_out"
    assert [file["path"] for file in told["attempts"][0]["outputs"]["files"]] == ["part.txt"]
    assert "sleep" in trace_of(mayfly)
    proven_gone(mayfly, cloud)


def test_out_of_memory_is_told(mayfly: Mayfly, cloud: TestCloud) -> None:
    hog = "open('part.txt', 'w').write('part'); hog = b'x' * 2**20\nwhile True: hog += hog"
    done = mayfly("run", "-o", "*", "--memory", "96M", "--", "python3", "-c", hog)
    assert done.exit_code == 137
    assert "out of memory" in done.stderr
    assert "96 MiB" in done.stderr
    told = report(mayfly)
    assert told["reason"] == "out_of_memory"
    assert [file["path"] for file in told["attempts"][0]["outputs"]["files"]] == ["part.txt"]
    assert "execve" in trace_of(mayfly)
    proven_gone(mayfly, cloud)


def test_a_command_that_is_not_there_is_127(mayfly: Mayfly, cloud: TestCloud) -> None:
    done = mayfly("run", "--", "no-such-program")
    assert done.exit_code == 127
    assert "not found" in done.stderr
    proven_gone(mayfly, cloud)


def test_inputs_arrive_as_they_were_and_cannot_be_written(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    names = ["plain", "two words", "new\nline", "ünï-çødé", "-dash", "quote'\"$HOME`x`"]
    (tree / "empty folder").mkdir(parents=True)
    for name in names:
        (tree / name).write_text(name)
    (tree / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "script").chmod(0o755)
    os.symlink("plain", tree / "link")
    probe = """
import os, sys
for path in sorted(os.listdir('/task/in/tree')):
    full = os.path.join('/task/in/tree', path)
    print(ascii(path), oct(os.stat(full).st_mode & 0o111), os.path.isdir(full), os.access(full, os.W_OK), flush=True)
os.system('/task/in/tree/script')
"""
    done = mayfly("run", "-i", tree, "--", "python3", "-c", probe)
    assert done.exit_code == 0, done.stderr
    *listed, ran = done.stdout.splitlines()
    assert ran == "ran"
    expected = [
        f"{name!a} {oct(0o111 if name in ('script', 'empty folder') else 0)} {name == 'empty folder'} False"
        for name in sorted([*names, "script", "empty folder", "link"])
    ]
    assert listed == expected
    proven_gone(mayfly, cloud)


def test_outputs_keep_their_names_and_modes(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    results = tmp_path / "results"
    make = """
import os
for name in ['two words', 'new\\nline', 'ünï', 'sub/deep/file', '-dash']:
    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
    open(name, 'w').write(name)
os.chmod('ünï', 0o750)
"""
    done = mayfly("run", "-o", "**", "-d", results, "--", "python3", "-c", make)
    assert done.exit_code == 0, done.stderr
    found = sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())
    assert found == sorted(["two words", "new\nline", "ünï", "sub/deep/file", "-dash"])
    assert stat.S_IMODE((results / "ünï").stat().st_mode) == 0o750
    proven_gone(mayfly, cloud)


def test_an_output_that_is_missing_is_an_error_with_near_misses(mayfly: Mayfly, cloud: TestCloud) -> None:
    done = mayfly("run", "-o", "result.csv", "--", "sh", "-c", "echo 1 > results.csv")
    assert done.exit_code == 125
    assert "result.csv" in done.stderr
    assert "results.csv" in done.stderr
    assert report(mayfly)["reason"] == "output_missing"
    proven_gone(mayfly, cloud)


def test_an_output_that_links_to_a_secret_is_refused(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = mayfly("run", "-o", "*", "-d", results, "--", "ln", "-s", "/etc/shadow", "stolen.txt")
    assert done.exit_code == 125
    assert "stolen.txt" in done.stderr
    assert "symbolic link" in done.stderr
    assert not results.exists() or not list(results.rglob("stolen*"))
    proven_gone(mayfly, cloud)


def test_ctrl_c_cancels_and_cleans_up(mayfly: Mayfly, cloud: TestCloud) -> None:
    job = "echo part > part.txt; echo ready; sleep 99"
    with mayfly.running("run", "-o", "*", "--", "sh", "-c", job) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    told = report(mayfly)
    assert told["state"] == "CANCELED"
    assert [file["path"] for file in told["attempts"][0]["outputs"]["files"]] == ["part.txt"]
    proven_gone(mayfly, cloud)


def test_a_machine_that_powers_itself_off_loses_the_task_and_says_so(mayfly: Mayfly, cloud: TestCloud) -> None:
    with mayfly.running("run", "--delivery", "at_most_once", "--", "sh", "-c", "echo ready; sleep 99") as process:
        [vm] = cloud.machines()
        cloud.client().vm.action("poweroff-hard", vm)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 125, stderr
    told = report(mayfly)
    assert told["state"] == "FAILED"
    assert told["reason"] == "connection_lost"
    assert "POWEROFF" in told["message"] or "lost" in told["message"]
    proven_gone(mayfly, cloud)


@pytest.mark.parametrize("profile", ["data-exchange", "blind-sane"])
def test_entry_points_of_the_domain(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path, profile: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.txt").write_text("1\n2\n39\n")
    scripts = {
        "data-exchange": ("run.py", "import sys; total = sys.argv[1]"),
        "blind-sane": ("script.py", "import sys; total = sys.argv[sys.argv.index('-i') + 1]"),
    }
    name, first = scripts[profile]
    (code / name).write_text(f"{first}\nprint(sum(int(line) for line in open(total + '/numbers.txt')))\n")
    done = mayfly("run", "--entrypoint", profile, "-i", f"{code}:code", "-i", f"{tmp_path / 'data'}:data")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "42"
    proven_gone(mayfly, cloud)
