"""Where a pool that builds layers gets packages from, as an inventory says it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.pool import LayerSources

_Url = Annotated[str, Field(max_length=2000)]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    index_url: _Url = ""
    proxy: _Url = ""
    ca_bundle: Annotated[str, Field(max_length=4096)] = ""


def sources_from(said: object) -> LayerSources:
    """`index_url`, `proxy` and `ca_bundle` (an absolute path of a PEM file), each optional. Raises ValueError."""
    try:
        sources = _Said.model_validate(said)
    except ValidationError as error:
        complaint = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in complaint["loc"])
        raise ValueError(f"{where}: {complaint['msg']}" if where else "write index_url, proxy or ca_bundle") from error
    for name, url in (("index_url", sources.index_url), ("proxy", sources.proxy)):
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"{name}: {url!r} is no http or https address")
    return LayerSources(sources.index_url, sources.proxy, _authorities(sources.ca_bundle))


def _authorities(path: str) -> str:
    if not path:
        return ""
    if not Path(path).is_absolute():
        raise ValueError(f"ca_bundle: {path!r} is not an absolute path")
    try:
        text = Path(path).read_text()
        ssl.create_default_context(cadata=text)
    except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
        raise ValueError(f"ca_bundle: {path} cannot be read as certificates in PEM: {error}") from error
    return text
