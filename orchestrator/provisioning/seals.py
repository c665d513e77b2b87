"""Seal profiles, as the files of `images/seals/` say them."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.errors import UserError
from orchestrator.domain.seal import Network, Seal
from orchestrator.settings import data_root

_Call = Annotated[str, Field(pattern=r"^@?[a-z][a-z0-9_-]{0,63}$")]


class _File(BaseModel):
    """What a file `images/seals/NAME.yml` holds; see `domain.seal.Seal` for what each key means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(strict=True, ge=1)]
    network: Network
    others_hidden: bool
    tmp_executable: bool
    denied_calls: tuple[_Call, ...]


def seal_from(name: object) -> Seal:
    """The profile of this name. Raises ValueError when there is none, UserError when its file is wrong."""
    known = seals(data_root() / "images" / "seals")
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"no such seal profile: {hint}")
    return known[name]


@cache
def seals(folder: Path) -> dict[str, Seal]:
    """Every profile of this folder, by name. Raises UserError naming the file and the key that is wrong."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.yml"))}


def _read(path: Path) -> Seal:
    try:
        said = _File.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        complaint = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in complaint["loc"])
        raise UserError(f"{path}, {where}", complaint["msg"]) from error
    except yaml.YAMLError as error:
        raise UserError(str(path), f"not YAML: {error}") from error
    return Seal(path.stem, **said.model_dump())
