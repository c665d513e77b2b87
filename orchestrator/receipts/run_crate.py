"""The metadata of a crate: what a Process Run Crate 0.5 (https://w3id.org/ro/wfrun/process/0.5) says of a run.

Each attempt is a CreateAction; its instrument is the command. Inputs are named by their hashes: they are not in the
crate.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.model.creativework import CreativeWork
from rocrate.model.file import File
from rocrate.model.person import Person
from rocrate.rocrate import ROCrate

from orchestrator.domain.task import TaskState
from orchestrator.receipts import names
from orchestrator.receipts.statement import Receipt, Statement

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
VERSION = "1.1"
"""Of RO-Crate, that the profile builds on."""
_TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
_STATUS = {True: "http://schema.org/CompletedActionStatus", False: "http://schema.org/FailedActionStatus"}
_TYPES = {
    names.RECEIPT: "application/vnd.dsse.envelope.v1+json",
    names.CRATE: "application/vnd.dsse.envelope.v1+json",
    names.MANIFEST: "application/json",
    names.FINDINGS: "application/json",
}
_SAID = {
    names.RECEIPT: "The signed receipt of the attempt",
    names.CRATE: "The signed list of every file of this crate",
    names.MANIFEST: "The outputs: names, sizes, hashes",
    names.FINDINGS: "What the process did, by its trace",
    "logs/stdout": "What the process wrote to its standard output",
    "logs/stderr": "What the process wrote to its standard error",
    "logs/trace": "The system calls of the process",
    "logs/trace.gz": "The system calls of the process, compressed",
}


def metadata(statements: Sequence[Statement], files: Mapping[str, tuple[str, int]], withheld: int) -> bytes:
    """The text of ro-crate-metadata.json. statements: of the attempts, the last one first. files: what is in the crate,
    name → sha256 and size. withheld: how many files are not, for nobody has released them."""
    last = statements[0]
    types = {names.file_of(each.name): each.annotations.media_type for each in last.subject}
    crate = ROCrate(version=VERSION)
    crate.metadata.extra_terms.update(_TERMS)
    task = last.predicate.task
    crate.name = f"Task {task.id}" + (f": {task.name}" if task.name else "")
    crate.description = _description(last.predicate, withheld)
    crate.datePublished = datetime.fromisoformat(last.predicate.attempt.finished_at)
    crate.license = "The rights of what is in it are those of its owners; none are given by this crate."
    profile = CreativeWork(crate, PROFILE, properties={"name": "Process Run Crate", "version": "0.5"})
    crate.root_dataset["conformsTo"] = crate.add(profile)
    entities = {
        name: crate.add(File(crate, dest_path=name, properties=_file(name, sha256, size, types.get(name))))
        for name, (sha256, size) in files.items()
    }
    entities[names.CRATE] = crate.add(File(crate, dest_path=names.CRATE, properties=_file(names.CRATE, "", None, None)))
    agent = crate.add(Person(crate, "#submitter", properties={"name": task.submitted_by or "not recorded"}))
    instrument = crate.add(_instrument(crate, last.predicate))
    objects = [crate.add(each) for each in _inputs(crate, last.predicate)]
    actions = []
    for statement in statements:
        is_last = statement is last
        receipt = statement.predicate
        name = names.RECEIPT if is_last else names.earlier_receipt(receipt.attempt.number)
        results = [entity for path, entity in entities.items() if is_last and path.startswith(("outputs/", "logs/"))]
        action = ContextEntity(crate, f"#attempt-{receipt.attempt.number}", properties=_action(receipt))
        action["instrument"], action["agent"] = instrument, agent
        action["object"], action["result"] = _one_or_all(objects), _one_or_all([*results, entities[name]])
        actions.append(crate.add(action))
    crate.root_dataset["mentions"] = _one_or_all(actions)
    graph = crate.metadata.generate()
    return json.dumps(graph, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _one_or_all(entities: list[Any]) -> Any:
    """A list of one is written as that one: RO-Crate 1.1, appendix on JSON-LD."""
    return entities[0] if len(entities) == 1 else entities


def _description(receipt: Receipt, withheld: int) -> str:
    told = f"One process that Mayfly {receipt.mayfly_version} ran in a virtual machine of its own, with its receipt."
    return told + (f" {withheld} files are withheld: nobody has released them." if withheld else "")


def _file(name: str, sha256: str, size: int | None, media_type: str | None) -> dict[str, Any]:
    last = name.rsplit("/", 1)[-1]
    said = _SAID.get(name) or _SAID.get(last if name.startswith("attempts/") else "")
    media = media_type or _TYPES.get(last)
    return {
        "name": name,
        **({"description": said} if said else {}),
        **({"sha256": sha256} if sha256 else {}),
        **({"contentSize": str(size)} if size is not None else {}),
        **({"encodingFormat": media} if media else {}),
    }


def _instrument(crate: ROCrate, receipt: Receipt) -> ContextEntity:
    code = [each for each in receipt.process.inputs if each.code]
    version = " ".join(f"{each.dest}=sha256:{each.sha256}" for each in code) or f"image {_image(receipt)}"
    command = shlex.join(receipt.process.command) or f"entry point {receipt.process.entrypoint}"
    about = {"@type": "SoftwareApplication", "name": command, "softwareVersion": version}
    return ContextEntity(crate, "#process", properties=about)


def _image(receipt: Receipt) -> str:
    return "not known" if receipt.machine is None else receipt.machine.image_version


def _inputs(crate: ROCrate, receipt: Receipt) -> list[ContextEntity]:
    return [
        ContextEntity(
            crate,
            f"#input-{number}",
            properties={
                "@type": "CreativeWork",
                "name": each.dest,
                "description": f"{'Code' if each.code else 'Data'} at /task/in/{each.dest}; it is not in this crate.",
                "identifier": f"sha256:{each.sha256}",
            },
        )
        for number, each in enumerate(receipt.process.inputs, 1)
    ]


def _action(receipt: Receipt) -> dict[str, Any]:
    end, attempt = receipt.end, receipt.attempt
    good = end is not None and end.state == TaskState.FINISHED
    profile = receipt.seal.profile
    sealed = "not recorded" if profile is None else f"{profile.name}/{profile.version}"
    machine = f" in a machine of image {_image(receipt)}, seal {sealed}, trace {receipt.trace.profile}"
    return {
        "@type": "CreateAction",
        "name": f"Attempt {attempt.number} of task {receipt.task.id}",
        "description": f"{'no end is recorded' if end is None else end.message},{machine}",
        "startTime": _time(attempt.started_at),
        "endTime": _time(attempt.finished_at),
        "actionStatus": _STATUS[good],
        **({} if good or end is None else {"error": end.message}),
    }


def _time(instant: str) -> str:
    return datetime.fromisoformat(instant).isoformat(timespec="milliseconds")
