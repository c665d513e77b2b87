"""What a receipt says, as data: an in-toto Statement v1 about one attempt, and one about a crate.

These classes are the schema: `schema` writes docs/reference/receipt.schema.json from them, and whoever verifies reads a
statement with them, strictly. Sizes are in bytes, times in seconds, instants in ISO 8601 and UTC; null is "not known".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
RECEIPT_TYPE: Final = "urn:mayfly:receipt:1"
CRATE_TYPE: Final = "urn:mayfly:crate:1"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="A sha256, in hex.")]
Instant = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?\+00:00$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Digest(Part):
    sha256: Hash


class Facts(Part):
    """size: bytes. mode: permission bits, in octal. lines: newlines, of logs. cut: there was more, which is not kept.
    seen_bytes: how much the process wrote, of logs."""

    size: Count
    mode: str | None = None
    media_type: str | None = None
    lines: Count | None = None
    cut: bool | None = None
    seen_bytes: Count | None = None


class Subject(Part):
    """An artifact of the attempt. name: its path in a crate, as a relative URI: `outputs/…`, `logs/…`."""

    name: str
    digest: Digest
    annotations: Facts


class Task(Part):
    """As it was submitted. submitted_by: who, "" where that was not recorded."""

    id: str
    name: str
    pool: str
    frontend: str
    submitted_by: str
    submitted_at: Instant


class Stage(Part):
    stage: str
    started_at: Instant
    ended_at: Instant | None


class Attempt(Part):
    """stages: where the time went, in order. One that took a ready machine has none before STAGING_IN."""

    number: Annotated[int, Field(ge=1)]
    runner: str
    started_at: Instant
    finished_at: Instant
    stages: list[Stage]


class Earlier(Part):
    """An attempt before this one. receipt_sha256: of the file of its receipt."""

    number: Annotated[int, Field(ge=1)]
    reason: str | None
    receipt_sha256: Hash | None


class Disks(Part):
    """What was seen of the VM's disks in the cloud's system datastore. before: while the VM was. left: after its end.
    why_not: why nobody could look. gone: it was looked for them, and there are none."""

    folder: str
    before: list[str]
    left: list[str]
    why_not: str
    gone: bool


class Proof(Part):
    """says: in words. vm: OpenNebula's id. state: DONE; "" when OpenNebula knows no such VM. ended_at: by OpenNebula's
    clock. disks: null when nothing is said of them."""

    says: str
    vm: int | None
    state: str
    ended_at: str | None
    disks: Disks | None


class Machine(Part):
    """The VM. cloud_id: OpenNebula's. host_key: fingerprint of the key that was made for it. proof: how it is known
    that it is gone."""

    id: str
    cloud_id: int | None
    host: str | None
    host_key: str | None
    image_version: str
    state: str
    requested_at: Instant
    destroyed_at: Instant | None
    proof: Proof | None


class Input(Part):
    """dest: below /task/in. sha256: of its tree: what `mayfly hash` says. code: it is a program, and no data. pinned:
    the hash that was approved was given, and it was this."""

    dest: str
    sha256: Hash
    code: bool
    pinned: bool


class Layer(Part):
    """Packages that were installed before, elsewhere. sha256: of its tree. resolved: `name==version`."""

    key: str
    sha256: Hash | None
    resolved: list[str]


class Process(Part):
    """command: its words; of one that is no text in UTF-8 the bytes are escaped. environment: names of variables."""

    entrypoint: str
    command: list[str]
    environment: list[str]
    inputs: list[Input]
    layer: Layer | None


class Probe(Part):
    target: str
    reached: bool
    detail: str


class Profile(Part):
    name: str
    version: int


class Seal(Part):
    """probes: what was tried from inside the machine, before any input went in. outside: what the cloud says of its
    NICs and security groups."""

    profile: Profile | None
    probed_at: str | None
    probes: list[Probe] | None
    outside: JsonValue


class Trace(Part):
    """profile: what was asked for. recorded: how it went: fast path, fall-backs, where detail was cut, counts after
    that. sha256: of the trace's file; null when there is none. findings_sha256: of what was made of it."""

    profile: str
    sha256: Hash | None
    recorded: JsonValue
    findings_sha256: Hash | None


class Used(Part):
    cpu_seconds: Amount | None
    memory_peak_bytes: Count | None
    read_bytes: Count | None
    written_bytes: Count | None


class Exited(Part):
    kind: Literal["exited"]
    code: Annotated[int, Field(ge=0, le=255)]


class Signaled(Part):
    kind: Literal["signaled"]
    name: str


class OutOfMemory(Part):
    kind: Literal["out_of_memory"]
    limit_bytes: Count
    peak_bytes: Count | None


class DiskFull(Part):
    kind: Literal["disk_full"]
    where: str
    limit_bytes: Count
    code: int


class TimedOut(Part):
    kind: Literal["timed_out"]
    seconds: Amount


class Lost(Part):
    kind: Literal["lost"]
    why: str


Outcome = Annotated[Exited | Signaled | OutOfMemory | TimedOut | DiskFull | Lost, Field(discriminator="kind")]


class End(Part):
    """What was said of the task when the attempt was over. state QUEUED: it was to be tried again. exit_code: what
    `mayfly run` exits with."""

    state: Literal["FINISHED", "FAILED", "CANCELED", "QUEUED"]
    reason: str | None
    message: str
    exit_code: int | None


class Outputs(Part):
    """complete: nothing that was asked for is missing. listed: each file is a subject; else, as there are too many,
    only the manifest that names them all."""

    complete: bool
    listed: bool
    files: Count
    size: Count
    manifest_sha256: Hash


class Receipt(Part):
    """earlier: the attempts before this one, all of them. limits, disclosure: as they were in force; null where that
    was not recorded. outcome null: its process never ran."""

    mayfly_version: str
    task: Task
    attempt: Attempt
    earlier: list[Earlier]
    machine: Machine | None
    image: JsonValue
    process: Process
    seal: Seal
    trace: Trace
    limits: dict[str, int | float | None] | None
    outcome: Outcome | None
    usage: Used
    end: End | None
    outputs: Outputs | None
    disclosure: str | None


class Statement(Part):
    """The statement of one attempt."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[list[Subject], Field(min_length=1)]
    predicate_type: Annotated[Literal["urn:mayfly:receipt:1"], Field(alias="predicateType")] = RECEIPT_TYPE
    predicate: Receipt

    model_config = ConfigDict(populate_by_name=True, title="Mayfly receipt")


class Size(Part):
    size: Count


class CrateFile(Part):
    """name: its path in the crate."""

    name: str
    digest: Digest
    annotations: Size


class Crate(Part):
    """task: whose. withheld: subjects of its receipts that are not in the crate, for nobody has released them."""

    task: str
    withheld: list[str]
    withheld_because: str


class CrateStatement(Part):
    """The statement of a crate: every file in it, but the one that holds this."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[list[CrateFile], Field(min_length=1)]
    predicate_type: Annotated[Literal["urn:mayfly:crate:1"], Field(alias="predicateType")] = CRATE_TYPE
    predicate: Crate

    model_config = ConfigDict(populate_by_name=True, title="Mayfly crate")


def as_json(statement: Statement | CrateStatement) -> dict[str, Any]:
    """What is signed."""
    return statement.model_dump(mode="json", by_alias=True)
