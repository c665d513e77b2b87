"""A task that ends well: what went in, what came out, what is known of it, and the proof that its machine is gone."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

from orchestrator.cli import output
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.reports.findings import findings_of
from orchestrator.reports.text import lines
from tests.journeys.house import House


def file(path: str, data: bytes, media_type: str) -> dict[str, object]:
    facts = {"path": path, "shown": path, "size": len(data), "mode": "0644", "media_type": media_type}
    return {**facts, "sha256": hashlib.sha256(data).hexdigest()}


async def test_from_submit_to_report(house: House, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    (data / "empty").mkdir(parents=True)
    (data / "two words").write_text("numbers\n")
    script = "echo out; echo err >&2; echo 1,2 > table.csv; write plots/a.png 70000; echo junk > log.txt"
    task = await house.submit(script, inputs=(data,), outputs=("*.csv", "plots/**"))
    done = await house.run(task)

    assert (done.state, done.reason, done.exit_code) == (TaskState.FINISHED, None, 0)
    assert await house.stages(task) == list(Stage)
    assert house.log(task, "stdout") == b"out\n"
    assert house.log(task, "stderr") == b"err\n"
    [row] = await house.store.attempts.of_task(task.id)
    findings = findings_of(house.artifacts, task, row)
    assert findings is not None
    assert [program["path"] for program in findings["programs"]["listed"]] == ["/bin/sh"]
    assert house.guests.asked(task) == ["arm", "stage-in", "start"]

    report = await house.report(task)
    [attempt] = report["attempts"]
    assert attempt["outcome"] == {"kind": "Exited", "code": 0}
    assert [stage["stage"] for stage in attempt["stages"]] == list(Stage)
    assert all(stage["seconds"] >= 0 for stage in attempt["stages"])
    assert attempt["outputs"] == {
        "complete": True,
        "files": [
            file("plots/a.png", bytes(70000), "application/octet-stream"),
            file("table.csv", b"1,2\n", "text/plain"),
        ],
    }
    assert attempt["machine"]["kernel"] == "simulated"
    image = attempt["machine"]["image"]
    assert f"{image['name']}-{image['version']}" == attempt["vm"]["image_version"]
    assert datetime.fromisoformat(image["built_at"]).tzinfo is not None
    assert {"recipe", "template_id", "disk_image_id"} <= image.keys()
    assert attempt["machine"]["seal"] and not any(probe["reached"] for probe in attempt["machine"]["seal"])
    assert attempt["vm"]["state"] == VmState.DESTROYED
    gone = attempt["vm"]["gone"]
    assert (gone["vm"], gone["state"], gone["disks"]["gone"]) == (attempt["vm"]["cloud_id"], "DONE", True)
    assert attempt["vm"]["proof"].startswith(f"OpenNebula says DONE of VM {gone['vm']} since 20")
    output.as_json(report)
    assert json.loads(capsys.readouterr().out)["attempts"][0]["outputs"]["complete"] is True
    assert any(line.startswith("  proof") for line in lines(report))

    results = tmp_path / "results"
    house.artifacts.export(task.id, 1, results)
    assert (results / "table.csv").read_text() == "1,2\n"
    assert sorted(path.name for path in results.rglob("*") if path.is_file()) == ["a.png", "table.csv"]


async def test_the_event_log_tells_the_whole_life(house: House) -> None:
    task = await house.submit("true")
    await house.run(task)
    events = await house.store.events.list(task_id=task.id)
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))
    told = [
        " ".join([event.kind, *(str(event.data[key]) for key in ("stage", "state") if key in event.data)])
        for event in events
    ]
    assert told == [
        "task.submitted",
        "task.claimed",
        "task.stage PROVISIONING",
        "vm.requested REQUESTED",
        "vm.known REQUESTED",
        "vm.moved BOOTING",
        "task.stage CONNECTING",
        "vm.moved READY",
        "vm.moved IN_USE",
        "task.stage PREPARING",
        "task.stage SEALING",
        "task.stage STAGING_IN",
        "task.stage EXECUTING",
        "task.stage STAGING_OUT",
        "task.stage DESTROYING",
        "vm.moved DESTROYING",
        "vm.moved DESTROYED",
        "task.finished",
    ]


async def test_each_task_has_a_machine_and_a_host_key_of_its_own(house: House) -> None:
    tasks = [await house.submit("true") for _ in range(2)]
    for task in tasks:
        await house.run(task)
    [first], [second] = [await house.store.vms.of_task(task.id) for task in tasks]
    assert first.cloud_id != second.cloud_id
    assert first.host_key != second.host_key
