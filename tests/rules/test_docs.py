"""The documentation against the code: links, commands, options, variables, names, figures."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli import app
from orchestrator.domain import errors
from orchestrator.domain.errors import MayflyError
from orchestrator.domain.pool import LayerSources, Pool, Warm
from orchestrator.domain.seal import Seal
from orchestrator.domain.task import Stage
from orchestrator.guest import errors as guest_errors
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import CALLS
from orchestrator.localcloud.troubles import KINDS
from orchestrator.provisioning.quantities import size_in_bytes, time_in_seconds
from orchestrator.provisioning.variables import PREFIX, PoolVariables
from orchestrator.reports.ended import ENDS
from orchestrator.store import EventKind
from orchestrator.telemetry import Ended, Look, Metrics
from orchestrator.telemetry.metrics import LEAKED_KINDS, REQUEST_RESULTS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(page.read_text()) if "://" not in link]


def rows(page: Path, section: str = "") -> Iterator[list[str]]:
    """The cells of every table row of a page, or of one of its sections; headings of tables left out."""
    text = page.read_text()
    if section:
        found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert found, f"{page.name} has no section {section!r}"
        text = found[1]
    lines = text.splitlines()
    for at, line in enumerate(lines):
        under_a_heading = at + 1 < len(lines) and re.fullmatch(r"\|[-| ]+\|", lines[at + 1])
        if line.startswith("|") and not under_a_heading and not re.fullmatch(r"\|[-| ]+\|", line):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def spans(cell: str) -> list[str]:
    return _SPAN.findall(cell)


def first_names(page: Path, section: str = "") -> list[str]:
    """What the first cells of a page's tables name."""
    return [span for row in rows(page, section) for span in spans(row[0])]


def commands() -> dict[str, Any]:
    """Every command by its full name: "run", "image build"."""
    found: dict[str, Any] = {}
    group: Any = typer.main.get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner}
    return found


def options(command: Any) -> set[str]:
    named = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    return {name for name in named if name.startswith("-")} - {"--help"}


# -- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links(page)
        if not link.startswith("#")
    }
    assert [name_of(page) for page in DOCS.rglob("*.md") if page not in linked] == []


def test_every_file_that_a_page_names_exists() -> None:
    """Paths in code spans that begin with a folder of the repository, or with a room of the package."""
    package = ROOT / "orchestrator"
    tops = {
        path.name for top in (ROOT, package) for path in top.iterdir() if path.is_dir() and path.name[0] not in "._"
    }
    for page in PAGES:
        for span in _SPAN.findall(page.read_text()):
            if re.fullmatch(r"[\w./-]+\.\w+", span) and span.split("/")[0] in tops and "/" in span:
                assert (ROOT / span).exists() or (package / span).exists(), f"{name_of(page)} names {span}"


# -- the command line


def test_the_table_of_commands_is_the_commands_and_their_options() -> None:
    table: dict[str, set[str]] = {}
    for row in rows(REFERENCE / "cli.md", "Commands"):
        [said] = spans(row[0])
        words = [word for word in said.split()[1:] if re.fullmatch(r"[a-z]+", word)]
        table[" ".join(words)] = {each.split()[0] for each in spans(row[2]) if each.startswith("-")}
    shared = {each.split()[0] for each in first_names(REFERENCE / "cli.md", "Options of `run` and `submit`")}
    real = {name: options(command) for name, command in commands().items()}
    only_one = {"--results", "-d", "--hold"}
    assert shared == (real["run"] & real["submit"]) | only_one
    for name in ("run", "submit", "schedule add"):
        real[name] -= shared
    assert table == real


def test_every_command_that_a_page_shows_exists() -> None:
    known = set(commands())
    groups = {name.split()[0] for name in known if " " in name}
    for page in PAGES:
        text = page.read_text()
        code = "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"^    (.+)$", text, re.M)])
        code += "\n" + "\n".join(_SPAN.findall(text))
        for first, second in re.findall(r"(?:^|[\s/$])mayfly ([a-z]+)(?: ([a-z]+))?", code):
            name = f"{first} {second}" if first in groups else first
            assert name in known or (first in groups and not second), f"{name_of(page)}: mayfly {first} {second}"


def test_every_environment_variable_that_is_read_is_documented() -> None:
    """`PATH` and `PYTHONPATH` mean here what they mean everywhere. The guest's scripts run in machines, and are given
    theirs by us."""
    read: set[str] = set()
    package = ROOT / "orchestrator"
    for path in set(package.rglob("*.py")) - set((package / "guest" / "scripts").iterdir()):
        text = path.read_text()
        read.update(re.findall(r"""(?:environ|\benv)(?:\.get\(|\[)\s*"(\w+)\"""", text))
        read.update(re.findall(r'"(ANSIBLE_(?:CONFIG|VAULT_PASSWORD_FILE|INVENTORY_ENABLED))"', text))
    documented = set(first_names(REFERENCE / "cli.md", "Environment"))
    assert read - {"PATH", "PYTHONPATH"} - documented == set()
    everything = "\n".join(path.read_text() for path in (ROOT / "orchestrator").rglob("*.py"))
    assert [name for name in documented if name not in everything] == []


# -- tables of names and figures


def test_the_variables_of_a_pool_and_their_defaults() -> None:
    wanted = {each if each == "ansible_port" else PREFIX + each: each for each in PoolVariables.model_fields}
    told = {spans(row[0])[0]: row[1] for row in rows(REFERENCE / "pools.md")}
    assert list(told) == list(wanted)
    defaults = {each.name: each.default for each in (*dataclasses.fields(Pool), *dataclasses.fields(Warm))}
    for variable, field in wanted.items():
        alias = PoolVariables.model_fields[field].serialization_alias or field
        default = defaults[alias]
        match spans(told[variable]):
            case []:
                assert default in (dataclasses.MISSING, None, (), "", LayerSources()), variable
            case [text] if isinstance(default, tuple):
                listed = ", ".join(each.name if isinstance(each, Seal) else str(each) for each in default)
                assert text == f"[{listed}]", variable
            case [text] if alias.endswith("_bytes"):
                assert size_in_bytes(text) == default, variable
            case [text] if alias.endswith("_seconds"):
                assert time_in_seconds(text) == default, variable
            case [text]:
                assert text == (f"{default:g}" if isinstance(default, float) else str(default)), variable


def test_every_error_is_in_the_reference() -> None:
    ours = {
        name
        for module in (errors, guest_errors)
        for name, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, MayflyError)
    }
    assert set(first_names(REFERENCE / "errors.md")) == ours


def test_every_event_is_in_the_reference() -> None:
    assert first_names(REFERENCE / "events.md") == list(EventKind)


def test_every_metric_is_in_the_reference_with_its_kind_and_labels() -> None:
    metrics = Metrics({"small": Pool(name="small", image="debian-12")})
    metrics.claimed("small", warm=True, waited_seconds=1.0)
    metrics.adopted("small")
    metrics.launched("small", "debian-12", 1.0)
    metrics.ready("small", 1)
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    stages = {Stage.EXECUTING: (instant, instant)}
    metrics.ended(Ended("t", 1, "small", "r", instant, instant, instant, stages, "finished"))
    metrics.request("vm.info", "ok", 1.0)
    metrics.chore("reap", 1.0, ok=True)
    metrics.leads(True)
    metrics.saw(Look())
    metrics.overdue(0)
    counted = {}
    for family in metrics.registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if name.startswith("mayfly_"):
            assert family.samples, f"{name} was given no value: the comparison of its labels would say nothing"
            counted[name] = ("gauge" if family.type == "info" else family.type, labels)
    page = REFERENCE / "metrics.md"
    assert {spans(row[0])[0]: (row[1], set(spans(row[2]))) for row in rows(page)} == counted
    assert len(list(rows(page))) == len(counted)
    values = "\n".join(row[3] for row in rows(page))
    told = {*REQUEST_RESULTS, *LEAKED_KINDS, *ENDS.values(), "refused", "warm", "cold", "other"}
    assert [each for each in told if f"`{each}`" not in values + page.read_text().split("##")[0]] == []


def test_every_metric_that_the_page_about_them_names_exists() -> None:
    known = set(first_names(REFERENCE / "metrics.md"))
    named = re.findall(r"\bmayfly_\w+", (DOCS / "howto" / "observe.md").read_text())
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} - known == set()


def test_the_local_clouds_calls_knobs_and_faults() -> None:
    page = REFERENCE / "local-cloud.md"
    listed = {
        f"{family}.{name}" if family.startswith("mayfly") else f"one.{family}.{name}"
        for row in rows(page, "Calls")
        for family in spans(row[0])
        for name in spans(row[1])
    }
    assert listed == set(CALLS)
    assert first_names(page, "Settings") == [each.name for each in dataclasses.fields(CloudSettings)]
    assert set(first_names(page, "Faults")) == KINDS


def test_the_calls_that_an_opennebula_gets() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "orchestrator" / "opennebula").glob("*.py"))
    made = {each for each in re.findall(r'"([a-z]+\.[a-z]+)"', sources) if f"one.{each}" in CALLS}
    page = DOCS / "howto" / "use-your-opennebula.md"
    assert {each for row in rows(page, "What Mayfly calls") for each in spans(row[1])} == made


def test_every_promise_names_tests_that_exist_or_is_pending() -> None:
    for row in rows(DOCS / "promises.md"):
        named = [ROOT / span for span in spans(row[1])]
        assert named or row[1] == "pending", row[0]
        assert [name_of(path) for path in named if not path.is_file()] == [], row[0]


def test_every_decision_is_in_the_index() -> None:
    index = DOCS / "decisions" / "README.md"
    pages = sorted(path.name for path in (DOCS / "decisions").glob("0*.md"))
    assert [link for link in links(index) if link.startswith("0")] == pages


# -- examples in docstrings


def _modules_with_examples() -> list[str]:
    found = subprocess.run(
        ["grep", "-rl", "--include=*.py", "^ *>>> ", "orchestrator"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    return sorted(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in found)


@pytest.mark.parametrize("module", _modules_with_examples())
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    import doctest

    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
