"""Inventories as operators write them, read by Ansible itself."""

import json
import os

import pytest
from ansible.constants import DEFAULT_VAULT_ID_MATCH
from ansible.parsing.vault import VaultLib, VaultSecret

from orchestrator.domain.errors import InvalidPool
from orchestrator.provisioning.inventory import load_pools
from orchestrator.settings import data_root


@pytest.fixture
def inventory(tmp_path):
    folder = tmp_path / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "host_vars").mkdir()
    (folder / "hosts.yml").write_text("pools:\n  hosts:\n    small:\n    large: {mayfly_memory: 2G}\n")
    (folder / "group_vars" / "pools.yml").write_text("mayfly_image: debian-12\nmayfly_memory: 1G\nansible_port: 2222\n")
    return folder


async def test_our_own_inventories_are_right(tmp_path):
    local = await load_pools(data_root() / "inventories" / "local", cache=tmp_path)
    assert set(local) == {"default", "large", "builders"}
    assert [name for name, pool in local.items() if not pool.seal.closed] == ["builders"]
    assert local["default"].ssh_port == 2222 and local["default"].network == "sealed"
    site = await load_pools(data_root() / "inventories" / "example-opennebula", cache=tmp_path)
    assert {pool.ssh_port for pool in site.values()} == {22}


async def test_a_host_wins_over_its_group_and_host_vars_over_the_host(inventory, tmp_path):
    (inventory / "host_vars" / "large.yml").write_text("mayfly_cpus: 4\n")
    pools = await load_pools(inventory, cache=tmp_path / "cache")
    assert (pools["small"].memory_bytes, pools["small"].cpus) == (2**30, 1)
    assert (pools["large"].memory_bytes, pools["large"].cpus) == (2 * 2**30, 4)


async def test_templates_and_vault_mean_what_they_mean_in_ansible(inventory, tmp_path, monkeypatch):
    password = tmp_path / "password"
    password.write_text("secret\n")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    vault = VaultLib([(DEFAULT_VAULT_ID_MATCH, VaultSecret(b"secret"))])
    (inventory / "group_vars" / "all.yml").write_bytes(vault.encrypt("mayfly_network: hidden\n"))
    (inventory / "host_vars" / "small.yml").write_text('many: 3\nmayfly_max_vms: "{{ many * 2 }}"\n')
    pools = await load_pools(inventory, cache=tmp_path / "cache")
    assert pools["small"].network == "hidden"
    assert pools["small"].max_vms == 6
    assert not list((tmp_path / "cache").glob("*")), "templates may depend on more than files"


async def test_what_was_read_is_kept_until_a_file_changes(inventory, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = await load_pools(inventory, cache=cache)
    (kept,) = cache.glob("pools-*.json")
    content = json.loads(kept.read_text())
    content["small"]["cpus"] = 7
    kept.write_text(json.dumps(content))
    assert (await load_pools(inventory, cache=cache))["small"].cpus == 7
    (inventory / "group_vars" / "pools.yml").write_text("mayfly_image: debian-12\nmayfly_cpus: 2\n")
    assert (await load_pools(inventory, cache=cache))["small"].cpus == 2
    assert len(list(cache.glob("pools-*.json"))) == 1
    assert first["small"].cpus == 1


async def test_a_broken_cache_is_read_over(inventory, tmp_path):
    cache = tmp_path / "cache"
    expected = await load_pools(inventory, cache=cache)
    for garbage in ("[]", '{"small": {"nme": "x"}}'):
        (kept,) = cache.glob("pools-*.json")
        kept.write_text(garbage)
        assert await load_pools(inventory, cache=cache) == expected


async def test_a_single_file_with_group_vars_beside_it(inventory, tmp_path):
    pools = await load_pools(inventory / "hosts.yml", cache=tmp_path / "cache")
    assert pools["small"].memory_bytes == 2**30
    (inventory / "group_vars" / "pools.yml").write_text("mayfly_image: debian-13\n")
    assert (await load_pools(inventory / "hosts.yml", cache=tmp_path / "cache"))["small"].image == "debian-13"


async def test_a_script_is_asked_each_time(tmp_path):
    script = tmp_path / "inventory.sh"
    script.write_text(
        "#!/bin/sh\n"
        f"cpus=$(cat {tmp_path}/cpus)\n"
        'echo "{\\"pools\\": {\\"hosts\\": [\\"small\\"]}, \\"_meta\\": {\\"hostvars\\": {\\"small\\":'
        ' {\\"mayfly_image\\": \\"i\\", \\"mayfly_cpus\\": $cpus}}}}"\n'
    )
    script.chmod(0o755)
    for cpus in (1, 2):
        (tmp_path / "cpus").write_text(f"{cpus}\n")
        assert (await load_pools(script, cache=tmp_path / "cache"))["small"].cpus == cpus


async def test_a_wrong_variable_names_its_pool(inventory, tmp_path):
    (inventory / "host_vars" / "large.yml").write_text("mayfly_cpus: many\n")
    with pytest.raises(InvalidPool, match="pool large, mayfly_cpus: 'many' is not right"):
        await load_pools(inventory, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


async def test_a_template_of_nothing_names_its_pool(inventory, tmp_path):
    (inventory / "host_vars" / "large.yml").write_text('mayfly_network: "{{ nowhere }}"\n')
    with pytest.raises(InvalidPool, match=r"(?s)pool large: .*nowhere"):
        await load_pools(inventory, cache=tmp_path / "cache")


async def test_an_inventory_that_is_not_there(tmp_path):
    with pytest.raises(InvalidPool, match=r"inventory: .*/absent does not exist .set MAYFLY_INVENTORY"):
        await load_pools(tmp_path / "absent", cache=tmp_path / "cache")


@pytest.mark.parametrize("text", ["others:\n  hosts:\n    small:\n", ""])
async def test_an_inventory_without_pools(tmp_path, text):
    (tmp_path / "hosts.yml").write_text(text)
    with pytest.raises(InvalidPool, match=r"(?s)inventory: no pool can be read from .*its group pools needs a host"):
        await load_pools(tmp_path / "hosts.yml", cache=tmp_path / "cache")


async def test_an_inventory_that_is_not_yaml(tmp_path):
    (tmp_path / "hosts.yml").write_text("pools: [}\n")
    with pytest.raises(InvalidPool, match=r"(?s)no pool can be read"):
        await load_pools(tmp_path / "hosts.yml", cache=tmp_path / "cache")


async def test_the_current_folder_does_not_matter(inventory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = inventory.relative_to(tmp_path)
    assert set(await load_pools(relative, cache=tmp_path / "cache")) == {"small", "large"}
    assert os.listdir(tmp_path / "cache")
