"""The variables of a pool, as operators write them, checked. docs/reference/pools.md explains each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from orchestrator.decide.periods import Numbers, usual, within
from orchestrator.domain.errors import InvalidPool
from orchestrator.domain.pool import Disclosure, LayerSources, Period, Placement, Pool, Warm
from orchestrator.domain.seal import Seal
from orchestrator.domain.task import TraceProfile
from orchestrator.provisioning.layer_sources import sources_from
from orchestrator.provisioning.periods import Count, Factor, Ready, period_from
from orchestrator.provisioning.quantities import Size, Time
from orchestrator.provisioning.seals import seal_from

PREFIX = "mayfly_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_UNSAID: Any = None  # never seen: only what an inventory said is passed on. A null that it said is an error

Name = Annotated[str, Field(min_length=1, max_length=128)]
Seals = Annotated[tuple[Annotated[Seal, PlainValidator(seal_from)], ...], Field(min_length=1)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1_000_000, allow_inf_nan=False)]


class PoolVariables(BaseModel):
    """What an inventory may say of a pool: each field is the variable `mayfly_<field>`, but for `ansible_port`.

    Only the image is required; for what is left out, `domain.pool.Pool` has the defaults. Variables without the prefix
    are anybody's and are ignored; one with it that is not here is an error, so that no misspelling passes in silence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Name
    cpus: Count = Field(_UNSAID)
    memory: Size = Field(_UNSAID, serialization_alias="memory_bytes")
    network: Name = Field(_UNSAID)
    ansible_port: Annotated[int, Field(strict=True, ge=1, le=65535)] = Field(_UNSAID, serialization_alias="ssh_port")
    max_vms: Count = Field(_UNSAID)
    default_timeout: Time = Field(_UNSAID, serialization_alias="default_timeout_seconds")
    max_timeout: Time = Field(_UNSAID, serialization_alias="max_timeout_seconds")
    task_memory: Size = Field(_UNSAID, serialization_alias="task_memory_bytes")
    max_processes: Count = Field(_UNSAID)
    boot_timeout: Time = Field(_UNSAID, serialization_alias="boot_timeout_seconds")
    launch_timeout: Time = Field(_UNSAID, serialization_alias="launch_timeout_seconds")
    kill_grace: Time = Field(_UNSAID, serialization_alias="kill_grace_seconds")
    max_output: Size = Field(_UNSAID, serialization_alias="max_output_bytes")
    max_log: Size = Field(_UNSAID, serialization_alias="max_log_bytes")
    max_waiting: Count = Field(_UNSAID)
    max_queue_time: Time = Field(_UNSAID, serialization_alias="max_queue_seconds")
    staging_timeout: Time = Field(_UNSAID, serialization_alias="staging_timeout_seconds")
    max_attempts: Count = Field(_UNSAID)
    retry_backoff: Time = Field(_UNSAID, serialization_alias="retry_backoff_seconds")
    retry_backoff_max: Time = Field(_UNSAID, serialization_alias="retry_backoff_max_seconds")
    max_pending_vms: Count = Field(_UNSAID)
    retention: Time = Field(_UNSAID, serialization_alias="retention_seconds")
    min_ready: Ready = Field(_UNSAID)
    max_ready: Ready = Field(_UNSAID)
    scale_factor: Factor = Field(_UNSAID)
    max_ready_age: Time = Field(_UNSAID, serialization_alias="max_ready_age_seconds")
    launch_rate: Rate = Field(_UNSAID)
    launch_burst: Count = Field(_UNSAID)
    max_failures: Count = Field(_UNSAID)
    quarantine: Time = Field(_UNSAID, serialization_alias="quarantine_seconds")
    periods: tuple[Annotated[Period, PlainValidator(period_from)], ...] = Field(_UNSAID)
    placement: Placement = Field(_UNSAID)
    seals: Seals = Field(_UNSAID)
    traces: Annotated[tuple[TraceProfile, ...], Field(min_length=1)] = Field(_UNSAID)
    disclosure: Disclosure = Field(_UNSAID)
    max_open_files: Count = Field(_UNSAID)
    max_scratch: Size = Field(_UNSAID, serialization_alias="max_scratch_bytes")
    max_output_files: Count = Field(_UNSAID)
    max_output_depth: Count = Field(_UNSAID)
    layers: Name = Field(_UNSAID)
    debian_packages: tuple[Name, ...] = Field(_UNSAID)
    layer_sources: Annotated[LayerSources, PlainValidator(sources_from)] = Field(_UNSAID)


def pool_from(name: str, variables: Mapping[str, Any]) -> Pool:
    """The pool that these variables of host `name` describe. Raises InvalidPool naming host, variable and remedy."""
    if not _NAME.fullmatch(name):
        raise InvalidPool(
            f"pool {name}", "not a name for a pool", "use letters, digits, '.', '_' and '-', at most 64 characters"
        )
    ours = {key.removeprefix(PREFIX): value for key, value in variables.items() if key.startswith(PREFIX)}
    if "ansible_port" in ours:
        raise InvalidPool(f"pool {name}, {PREFIX}ansible_port", "no such variable", "the port is ansible_port")
    if "ansible_port" in variables:
        ours["ansible_port"] = variables["ansible_port"]
    try:
        known = PoolVariables(**ours)
    except ValidationError as error:
        raise _refusal(name, error) from error
    fields = PoolVariables.model_fields
    said = {fields[field].serialization_alias or field: getattr(known, field) for field in known.model_fields_set}
    warm = Warm(**{field: said.pop(field) for field in Warm.__dataclass_fields__ if field in said})
    return _agreeing(Pool(name=name, **said, warm=warm))


def _refusal(name: str, error: ValidationError) -> InvalidPool:
    """The first of pydantic's complaints, in our words."""
    complaint = error.errors(include_url=False)[0]
    field = str(complaint["loc"][0])
    variable = field if field == "ansible_port" else PREFIX + field
    where = f"pool {name}, {variable}"
    if complaint["type"] == "extra_forbidden":
        known = {key: key if key == "ansible_port" else PREFIX + key for key in PoolVariables.model_fields}
        near = difflib.get_close_matches(field, known, n=1)
        remedy = f"did you mean {known[near[0]]}?" if near else "known are " + ", ".join(known.values())
        return InvalidPool(where, "no such variable", remedy)
    if variable == f"{PREFIX}periods" and len(complaint["loc"]) > 1:
        where += f", period {int(complaint['loc'][1]) + 1}"
    if complaint["type"] == "missing":
        return InvalidPool(where, "missing", "say which base image its machines boot: see mayfly image list")
    what = complaint["msg"].removeprefix("Value error, ")
    return InvalidPool(where, f"{complaint['input']!r} is not right", what[:1].lower() + what[1:])


def _agreeing(pool: Pool) -> Pool:
    """The pool, when its numbers agree with each other."""
    if pool.default_timeout_seconds > pool.max_timeout_seconds:
        raise InvalidPool(
            f"pool {pool.name}, {PREFIX}default_timeout",
            f"{pool.default_timeout_seconds:g} s is more than {PREFIX}max_timeout, {pool.max_timeout_seconds:g} s",
            "lower the one or raise the other",
        )
    if pool.task_memory_bytes is not None and pool.task_memory_bytes >= pool.memory_bytes:
        raise InvalidPool(
            f"pool {pool.name}, {PREFIX}task_memory",
            f"not below {PREFIX}memory, the whole machine's",
            "leave the machine's own system about 100M",
        )
    _agree(f"pool {pool.name}, {PREFIX}", usual(pool))
    for number, period in enumerate(pool.warm.periods, start=1):
        _agree(f"pool {pool.name}, {PREFIX}periods, period {number}, ", within(pool, period))
    return pool


def _agree(where: str, numbers: Numbers) -> None:
    """Raises InvalidPool. where: what the names of variables are written behind."""
    if numbers.min_ready > numbers.max_vms:
        raise InvalidPool(
            f"{where}min_ready",
            f"{numbers.min_ready} is more than max_vms, {numbers.max_vms}",
            "a ready machine is one of the pool's: lower the one or raise the other",
        )
    if numbers.max_ready is not None and numbers.max_ready < numbers.min_ready:
        raise InvalidPool(
            f"{where}max_ready",
            f"{numbers.max_ready} is less than min_ready, {numbers.min_ready}",
            "raise the one or lower the other",
        )
