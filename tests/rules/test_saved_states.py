"""Saved states as files: which machine one is of, what is told of a damaged one, which goes when there is no room."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import DiskSpec, HypervisorError, MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.saved_state import SavedState, StateBroken, read_state, seal_state
from orchestrator.localcloud.hypervisors.state_key import anonymous, state_key, why_no_state
from orchestrator.localcloud.hypervisors.states import States

MIB = 1 << 20


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    for name in ("image", "kernel", "initrd"):
        (tmp_path / name).write_text(name)
    return MachineSpec(
        vm_id=7,
        name="one",
        uuid="6a3f0c8e-7d3b-4b53-9b0c-1c7f1a2b3c4d",
        directory=tmp_path / "vms" / "7",
        cpus=1,
        memory_mb=512,
        disks=(DiskSpec(0, tmp_path / "image"),),
        nics=(NicSpec(0, "127.4.0.7", "02:00:7f:04:00:07", 2222, outbound=False),),
        context={"SET_HOSTNAME": "one"},
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        kernel_cmdline="root=/dev/vda",
    )


def key(spec: MachineSpec) -> str:
    return state_key(spec, "tcg", "7.2")


def test_what_one_machine_has_for_itself_makes_no_difference(spec: MachineSpec, tmp_path: Path) -> None:
    other = replace(
        spec,
        vm_id=8,
        name="two",
        uuid="00000000-0000-0000-0000-000000000001",
        directory=tmp_path / "vms" / "8",
        nics=(NicSpec(0, "127.4.0.8", "02:00:7f:04:00:08", 2323, outbound=True),),
        context={"SET_HOSTNAME": "two", "ETH0_IP": "10.0.2.15"},
    )
    assert key(other) == key(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 2},
        {"memory_mb": 1024},
        {"kernel_cmdline": "root=/dev/vda quiet"},
        {"nics": ()},
        {"disks": ()},
    ],
)
def test_another_size_is_another_state(spec: MachineSpec, change: dict[str, object]) -> None:
    assert key(replace(spec, **change)) != key(spec)  # type: ignore[arg-type]


def test_another_disk_size_qemu_or_accelerator_is_another_state(spec: MachineSpec) -> None:
    grown = replace(spec, disks=(replace(spec.disks[0], size_mb=9000),))
    keys = {key(spec), key(grown), state_key(spec, "kvm", "7.2"), state_key(spec, "tcg", "8.0")}
    assert len(keys) == 4


@pytest.mark.parametrize("name", ["image", "kernel", "initrd"])
def test_another_content_is_another_state(spec: MachineSpec, tmp_path: Path, name: str) -> None:
    before = key(spec)
    (tmp_path / name).write_text(name.upper())
    os.utime(tmp_path / name, (1, 1))
    assert key(spec) != before
    (tmp_path / name).unlink()
    with pytest.raises(HypervisorError, match=name):
        key(spec)


def test_nothing_reaches_the_machine_that_is_saved_and_it_reaches_nothing(spec: MachineSpec) -> None:
    (nic,) = anonymous(replace(spec, nics=(replace(spec.nics[0], outbound=True),)), Path("/x")).nics
    assert (nic.address, nic.outbound) == ("", False)
    assert "one" not in str(anonymous(spec, Path("/x")).context)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"kernel": None}, "it boots from its disk"),
        ({"context": {}}, "it has no context"),
        ({"disks": (DiskSpec(0, Path("/image"), persistent=True),)}, "a disk of it is written to itself"),
        ({"nics": (NicSpec(1, "", "", 0, outbound=False),)}, "its NICs are not numbered from 0"),
        (
            {"disks": (DiskSpec(0, Path("/image"), size_mb=1),), "context": {"GROW_ROOTFS": "NO"}},
            "its file system is not to be grown",
        ),
    ],
)
def test_of_which_machines_there_is_none(spec: MachineSpec, change: dict[str, object], why: str) -> None:
    assert why_no_state(replace(spec, **change)) == why  # type: ignore[arg-type]


Maker = Callable[[str], SavedState]


@pytest.fixture
def states(tmp_path: Path) -> States:
    return States(tmp_path / "home", limit_mb=5)


@pytest.fixture
def make(states: States) -> Maker:
    """A state of 2 MB in its place."""

    def make(name: str) -> SavedState:
        work = states.folder / ".making"
        work.mkdir(parents=True)
        (work / "memory").write_bytes(os.urandom(2 * MIB))
        for each in ("devices", "base.0", "overlay.0"):
            (work / each).write_bytes(os.urandom(2000))
        made = SavedState(work, 1, 2, "tcg", "7.2", "2026-11-21T16:00:00+00:00", 12.5, (0,))
        seal_state(made)
        states.take_in(made, name)
        found = states.find(name)
        assert found is not None
        return found

    return make


def test_a_state_is_found_as_it_was_made(make: Maker, states: States) -> None:
    state = make("a")
    assert state == SavedState(states.folder / "a", 1, 2, "tcg", "7.2", "2026-11-21T16:00:00+00:00", 12.5, (0,))
    state.require_whole()
    assert state.uses() == 0
    state.note_use()
    assert state.uses() == 1
    assert 2 * MIB <= state.bytes_on_disk() < 3 * MIB
    assert states.find("b") is None


@pytest.mark.parametrize("name", ["memory", "devices", "base.0", "overlay.0"])
@pytest.mark.parametrize("damage", ["cut", "gone", "longer", "begins otherwise", "ends otherwise"])
def test_a_damaged_state_is_told(make: Maker, name: str, damage: str) -> None:
    state = make("a")
    path = state.folder / name
    match damage:
        case "cut":
            os.truncate(path, path.stat().st_size - 1)
        case "gone":
            path.unlink()
        case "longer":
            path.write_bytes(path.read_bytes() + b"x")
        case _:
            words = bytearray(path.read_bytes())
            at = 0 if damage.startswith("begins") else -1
            words[at] ^= 1
            path.write_bytes(words)
    with pytest.raises(StateBroken, match=name):
        state.require_whole()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"form": 2, "files": {}}', '{"form": 1, "files": {}}'])
def test_a_record_that_cannot_be_read_makes_the_state_go(make: Maker, states: States, text: str) -> None:
    folder = make("a").folder
    (folder / "state.json").write_text(text)
    with pytest.raises(StateBroken, match=r"state\.json"):
        read_state(folder)
    assert states.find("a") is None
    assert not folder.exists()


def test_the_one_that_was_unused_for_longest_goes_when_there_is_no_room(make: Maker, states: States) -> None:
    first, second = make("a"), make("b")
    os.utime(second.folder / "used", (1000, 1000))
    os.utime(first.folder / "used", (2000, 2000))
    make("c")
    assert {state.folder.name for state in states.all()} == {"a", "c"}
    assert sorted(path.name for path in states.folder.iterdir()) == ["a", "c"], "nothing else is left behind"


def test_a_machine_keeps_what_it_goes_on_from(make: Maker, states: States, tmp_path: Path) -> None:
    state = make("a")
    os.link(state.folder / "base.0", tmp_path / "base.0")
    words = (tmp_path / "base.0").read_bytes()
    states.drop(state.folder, "a test")
    assert states.find("a") is None
    assert (tmp_path / "base.0").read_bytes() == words


def test_states_of_another_qemu_and_leftovers_go_at_the_start(make: Maker, states: States) -> None:
    make("a")
    (states.folder / ".gone-1").mkdir()
    (states.folder / ".gone-1" / "memory").write_text("left")
    states.drop_foreign("7.2")
    assert [path.name for path in states.folder.iterdir()] == ["a"]
    states.drop_foreign("8.0")
    assert list(states.folder.iterdir()) == []


def test_what_failed_is_not_tried_again_at_once(states: States) -> None:
    assert not states.failed_lately("a")
    states.note_failure("a", "no room")
    assert states.failed_lately("a")
    os.utime(states.folder / "a.failed", (1000, 1000))
    assert not states.failed_lately("a")
    assert states.all() == []
