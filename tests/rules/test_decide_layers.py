"""What packages a task may bring, what a layer is named by, and the task that makes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.decide.entrypoint import argv_of
from orchestrator.decide.layers import Recipe, builder, environment, problems
from orchestrator.decide.requirements import LONGEST
from orchestrator.decide.validation import problems as all_problems
from orchestrator.domain.pool import LayerSources, Pool
from orchestrator.domain.seal import Network, Seal
from orchestrator.domain.task import Entrypoint, Packages, TaskSpec, TraceProfile
from orchestrator.provisioning.seals import seals

ROOT = Path(__file__).resolve().parents[2]
OPEN = seals(ROOT / "images" / "seals")["open"]
BUILDERS = Pool(name="builders", image="debian-12", seals=(OPEN,), layer_sources=LayerSources("https://index.test/"))
POOL = Pool(name="small", image="debian-12", layers="builders", debian_packages=("libgomp1", "r-cran-*"))
POOLS = {"small": POOL, "builders": BUILDERS, "bare": Pool(name="bare", image="debian-12")}
IMAGE = {"name": "mayfly-debian-12-3", "id": 7, "created": 1}


def spec(requirements: str = "", *debian: str, pool: str = "small") -> TaskSpec:
    return TaskSpec(pool=pool, command=("python3",), packages=Packages(requirements, debian))


def told(given: TaskSpec, pools: dict[str, Pool] = POOLS) -> list[str]:
    return [str(problem) for problem in problems(given, pools)]


def test_good_packages_have_no_problems() -> None:
    assert told(spec("numpy\npandas==2.2.3", "libgomp1", "r-cran-mass")) == []
    assert told(spec(pool="bare")) == []
    assert told(spec("\n \n", pool="bare")) == []


def test_a_refused_line_is_told_with_its_number_and_the_remedy() -> None:
    assert told(spec("numpy\n\n-e .")) == [
        "requirements: line 3: -e is an option of pip's (name the package as the index has it)"
    ]


def test_what_is_too_long_is_refused_unread() -> None:
    [problem] = told(spec("-e .\n" * LONGEST))
    assert problem.startswith(f"requirements: has {5 * LONGEST} bytes, at most {LONGEST} are taken")


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("r-base", "pool small does not allow the Debian package r-base (it allows libgomp1, r-cran-*"),
        ("libgomp1=12", "'libgomp1=12' is no name of a Debian package"),
        ("r-cran-X", "is no name of a Debian package"),
        ("-o", "is no name of a Debian package"),
        ("", "is no name of a Debian package"),
        ("r-cran-/etc", "is no name of a Debian package"),
        ("r-cran-a b", "is no name of a Debian package"),
        ("r-cran-*", "is no name of a Debian package"),
        ("r-cran-a\n", "is no name of a Debian package"),
    ],
)
def test_a_debian_package_has_a_name_and_the_pool_allows_it(name: str, wrong: str) -> None:
    [problem] = told(spec("", name))
    assert wrong in problem


def test_a_thousand_debian_packages_are_refused_together() -> None:
    [problem] = told(spec("", *["x"] * 1000))
    assert problem.startswith("package: 1000 packages, at most 200 are taken")


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"layers": ""}, "pool small installs no packages (its mayfly_layers can name a pool that does)"),
        ({"layers": "bilders"}, "are installed in pool 'bilders', which there is not (put mayfly_layers of pool small"),
        ({"layers": "bare"}, "the seal of pool bare is sealed, so that it reaches no index"),
        ({"image": "debian-13"}, "pools small and builders are not of the same image"),
    ],
)
def test_packages_need_a_pool_that_installs_them(change: dict[str, str], wrong: str) -> None:
    pools = {**POOLS, "small": replace(POOL, **change)}  # type: ignore[arg-type]
    for given in (spec("numpy"), spec("", "libgomp1")):
        [problem] = told(given, pools)
        assert wrong in problem


def test_a_builder_is_nobodys_to_submit() -> None:
    [problem] = told(replace(spec(), entrypoint=Entrypoint.LAYER))
    assert problem.startswith("entrypoint: layer is for Mayfly's own builders")


def test_a_pool_that_installs_packages_for_others_takes_no_task_of_anybody() -> None:
    """Its machines have a way out: whoever gave one data, by mistake or not, would have let it out."""
    [problem] = told(spec(pool="builders"))
    assert (
        problem
        == "pool: pool builders installs packages for small, and runs nothing else (give the task to another pool)"
    )
    assert told(spec(pool="builders"), {"builders": replace(BUILDERS, layers="builders")}) == []


def test_a_submission_is_checked_for_its_packages() -> None:
    assert [str(each) for each in all_problems(spec("-r x"), POOLS)] == told(spec("-r x")) != []


def test_equal_packages_have_one_key() -> None:
    one, other = Packages("Pandas\nnumpy>=1,<2", ("b", "a")), Packages("numpy <2, >=1\npandas # yes", ("a", "b", "a"))
    assert Recipe.of(one).key(IMAGE, BUILDERS) == Recipe.of(other).key(IMAGE, BUILDERS)


def test_whatever_changes_the_layer_changes_its_key() -> None:
    plain = Recipe.of(Packages("numpy", ("a",)))
    sources = replace(BUILDERS, layer_sources=LayerSources("https://other.test/"))
    keys = {
        plain.key(IMAGE, BUILDERS),
        Recipe.of(Packages("numpy>1", ("a",))).key(IMAGE, BUILDERS),
        Recipe.of(Packages("numpy\npandas", ("a",))).key(IMAGE, BUILDERS),
        Recipe.of(Packages("numpy", ("a", "b"))).key(IMAGE, BUILDERS),
        plain.key({**IMAGE, "id": 8}, BUILDERS),
        plain.key(IMAGE, sources),
        plain.key(IMAGE, replace(sources, layer_sources=LayerSources("https://other.test/", ca_bundle="x"))),
    }
    assert len(keys) == 7
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)


def test_a_builder_is_told_the_packages_and_where_they_come_from() -> None:
    hashed = f"six==1.16.0 --hash=sha256:{'a' * 64}"
    recipe = Recipe.of(
        Packages(hashed.upper().replace("--HASH=SHA256:" + "A" * 64, f"--hash=sha256:{'a' * 64}"), ("a",))
    )
    assert recipe.request(BUILDERS) == {
        "requirements": f"{hashed}\n",
        "hashed": True,
        "debian": ["a"],
        "index_url": "https://index.test/",
        "proxy": "",
        "ca_bundle": "",
    }


def test_a_builder_gets_its_program_and_its_request_and_nothing_else() -> None:
    task = builder("k" * 64, "mayfly-debian-12-3", BUILDERS, program="p", request="r")
    assert [(each.dest, each.blob, each.code) for each in task.inputs] == [
        ("build.py", "p", True),
        ("request.json", "r", False),
    ]
    assert argv_of(task) == ("python3", "/task/in/build.py")
    assert task.outputs == ("layer.squashfs", "resolved.json")
    assert (task.pool, task.trace, task.packages) == ("builders", TraceProfile.AUDIT, Packages())
    assert [problem.field for problem in all_problems(task, POOLS)] == ["entrypoint"]


def test_a_builder_is_traced_as_its_pool_allows() -> None:
    full = replace(BUILDERS, traces=(TraceProfile.FULL,))
    assert builder("k" * 64, "v", full, program="p", request="r").trace is TraceProfile.FULL


def test_a_closed_seal_of_any_name_is_refused() -> None:
    pools = {**POOLS, "builders": replace(BUILDERS, seals=(Seal("mine", 1, Network.NONE), OPEN))}
    assert "the seal of pool builders is mine" in told(spec("numpy"), pools)[0]


def test_a_process_is_pointed_at_its_layer() -> None:
    assert environment(Packages()) == {}
    assert environment(Packages("numpy")) == {
        "PYTHONUSERBASE": "/task/layer",
        "PATH": "/task/layer/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
    }
