"""Installs packages, and makes one file system of what came: the program of a builder's task.

It is given `request.json` beside itself, and nothing else: see `orchestrator.guest.layer`. It leaves in /task/out, its
working directory:

    layer.squashfs   bin/, lib/ and share/ as of a user's own folder of Python's (PYTHONUSERBASE), and debian/, the
                     files of Debian packages as they lie below /
    resolved.json    what was installed: names, versions, and the sha256 of each file that it came in

The same files make the same bytes: no times, no owners, one order. When something cannot be installed, what pip or apt
said of it is the last line of stderr.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import platform
import py_compile
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, NoReturn

WORK = Path("/task/tmp/build")
LAYER = WORK / "layer"
DEBIAN = LAYER / "debian"
MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Folders of / that are links into /usr."""
AUTHORITIES, AUTHORITIES_FILE = WORK / "authorities", WORK / "authorities.pem"
SYSTEMS_AUTHORITIES = Path("/etc/ssl/certs")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
DPKG_STATUS = "/var/lib/dpkg/status"
KEPT_LINES = 200
LONGEST_REASON = 1500
COMPLAINT = re.compile(rb"(ERROR|E): |error: ")
"""What pip's and apt's own complaints begin with."""
UNCOMPILED = re.compile(r"/(tests|test|testing)/")
"""Modules that hardly anybody imports, and that are most of what there is to compile."""


def main() -> None:
    request = json.loads(Path(__file__).with_name("request.json").read_text())
    LAYER.mkdir(parents=True)
    trust(request["ca_bundle"])
    resolved: dict[str, Any] = {"python": platform.python_version(), "packages": [], "debian": []}
    if request["debian"]:
        resolved["debian"] = install_debian(request)
    if request["requirements"]:
        resolved["packages"] = install_python(request)
    Path("resolved.json").write_text(json.dumps(resolved, indent=1, sort_keys=True) + "\n")
    pack()


def trust(further: str) -> None:
    """The system's authorities, and those that the site names: as a folder of links by their hashes, of which OpenSSL
    reads the one that it needs (to read all takes seconds in an emulated machine, and then an index has hung up); and
    in one file, as apt wants them."""
    system = SYSTEMS_AUTHORITIES / "ca-certificates.crt"
    known = system.read_text() if system.exists() else ""
    new = [each for each in CERTIFICATE.findall(further) if each not in known]
    AUTHORITIES.mkdir()
    for number, each in enumerate(new):
        (AUTHORITIES / f"site-{number}.pem").write_text(each + "\n")
    if new:
        run(["openssl", "rehash", str(AUTHORITIES)], "openssl")
    taken = {path.name for path in AUTHORITIES.iterdir()}
    for path in SYSTEMS_AUTHORITIES.glob("*.[0-9]"):
        name, number = path.stem, 0
        while f"{name}.{number}" in taken:
            number += 1
        (AUTHORITIES / f"{name}.{number}").symlink_to(path)
        taken.add(f"{name}.{number}")
    AUTHORITIES_FILE.write_text("\n".join([known, *new]) + "\n")


def install_python(request: dict[str, Any]) -> list[dict[str, str]]:
    """With pip, as if for a user whose folder is the layer, nothing that the image has being taken for installed."""
    listed, report = WORK / "requirements.txt", WORK / "report.json"
    listed.write_text(request["requirements"])
    words = [
        sys.executable, "-m", "pip", "install", "--user", "--ignore-installed", "--break-system-packages",
        "--no-compile", "--no-input", "--no-cache-dir", "--no-color", "--no-warn-script-location",
        "--disable-pip-version-check",
        "--progress-bar=off", "--retries=5", "--timeout=60", f"--cert={AUTHORITIES}", f"--report={report}",
    ]  # fmt: skip
    for option in ("index_url", "proxy"):
        if request[option]:
            words.append(f"--{option.replace('_', '-')}={request[option]}")
    if request["hashed"]:
        words.append("--require-hashes")
    say("installing Python packages")
    run([*words, "-r", str(listed)], "pip", PYTHONUSERBASE=str(LAYER), PIP_CONFIG_FILE=os.devnull)
    compile_all()
    packages = json.loads(report.read_text())["install"] if report.exists() else []
    return sorted((installed(each) for each in packages), key=lambda each: each["name"])


def installed(item: dict[str, Any]) -> dict[str, str]:
    """One package of pip's report: https://pip.pypa.io/en/stable/reference/installation-report/."""
    archive = item["download_info"].get("archive_info", {})
    sha256 = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    return {"name": item["metadata"]["name"], "version": item["metadata"]["version"], "sha256": sha256}


def compile_all() -> None:
    """Without what changes from build to build: a compiled module is not checked against its text, which nobody can
    change."""
    say("compiling")
    compileall.compile_dir(
        LAYER, quiet=2, rx=UNCOMPILED, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        stripdir=str(LAYER), prependdir="/task/layer",
    )  # fmt: skip


def install_debian(request: dict[str, Any]) -> list[dict[str, str]]:
    """The packages, and what they need that the image lacks, unpacked; none of their scripts is run."""
    state, cache = WORK / "apt/state", WORK / "apt/cache"
    (state / "lists/partial").mkdir(parents=True)
    (cache / "archives/partial").mkdir(parents=True)
    options = {
        "Dir::State": state, "Dir::State::status": DPKG_STATUS, "Dir::Cache": cache,
        "Debug::NoLocking": "1", "APT::Install-Recommends": "0", "Acquire::Languages": "none", "Acquire::Retries": "3",
        "Acquire::https::CaInfo": AUTHORITIES_FILE,
    }  # fmt: skip
    if request["proxy"]:
        options |= {"Acquire::http::Proxy": request["proxy"], "Acquire::https::Proxy": request["proxy"]}
    words = ["apt-get", "--quiet=2", "--yes", *(word for name in options for word in ("-o", f"{name}={options[name]}"))]
    for name in MERGED:
        (DEBIAN / "usr" / name).mkdir(parents=True)
        (DEBIAN / name).symlink_to(f"usr/{name}")
    say("installing Debian packages")
    run([*words, "update", "--error-on=any"], "apt", LC_ALL="C")
    run([*words, "install", "--download-only", "--", *request["debian"]], "apt", LC_ALL="C")
    return [unpacked(each) for each in sorted(cache.glob("archives/*.deb"))]


def unpacked(path: Path) -> dict[str, str]:
    """The facts of a package whose files are in the layer now."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    asked = ["dpkg-deb", "--showformat=${Package} ${Version}", "--show", str(path)]
    name, version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    # as dpkg-deb --extract, but into the folders that usr-is-merged has links to
    files = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", f"--directory={DEBIAN}"]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as tarfile:
        run(files, "tar", stdin=tarfile.stdout)
    path.unlink()
    return {"name": name, "version": version, "sha256": sha256}


def pack() -> None:
    """See mksquashfs(1). lz4: in an emulated machine numpy and pandas are packed in 5 s, and not in 30 as with gzip or
    zstd at their lowest, and no other is read back faster; what goes over the wire is a third more."""
    say("packing")
    run(
        ["mksquashfs", str(LAYER), "layer.squashfs", "-all-root", "-mkfs-time", "0", "-all-time", "0", "-no-xattrs",
         "-no-exports", "-noappend", "-no-progress", "-quiet", "-comp", "lz4"],
        "mksquashfs",
    )  # fmt: skip


def run(words: list[str], what: str, *, stdin: IO[bytes] | None = None, **variables: str) -> None:
    """Run a program, and copy what it says to stdout. When it fails, what it said of that is the last line of stderr,
    and this ends."""
    said: list[bytes] = []
    with subprocess.Popen(
        words,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
    ) as process:
        for line in process.stdout or ():
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            said = [*said[-KEPT_LINES:], line]
    if process.returncode:
        fail(f"{what}: {reason(said) or f'exited with {process.returncode}'}")


def reason(said: list[bytes]) -> str:
    """From the first complaint on; all of it when there is none."""
    first = next((at for at, line in enumerate(said) if COMPLAINT.match(line)), max(len(said) - 10, 0))
    return " ".join(b" ".join(said[first:]).decode(errors="replace").split())[:LONGEST_REASON]


def fail(why: str) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    sys.exit(1)


def say(what: str) -> None:
    print(f"== {what}", flush=True)


if __name__ == "__main__":
    main()
