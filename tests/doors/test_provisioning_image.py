"""Building, promoting, rolling back and pruning base images, against the local cloud with a hypervisor that has no
machines: OpenNebula's replies are real, and so is Ansible, which provisions this machine's own connection."""

import asyncio

import pytest
import yaml

from orchestrator.domain.errors import CloudError, NotFound, NotPossible, PlatformError, Unreachable, UserError
from orchestrator.guest.keys import make_key
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Images
from orchestrator.provisioning.build import BuildTools, sweep
from orchestrator.provisioning.definition import load_definition
from orchestrator.provisioning.image import BaseImages
from orchestrator.provisioning.ports import BuildMachine, CloudObject, ImageKind, VersionTemplate
from orchestrator.provisioning.rootfs import BootFiles, kept_folder
from orchestrator.provisioning.sources import apt_sources
from orchestrator.provisioning.versions import all_versions, promoted_version, prune
from orchestrator.settings import data_root

PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - name: Speak
      ansible.builtin.debug: {msg: hello}
    - name: Do what the test says
      ansible.builtin.assert: {that: %s, fail_msg: the test said so}
"""


@pytest.fixture
def hypervisor():
    simulated = SimulatedHypervisor()
    yield simulated
    simulated.close()


@pytest.fixture
async def cloud(tmp_path, hypervisor):
    knobs = CloudSettings(monitor_interval=0.05, crash_visible_after=0.1, shutdown_poll=0.02, shutdown_timeout=0.3)
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=knobs) as server:
        async with Cloud(
            server.url, server.session, timeout=10, patience=5, poll_seconds=0.01, requests_per_second=1000
        ) as connected:
            yield Images(connected, CloudObject)
    assert not hypervisor.machines(), "a machine survived the test"


@pytest.fixture
async def definitions(tmp_path):
    """A folder with the definition `small`, whose root file system is in the cache already."""
    folder = tmp_path / "images" / "small"
    folder.mkdir(parents=True)
    content = yaml.safe_load((data_root() / "images" / "debian-12" / "image.yml").read_text())
    content["playbook"] = str(tmp_path / "play.yml")
    (folder / "image.yml").write_text(yaml.safe_dump(content))
    (tmp_path / "play.yml").write_text(PLAY % "true")
    definition = load_definition("small", folder.parent)
    kept = kept_folder(definition, await apt_sources(definition), tmp_path / "cache")
    kept.mkdir(parents=True)
    files = BootFiles.inside(kept)
    files.disk.write_bytes(b"QFI\xfb" + bytes(508))
    for path in (files.kernel, files.initrd, files.packages):
        path.write_bytes(b"x")
    return folder.parent


@pytest.fixture
def entered():
    """The identities of the machines that were reached and tried, in order."""
    return []


@pytest.fixture
def tools(cloud, definitions, tmp_path, entered):
    async def reach(identity, *, within):
        entered.append(identity)

    async def probe(identity, *, within):
        entered.append(identity)
        return {"kernel": "6.1"}

    async def console(vm_id):
        return f"console of {vm_id}: Kernel panic"

    return BuildTools(
        cloud=cloud,
        reach=reach,
        probe=probe,
        make_key=make_key,
        console=console,
        ssh_port=2222,
        home=tmp_path / "home",
        cache=tmp_path / "cache",
        definitions=definitions,
    )


@pytest.fixture
def told():
    return []


@pytest.fixture
def tell(told):
    return lambda step, fraction, text: told.append((step, text))


def changed(tools, **changes):
    return BuildTools(**{name: changes.get(name, getattr(tools, name)) for name in BuildTools.__slots__})


async def everything(cloud):
    """Names of all that is in the cloud."""
    objects = [*await cloud.list_images(), *await cloud.list_templates(), *await cloud.list_machines()]
    return sorted(each.name for each in objects)


async def test_a_build_from_nothing_to_promoted(tools, cloud, hypervisor, tell, told, entered):
    images = BaseImages(tools)
    assert await images.up_to_date("small") is None
    version = await images.build("small", tell)
    assert (version.image, version.version, str(version.state)) == ("small", 1, "promoted")
    assert await images.up_to_date("small") == version
    assert await everything(cloud) == ["mayfly-small-1"] * 2 + ["mayfly-small-1-kernel", "mayfly-small-1-ramdisk"]
    steps = list(dict.fromkeys(step for step, _ in told))
    assert steps == ["root file system", "register", "boot", "provision", "save", "smoke test", "promote"]
    assert ("provision", "Speak") in told
    assert ("smoke test", "kernel 6.1") in told
    [template] = await cloud.list_templates()
    assert template.tags["MAYFLY_RECIPE"] == version.recipe != ""
    assert template.tags["MAYFLY_DISK_SHA256"] == await cloud.digest(int(template.tags["MAYFLY_DISK_IMAGE"])) != ""
    first, second = entered
    assert first.host_public_key != second.host_public_key and first.private_key != second.private_key
    assert version.as_dict()["state"] == "promoted"


async def version(cloud, tmp_path, number, state):
    """A version of `small` as a build leaves it, without the building."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb" + bytes(508))
    name, done = f"mayfly-small-{number}", {"MAYFLY_BUILD": "done"}
    image = await cloud.register_image(name, disk, ImageKind.OS, done, within=30)
    kernel = await cloud.register_image(f"{name}-kernel", disk, ImageKind.KERNEL, done, within=30)
    tags = {"MAYFLY_IMAGE": "small", "MAYFLY_VERSION": str(number), "MAYFLY_STATE": state}
    parts = {"MAYFLY_DISK_IMAGE": str(image), "MAYFLY_KERNEL_IMAGE": str(kernel)}
    return await cloud.register_template(VersionTemplate(name, image, kernel, kernel, "x", {**done, **tags, **parts}))


def states(versions):
    return [(each.version, str(each.state)) for each in versions]


async def test_a_build_demotes_the_one_before_it_and_deletes_those_no_longer_kept(tools, cloud, tmp_path, tell, told):
    await version(cloud, tmp_path, 1, "previous")
    await version(cloud, tmp_path, 2, "promoted")
    images = BaseImages(tools)
    assert (await images.build("small", tell)).version == 3
    assert states(await images.versions()) == [(3, "promoted"), (2, "previous")]
    assert not [name for name in await everything(cloud) if name.startswith("mayfly-small-1")]
    assert ("promote", "deleted version 1") in told


@pytest.mark.parametrize("part", ["small/image.yml", "small/files/motd", "play.yml", "roles/role/tasks/main.yml"])
async def test_a_version_of_another_recipe_is_not_up_to_date(tools, definitions, tmp_path, tell, part):
    images = BaseImages(tools)
    version = await images.build("small", tell)
    assert version.recipe
    assert await images.up_to_date("small") == version
    path = (definitions if part.startswith("small") else tmp_path) / part
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("# changed\n")
    assert await images.up_to_date("small") is None


async def test_a_version_whose_recipe_was_not_noted_is_not_up_to_date(tools, cloud, tmp_path):
    await version(cloud, tmp_path, 1, "promoted")
    assert await BaseImages(tools).up_to_date("small") is None
    with pytest.raises(NotFound):
        await BaseImages(tools).up_to_date("smal")


async def test_back_and_forth(tools, cloud, tmp_path):
    images = BaseImages(tools)
    await version(cloud, tmp_path, 1, "promoted")
    with pytest.raises(NotPossible, match="small has no previous version"):
        await images.rollback("small")
    await version(cloud, tmp_path, 2, "candidate")
    assert (await images.promote("small", 2)).version == 2
    assert (await images.rollback("small")).version == 1
    assert states(await images.versions("small")) == [(2, "rejected"), (1, "promoted")]
    with pytest.raises(NotPossible, match="small has no previous version"):
        await images.rollback("small")
    assert (await images.promote("small", 2)).version == 2
    assert states(await images.versions("small")) == [(2, "promoted"), (1, "previous")]
    with pytest.raises(NotFound, match=r"small has no version 7 \(known: 2, 1"):
        await images.promote("small", 7)
    with pytest.raises(NotFound, match=r"other has no version 1 \(known: none"):
        await images.promote("other", 1)


async def test_the_promoted_version_is_kept_however_old(tools, cloud, tmp_path):
    for number, state in enumerate(["promoted", "previous", "rejected", "previous"], start=1):
        await version(cloud, tmp_path, number, state)
    assert [old.version for old in await prune(cloud, "small")] == [2]
    assert states(await BaseImages(tools).versions()) == [(4, "previous"), (3, "rejected"), (1, "promoted")]
    assert "mayfly-small-1-kernel" in await everything(cloud)


async def test_a_version_in_use_is_deleted_when_it_is_free(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.provisioning.versions._DELETE_SECONDS", 0.2)
    old = await version(cloud, tmp_path, 1, "previous")
    for number in (2, 3):
        await version(cloud, tmp_path, number, "previous")
    vm_id = await cloud.instantiate(BuildMachine(old, "user", 1, 64, "open", {"NETWORK": "YES"}, {"MAYFLY_VM": "user"}))
    await cloud.wait_running(vm_id, within=30)
    assert await prune(cloud, "small") == []
    assert states(await all_versions(cloud))[-1] == (1, "rejected")
    await cloud.destroy(vm_id, within=30)
    assert [each.version for each in await prune(cloud, "small")] == [1]


async def test_a_machine_that_never_answers_leaves_its_console_and_nothing_else(tools, cloud, tell):
    async def never(identity, *, within):
        raise Unreachable(f"nothing answers at {identity.address}:{identity.port}", evidence="tried 3 times")

    with pytest.raises(Unreachable, match=r"nothing answers at 127\.") as caught:
        await BaseImages(changed(tools, reach=never)).build("small", tell)
    assert caught.value.evidence == "tried 3 times\nconsole of 0: Kernel panic"
    assert await everything(cloud) == []


async def test_a_playbook_that_fails_is_told_with_task_and_log(tools, cloud, tell, tmp_path):
    (tmp_path / "play.yml").write_text(PLAY % "false")
    with pytest.raises(PlatformError, match="Do what the test says on small: the test said so") as caught:
        await BaseImages(tools).build("small", tell)
    assert "TASK [Speak]" in caught.value.evidence
    assert await everything(cloud) == []


async def test_a_version_that_fails_its_smoke_test_is_never_seen(tools, cloud, tell):
    async def unfit(identity, *, within):
        raise Unreachable("the VM answers, but is not fit for a task: strace: missing")

    with pytest.raises(Unreachable, match="strace: missing"):
        await BaseImages(changed(tools, probe=unfit)).build("small", tell)
    assert await everything(cloud) == []


@pytest.mark.parametrize("step", ["boot", "save_disk"])
async def test_a_cloud_that_fails_on_the_way(tools, cloud, hypervisor, tell, step):
    hypervisor.fail_next(step)
    with pytest.raises(CloudError):
        await BaseImages(tools).build("small", tell)
    assert await everything(cloud) == []
    assert (await BaseImages(tools).build("small", tell)).version == 1


async def test_a_cancelled_build_leaves_nothing(tools, cloud, tell, hypervisor):
    reached = asyncio.Event()

    async def hang(identity, *, within):
        reached.set()
        await asyncio.Event().wait()

    build = asyncio.create_task(BaseImages(changed(tools, reach=hang)).build("small", tell))
    async with asyncio.timeout(30):
        await reached.wait()
    assert len(hypervisor.machines()) == 1
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert await everything(cloud) == []


async def test_a_cancelled_playbook_is_ended(tools, cloud, tell, tmp_path):
    mark = tmp_path / "started"
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  connection: local\n  tasks:\n"
        f"    - ansible.builtin.raw: touch {mark}; sleep 120\n"
    )
    build = asyncio.create_task(BaseImages(tools).build("small", tell))
    async with asyncio.timeout(60):
        while not mark.exists():
            await asyncio.sleep(0.05)
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert await everything(cloud) == []
    listing = await asyncio.create_subprocess_exec("ps", "axo", "args", stdout=asyncio.subprocess.PIPE)
    lines = (await listing.communicate())[0].decode().splitlines()
    assert not [line for line in lines if str(mark) in line]


async def test_what_a_killed_build_left_is_swept_and_others_things_are_not(tools, cloud, tmp_path, tell):
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb" + bytes(508))

    async def leave(name, builder):
        """As a build leaves it that was killed between saving its disk and tagging it."""
        tags = {"MAYFLY_BUILD": f"{builder}/{name}"}
        seed = await cloud.register_image(f"{name}-seed", disk, ImageKind.OS, tags, within=30)
        kernel = await cloud.register_image(f"{name}-kernel", disk, ImageKind.KERNEL, tags, within=30)
        template = await cloud.register_template(VersionTemplate(f"{name}-seed", seed, kernel, kernel, "x", tags))
        machine = BuildMachine(template, name, 1, 64, "open", {"NETWORK": "YES"}, {**tags, "MAYFLY_VM": name})
        vm_id = await cloud.instantiate(machine)
        await cloud.wait_running(vm_id, within=30)
        await cloud.register_image(name, disk, ImageKind.OS, {}, within=30)
        return vm_id

    kept = await BaseImages(tools).build("small", tell)
    whole = await everything(cloud)
    me = (tools.home / "image-builder").read_text().strip()
    await leave("mayfly-small-2", me)
    others = await leave("mayfly-other-1", "somebody-else")
    assert await sweep(cloud, me) == 5
    left = [name for name in await everything(cloud) if not name.startswith("mayfly-other-1")]
    assert left == whole
    assert [vm.id for vm in await cloud.list_machines()] == [others]
    assert (await promoted_version(cloud, "small")) == kept
    assert await sweep(cloud, me) == 0
    await cloud.destroy(others, within=30)


async def test_a_build_sweeps_before_it_starts(tools, cloud, tell, told, tmp_path):
    await BaseImages(tools).build("small", tell)
    me = (tools.home / "image-builder").read_text().strip()
    left = {"MAYFLY_BUILD": f"{me}/mayfly-small-2"}
    await cloud.register_image("mayfly-small-2-seed", tmp_path / "play.yml", ImageKind.KERNEL, left, within=30)
    await BaseImages(tools).build("small", tell)
    assert ("register", "removed 1 things that a killed build had left") in told


async def test_one_build_at_a_time_in_a_home(tools, tell):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(identity, *, within):
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(BaseImages(changed(tools, reach=wait)).build("small", tell))
    async with asyncio.timeout(30):
        await begun.wait()
    with pytest.raises(NotPossible, match="another build runs in this home"):
        await BaseImages(tools).build("small", tell)
    go_on.set()
    assert (await first).version == 1


async def test_no_such_image_names_those_that_there_are(tools, tell):
    with pytest.raises(NotFound, match=r"image: smal: no such folder .*known: small"):
        await BaseImages(tools).build("smal", tell)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("disk_size", "8", "image.yml, disk_size: expected a size with a unit"),
        ("suite", "../x", "image.yml, suite"),
        ("packages", ["ok", "--evil"], r"image.yml, packages\.1"),
        ("colour", "red", "image.yml, colour"),
        ("build", {"cpus": 0, "memory": "1G", "network": "open"}, r"image.yml, build\.cpus"),
    ],
)
def test_a_definition_that_is_wrong_names_file_and_key(definitions, key, value, complaint):
    path = definitions / "small" / "image.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), key: value}))
    with pytest.raises(UserError, match=complaint):
        load_definition("small", definitions)
