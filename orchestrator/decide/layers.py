"""Layers: what of a task's packages is taken, what a layer is named by, and the task that makes it.

A layer is one read-only squashfs with everything that the packages of a task come to. It is made by a *builder*, a task
in a pool that has a way out and that is never given a task's inputs; see docs/decisions/0018.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.decide import requirements
from orchestrator.decide.entrypoint import PYTHON
from orchestrator.decide.requirements import WrongLine
from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Entrypoint, InputSpec, Packages, TaskSpec, TraceProfile

LAYER = "/task/layer"
"""Where a task finds its layer."""
SQUASHFS = "layer.squashfs"
RESOLVED = "resolved.json"
IMAGE_VARIABLE = "MAYFLY_IMAGE_VERSION"
"""Of a builder: the version of the base image that it must run on."""
MOST_DEBIAN = 200
LONGEST_RESOLVED = 1 << 20
"""Bytes of what a builder tells of the packages that it installed."""
_FORMAT = 1
_LONGEST_NAME = 500
_DEBIAN = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a layer is made of: requirements as pip reads them, Debian packages, each in order and once; whether every
    requirement has hashes."""

    requirements: tuple[str, ...]
    debian: tuple[str, ...]
    hashed: bool = False

    @classmethod
    def of(cls, packages: Packages) -> Recipe:
        """Raises WrongLine."""
        lines, hashed = requirements.normalised(packages.requirements)
        return cls(lines, tuple(sorted(set(packages.debian))), hashed)

    def key(self, image: Mapping[str, Any], builders: Pool) -> str:
        """The layer's name: of the recipe, the base image's version (`image`: what tells it from every other), its
        interpreter, and where packages come from. 64 hexadecimal digits."""
        facts = {
            "format": _FORMAT,
            "requirements": self.requirements,
            "debian": self.debian,
            "image": dict(image),
            "interpreter": PYTHON,
            "sources": dataclasses.asdict(builders.layer_sources),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()

    def request(self, builders: Pool) -> dict[str, Any]:
        """What the builder's program is told: `request.json`, see `guest/scripts/build_layer.py`."""
        return {
            "requirements": "".join(f"{line}\n" for line in self.requirements),
            "hashed": self.hashed,
            "debian": list(self.debian),
            **dataclasses.asdict(builders.layer_sources),
        }


def problems(spec: TaskSpec, pools: Mapping[str, Pool]) -> Iterator[InvalidTask]:
    """All that is wrong with the packages of `spec`, whose pool is one of `pools`."""
    if spec.entrypoint is Entrypoint.LAYER:
        yield InvalidTask("entrypoint", "layer is for Mayfly's own builders", "give --requirements to another task")
    elif served := sorted(name for name, pool in pools.items() if pool.layers == spec.pool != name):
        # its machines have a way out, and no data belongs into them
        why = f"pool {spec.pool} installs packages for {', '.join(served)}, and runs nothing else"
        yield InvalidTask("pool", why, "give the task to another pool")
    packages, pool = spec.packages, pools[spec.pool]
    if not packages:
        return
    field = "requirements" if packages.requirements.strip() else "package"
    if wrong := no_builders(pool, pools):
        yield InvalidTask(field, *wrong)
    size = len(packages.requirements.encode("utf-8", "surrogatepass"))
    if size > requirements.LONGEST:
        problem = f"has {size} bytes, at most {requirements.LONGEST} are taken"
        yield InvalidTask("requirements", problem, "name what is needed, and not all that there is")
    else:
        try:
            requirements.normalised(packages.requirements)
        except WrongLine as wrong_line:
            problem = f"line {wrong_line.number}: {wrong_line.problem}"
            yield InvalidTask("requirements", problem, wrong_line.remedy)
    yield from _debian(packages.debian, pool)


def no_builders(pool: Pool, pools: Mapping[str, Pool]) -> tuple[str, str] | None:
    """Why nothing can be installed for tasks of the pool, and the remedy; None when it can."""
    if not pool.layers:
        return f"pool {pool.name} installs no packages", "its mayfly_layers can name a pool that does"
    builders = pools.get(pool.layers)
    remedy = f"put mayfly_layers of pool {pool.name} right in the inventory"
    if builders is None:
        return f"packages for pool {pool.name} are installed in pool {pool.layers!r}, which there is not", remedy
    if builders.seal.closed:
        why = f"the seal of pool {builders.name} is {builders.seal.name}, so that it reaches no index"
        return why, "its mayfly_seals must begin with open"
    if builders.image != pool.image:
        return f"pools {pool.name} and {builders.name} are not of the same image", remedy
    return None


def _debian(names: tuple[str, ...], pool: Pool) -> Iterator[InvalidTask]:
    if len(names) > MOST_DEBIAN:
        yield InvalidTask("package", f"{len(names)} packages, at most {MOST_DEBIAN} are taken", "name fewer")
        return
    for name in names:
        if not _DEBIAN.fullmatch(name):
            remedy = "lower case letters, digits, + - and . make one: Debian's policy, 5.6.7; no version"
            yield InvalidTask("package", f"{name[:100]!r} is no name of a Debian package", remedy)
        elif not any(fnmatch.fnmatchcase(name, pattern) for pattern in pool.debian_packages):
            allowed = ", ".join(pool.debian_packages) or "none"
            problem = f"pool {pool.name} does not allow the Debian package {name}"
            yield InvalidTask("package", problem, f"it allows {allowed}: mayfly_debian_packages")


def builder(key: str, image_version: str, pool: Pool, *, program: str, request: str) -> TaskSpec:
    """The task that makes the layer, in the pool of builders. program, request: trees of the artifact store, which are
    all that it is given."""
    return TaskSpec(
        pool=pool.name,
        command=(),
        entrypoint=Entrypoint.LAYER,
        inputs=(
            InputSpec("build.py", "build.py", blob=program, code=True),
            InputSpec("request.json", "request.json", blob=request),
        ),
        outputs=(SQUASHFS, RESOLVED),
        environment={IMAGE_VARIABLE: image_version},
        trace=TraceProfile.AUDIT if TraceProfile.AUDIT in pool.traces else pool.traces[0],
        name=f"packages of layer {key[:12]}",
    )


def resolved(text: bytes) -> tuple[str, ...]:
    """The packages that a builder says it installed, as "name==version". Its machine may lie. Raises ValueError.

    >>> resolved(b'{"packages": [{"name": "six", "version": "1.16.0"}], "debian": []}')
    ('six==1.16.0',)
    """
    if len(text) > LONGEST_RESOLVED:
        raise ValueError(f"{RESOLVED} has more than {LONGEST_RESOLVED} bytes")
    try:
        said = json.loads(text)
        each = [*said["packages"], *said["debian"]]
        names = tuple(f"{one['name']}=={one['version']}" for one in each)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{RESOLVED} is not what a builder writes") from error
    if not all(name.isascii() and name.isprintable() and len(name) < _LONGEST_NAME for name in names):
        raise ValueError(f"{RESOLVED} has names that are none")
    return names


def environment(packages: Packages) -> dict[str, str]:
    """What points a process at its layer; none without packages. The layer is to Python a user's own folder (PEP 370):
    after the standard library, before what the image has, its .pth files heeded.

    >>> sorted(environment(Packages("numpy")))
    ['PATH', 'PYTHONUSERBASE']
    """
    return {"PYTHONUSERBASE": LAYER, "PATH": f"{LAYER}/bin:{_PATH}"} if packages else {}
