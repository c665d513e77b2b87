"""Where Debian's packages come from: what apt of this machine was told, else what the image's definition says."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass

from orchestrator.provisioning.definition import Definition

_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ARCHITECTURE)"
_PROXY = "Acquire::http::Proxy"


@dataclass(frozen=True, slots=True)
class AptSources:
    """`lines`: as in sources.list. `proxy`: an address for HTTP, "" for none."""

    lines: tuple[str, ...]
    proxy: str = ""


async def apt_sources(definition: Definition) -> AptSources:
    """The sources for the image's suite. This machine's own when its apt has the suite (it may be told of a mirror near
    by, or of a proxy), else the definition's."""
    targets, proxy = "", ""
    if shutil.which("apt-get"):
        targets = await _output("apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages")
        proxy = await _output("apt-config", "dump", "--format", "%v", _PROXY)
    lines = _lines(targets, definition) or (
        f"deb {definition.mirror} {definition.suite} {' '.join(definition.components)}",
        f"deb {definition.mirror} {definition.suite}-updates {' '.join(definition.components)}",
        f"deb {definition.security_mirror} {definition.suite}-security {' '.join(definition.components)}",
    )
    return AptSources(lines, proxy.strip() or os.environ.get("http_proxy", ""))


def _lines(targets: str, definition: Definition) -> tuple[str, ...]:
    """This machine's own sources for the suite and its updates; none when the suite itself is not among them."""
    suites = [definition.suite, f"{definition.suite}-updates", f"{definition.suite}-security"]
    found: list[str] = []
    for target in targets.splitlines():
        uri, _, rest = target.partition("|")
        suite, component, architecture = [*rest.split("|"), "", ""][:3]
        if not uri.startswith(("http://", "https://")):  # a guest could not read a file or a CD-ROM of this machine
            continue
        if suite in suites and component in definition.components and architecture == "amd64":
            found.append(f"deb {uri} {suite} {component}")
    complete = any(line.split()[2] == definition.suite for line in found)
    return tuple(dict.fromkeys(found)) if complete else ()


async def _output(*command: str) -> str:
    """What a command prints; "" when it fails: there is a default for everything asked here."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    return output.decode(errors="replace") if process.returncode == 0 else ""
