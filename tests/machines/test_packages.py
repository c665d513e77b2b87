"""Packages on real machines: installed from the index that this machine's pip uses, by a builder that has no input."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.driver import ROOT, Mayfly

pytestmark = pytest.mark.timeout(3000)

SIX = "six==1.16.0"
SIX_SHA256 = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"
"""Of six-1.16.0-py2.py3-none-any.whl."""
OF_SIX = "import six; print(six.__version__, six.__file__)"


def pip_says(option: str) -> str:
    """What pip of this machine is told about where packages come from; "" for nothing."""
    if said := os.environ.get(f"PIP_{option.replace('-', '_').upper()}"):
        return said
    for section in ("global", "install"):
        asked = [sys.executable, "-m", "pip", "config", "get", f"{section}.{option}"]
        found = subprocess.run(asked, capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip()
    return ""


def sources() -> dict[str, str]:
    """`mayfly_layer_sources`, for machines that reach what this one does."""
    said = {
        "index_url": pip_says("index-url"),
        "proxy": pip_says("proxy") or os.environ.get("https_proxy", ""),
        "ca_bundle": pip_says("cert") or os.environ.get("SSL_CERT_FILE", ""),
    }
    return {name: value for name, value in said.items() if value}


@pytest.fixture
def mayfly(mayfly: Mayfly, tmp_path: Path) -> Mayfly:
    """With an inventory whose builders install from there."""
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventories" / "local", inventory)
    hosts = inventory / "hosts.yml"
    said = yaml.safe_load(hosts.read_text())
    said["pools"]["hosts"]["builders"] |= {"mayfly_layer_sources": sources()}
    said["pools"]["hosts"]["default"] |= {"mayfly_debian_packages": ["jq", "no-such-*"]}
    hosts.write_text(yaml.safe_dump(said))
    return Mayfly({**mayfly.environment, "MAYFLY_INVENTORY": str(inventory)})


def tasks(mayfly: Mayfly) -> list[dict[str, Any]]:
    """All reports, the newest first."""
    return [mayfly("show", each["id"], "--json").json() for each in mayfly("list", "--json").json()]


def builders(mayfly: Mayfly) -> list[dict[str, Any]]:
    return [each for each in tasks(mayfly) if each["pool"] == "builders"]


def requirements(folder: Path, *lines: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_numpy_and_pandas_are_installed_once_and_used_sealed(mayfly: Mayfly, tmp_path: Path) -> None:
    penguins = ROOT / "examples" / "penguins"
    words = ["--requirements", penguins / "requirements.txt", "-i", penguins, "-o", "*.csv"]
    words += ["-d", tmp_path / "masses", "--", "python3", "/task/in/penguins/with_pandas.py"]
    done = mayfly("run", *words, "/task/in/penguins/data/penguins.csv", seconds=2000)
    assert done.exit_code == 0, done.stderr
    assert "333 penguins, pandas " in done.stdout
    rows = list(csv.DictReader((tmp_path / "masses" / "mass.csv").read_text().splitlines()))
    assert [(row["species"], row["sex"], row["count"]) for row in rows[:2]] == [
        ("Adelie", "female", "73"),
        ("Adelie", "male", "73"),
    ]

    builder, task = tasks(mayfly)
    assert not any(probe["reached"] for probe in task["attempts"][0]["machine"]["seal"])
    log, trace = mayfly("logs", builder["id"]).stdout, mayfly("trace", builder["id"], "--raw").stdout
    assert "Successfully installed" in log and "penguins" not in log
    assert "execve" in trace and "/task/in/build.py" in trace and "penguins" not in trace

    again = tmp_path / "again"
    words[words.index(tmp_path / "masses")] = again
    done = mayfly("run", *words, "/task/in/penguins/data/penguins.csv", seconds=600)
    assert done.exit_code == 0, done.stderr
    assert "installing packages" not in done.stderr
    assert len(builders(mayfly)) == 1, "the second run built nothing"
    assert (again / "mass.csv").read_bytes() == (tmp_path / "masses" / "mass.csv").read_bytes()


def test_tasks_at_once_have_the_same_built_once(mayfly: Mayfly, tmp_path: Path) -> None:
    words = ["run", "--requirements", requirements(tmp_path, SIX), "--", "python3", "-c", OF_SIX]
    with contextlib.ExitStack() as running:
        both = [running.enter_context(mayfly.start(*words)) for _ in range(2)]
        for each in both:
            stdout, stderr = each.communicate(timeout=600)
            assert each.returncode == 0, stderr
            assert stdout == "1.16.0 /task/layer/lib/python3.11/site-packages/six.py\n"
    assert len(builders(mayfly)) == 1


def test_a_layer_can_be_read_and_not_written(mayfly: Mayfly, tmp_path: Path) -> None:
    script = (
        "for each in new lib/new; do touch /task/layer/$each && exit 3; done; "
        "grep ' /task/layer ' /proc/mounts; rm -rf /task/layer/lib; python3 -c 'import six'"
    )
    done = mayfly("run", "--requirements", requirements(tmp_path, SIX), "--", "sh", "-c", script, seconds=600)
    assert done.exit_code == 0, done.stderr
    assert "squashfs ro,nosuid,nodev" in done.stdout
    assert "Read-only file system" in done.stderr


def test_hashes_are_held_to(mayfly: Mayfly, tmp_path: Path) -> None:
    good = requirements(tmp_path, f"{SIX} \\", f"    --hash=sha256:{SIX_SHA256}")
    done = mayfly("run", "--requirements", good, "--", "python3", "-c", OF_SIX, seconds=900)
    assert (done.exit_code, done.stdout.split()[:1]) == (0, ["1.16.0"]), done.stderr
    wrong = requirements(tmp_path, f"{SIX} --hash=sha256:{'a' * 64}")
    done = mayfly("run", "--requirements", wrong, "--", "true", seconds=600)
    assert done.exit_code == 125
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert (tasks(mayfly)[1]["state"], tasks(mayfly)[1]["reason"]) == ("FAILED", "layer_failed")


@pytest.mark.parametrize(
    "lines, told",
    [
        (["six==0.0.0.9999"], "No matching distribution found for six==0.0.0.9999"),
        (["python-dateutil==2.9.0.post0", "six==1.4.1"], "ResolutionImpossible"),
    ],
)
def test_what_cannot_be_installed_is_told(mayfly: Mayfly, tmp_path: Path, lines: list[str], told: str) -> None:
    done = mayfly("run", "--requirements", requirements(tmp_path, *lines), "--", "true", seconds=600)
    assert done.exit_code == 125
    assert told in done.stderr


def test_a_debian_package_is_there_with_what_it_needs(mayfly: Mayfly) -> None:
    script = """echo '{"answer": 42}' | jq .answer; grep -c '^layer /usr overlay ro,nosuid,nodev' /proc/mounts"""
    done = mayfly("run", "--package", "jq", "--", "sh", "-c", script, seconds=900)
    assert (done.exit_code, done.stdout) == (0, "42\n1\n"), done.stderr
    [builder] = builders(mayfly)
    assert {name.partition("==")[0] for name in tasks(mayfly)[1]["layer"]["resolved"]} >= {"jq", "libjq1"}
    assert builder["packages"] == {"requirements": "", "debian": []}
    done = mayfly("run", "--package", "no-such-package", "--", "true", seconds=900)
    assert done.exit_code == 125
    assert "E: Unable to locate package no-such-package" in done.stderr


def test_a_line_that_is_no_name_begins_nothing(mayfly: Mayfly, tmp_path: Path) -> None:
    for line in ("-r other.txt", "./local", "six @ https://example.org/six.whl"):
        done = mayfly("run", "--requirements", requirements(tmp_path, "six", line), "--", "true")
        assert done.exit_code == 125
        assert "requirements: line 2:" in done.stderr
    huge = tmp_path / "huge.txt"
    huge.write_text("six\n" * 2_500_000)
    done = mayfly("run", "--requirements", huge, "--", "true")
    assert done.exit_code == 125
    assert "name what is needed, and not all that there is" in done.stderr
    assert mayfly("list", "--json").json() == []
