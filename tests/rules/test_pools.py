"""What an inventory may say of a pool."""

import pytest

from orchestrator.domain.errors import InvalidPool
from orchestrator.domain.pool import Period, Placement, Pool, Times, Warm
from orchestrator.provisioning.periods import PeriodVariables, never_lasts, overlapping, period_from
from orchestrator.provisioning.quantities import size_in_bytes, time_in_seconds
from orchestrator.provisioning.variables import PoolVariables, pool_from

SAID = {"mayfly_image": "debian-12"}


def test_only_the_image_is_needed_and_the_rest_is_the_pools_default():
    assert pool_from("small", SAID) == Pool(name="small", image="debian-12")


def test_every_variable_lands_in_its_field():
    pool = pool_from(
        "large",
        {
            "mayfly_image": "debian-12",
            "mayfly_cpus": 8,
            "mayfly_memory": "32G",
            "mayfly_network": "closed",
            "ansible_port": 2222,
            "mayfly_max_vms": 4,
            "mayfly_default_timeout": "90s",
            "mayfly_max_timeout": "2h",
            "mayfly_task_memory": "31G",
            "mayfly_max_processes": 64,
            "mayfly_boot_timeout": 60,
            "mayfly_launch_timeout": "1m30s",
            "mayfly_kill_grace": 0.5,
            "mayfly_max_output": "1T",
            "mayfly_max_log": "100MiB",
            "mayfly_max_waiting": 50,
            "mayfly_max_queue_time": "7d",
            "mayfly_staging_timeout": "1h",
            "mayfly_max_attempts": 1,
            "mayfly_retry_backoff": "2s",
            "mayfly_retry_backoff_max": "1m",
            "mayfly_max_pending_vms": 3,
            "mayfly_retention": "90d",
            "mayfly_min_ready": 2,
            "mayfly_max_ready": 3,
            "mayfly_scale_factor": 0.5,
            "mayfly_max_ready_age": "30m",
            "mayfly_launch_rate": 6,
            "mayfly_launch_burst": 2,
            "mayfly_max_failures": 5,
            "mayfly_quarantine": "1h",
            "mayfly_periods": [{"when": "0 12 1 1 *", "time_zone": "Europe/Amsterdam", "min_ready": 0, "max_vms": 3}],
            "mayfly_placement": "pack",
        },
    )
    assert pool == Pool(
        name="large",
        image="debian-12",
        cpus=8,
        memory_bytes=32 * 2**30,
        network="closed",
        ssh_port=2222,
        max_vms=4,
        default_timeout_seconds=90.0,
        max_timeout_seconds=7200.0,
        task_memory_bytes=31 * 2**30,
        max_processes=64,
        boot_timeout_seconds=60.0,
        launch_timeout_seconds=90.0,
        kill_grace_seconds=0.5,
        max_output_bytes=2**40,
        max_log_bytes=100 * 2**20,
        max_waiting=50,
        max_queue_seconds=7 * 86400.0,
        staging_timeout_seconds=3600.0,
        max_attempts=1,
        retry_backoff_seconds=2.0,
        retry_backoff_max_seconds=60.0,
        max_pending_vms=3,
        retention_seconds=90 * 86400.0,
        placement=Placement.PACK,
        warm=Warm(
            min_ready=2,
            max_ready=3,
            scale_factor=0.5,
            max_ready_age_seconds=1800.0,
            launch_rate=6,
            launch_burst=2,
            max_failures=5,
            quarantine_seconds=3600.0,
            periods=(
                Period(
                    when="0 12 1 1 *",
                    time_zone="Europe/Amsterdam",
                    min_ready=0,
                    max_vms=3,
                    times=(
                        Times(
                            minutes=frozenset({0}),
                            hours=frozenset({12}),
                            days=frozenset({1}),
                            months=frozenset({1}),
                            weekdays=frozenset(range(7)),
                        ),
                    ),
                ),
            ),
        ),
    )


def test_no_field_of_a_pool_is_out_of_an_inventorys_reach():
    reachable = {field.serialization_alias or name for name, field in PoolVariables.model_fields.items()}
    assert reachable | {"name", "warm"} == set(Pool.__dataclass_fields__) | set(Warm.__dataclass_fields__)
    assert set(PeriodVariables.model_fields) | {"times"} == set(Period.__dataclass_fields__)


def test_variables_of_others_are_ignored():
    assert pool_from("small", {**SAID, "memory": "1G", "ansible_user": "root", "site_owner": ["us"]}).cpus == 1


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant():
    with pytest.raises(InvalidPool, match=r"pool small, mayfly_memry: no such variable \(did you mean mayfly_memory\?"):
        pool_from("small", {**SAID, "mayfly_memry": "1G"})


def test_a_variable_like_no_other_is_told_which_there_are():
    with pytest.raises(InvalidPool, match=r"mayfly_xyzzy: no such variable \(known are mayfly_image, mayfly_cpus"):
        pool_from("small", {**SAID, "mayfly_xyzzy": 1})


def test_the_port_has_no_second_name():
    with pytest.raises(InvalidPool, match=r"mayfly_ansible_port: no such variable \(the port is ansible_port"):
        pool_from("small", {**SAID, "mayfly_ansible_port": 22})


def test_a_pool_without_an_image():
    with pytest.raises(InvalidPool, match=r"pool small, mayfly_image: missing \(say which base image"):
        pool_from("small", {})


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("mayfly_image", "", "at least 1 character"),
        ("mayfly_image", 12, "valid string"),
        ("mayfly_cpus", 0, "greater than or equal to 1"),
        ("mayfly_cpus", "2", "valid integer"),
        ("mayfly_cpus", True, "valid integer"),
        ("mayfly_cpus", 1.5, "valid integer"),
        ("mayfly_cpus", None, "valid integer"),
        ("mayfly_memory", 512, "a size with a unit"),
        ("mayfly_memory", "512", "a size with a unit"),
        ("mayfly_memory", "0G", "a size with a unit"),
        ("mayfly_memory", "-1G", "a size with a unit"),
        ("mayfly_memory", "1.5G", "a size with a unit"),
        ("mayfly_memory", ["1G"], "a size with a unit"),
        ("mayfly_default_timeout", "soon", "a time of more than 0"),
        ("mayfly_default_timeout", 0, "a time of more than 0"),
        ("mayfly_default_timeout", -1, "a time of more than 0"),
        ("mayfly_default_timeout", "", "a time of more than 0"),
        ("mayfly_default_timeout", float("nan"), "a time of more than 0"),
        ("mayfly_default_timeout", float("inf"), "a time of more than 0"),
        ("mayfly_default_timeout", True, "a time of more than 0"),
        ("ansible_port", 0, "greater than or equal to 1"),
        ("ansible_port", 65536, "less than or equal to 65535"),
        ("ansible_port", "22", "valid integer"),
        ("mayfly_network", {"id": 3}, "valid string"),
        ("mayfly_min_ready", -1, "greater than or equal to 0"),
        ("mayfly_min_ready", "1", "valid integer"),
        ("mayfly_min_ready", True, "valid integer"),
        ("mayfly_max_ready", -1, "greater than or equal to 0"),
        ("mayfly_max_ready", None, "valid integer"),
        ("mayfly_scale_factor", -0.1, "greater than or equal to 0"),
        ("mayfly_scale_factor", float("nan"), "finite number"),
        ("mayfly_scale_factor", 101, "less than or equal to 100"),
        ("mayfly_launch_rate", -6, "greater than 0"),
        ("mayfly_launch_rate", 0, "greater than 0"),
        ("mayfly_launch_rate", float("inf"), "finite number"),
        ("mayfly_launch_rate", 1e9, "less than or equal to 1000000"),
        ("mayfly_launch_rate", "fast", "valid number"),
        ("mayfly_launch_burst", 0, "greater than or equal to 1"),
        ("mayfly_max_failures", 0, "greater than or equal to 1"),
        ("mayfly_max_ready_age", "0s", "a time of more than 0"),
        ("mayfly_quarantine", -5, "a time of more than 0"),
        ("mayfly_placement", "random", "'spread' or 'pack'"),
        ("mayfly_periods", {"when": "* * * * *"}, "valid tuple"),
        ("mayfly_periods", "* * * * *", "valid tuple"),
    ],
)
def test_a_wrong_value_names_pool_variable_and_what_is_expected(variable, value, complaint):
    with pytest.raises(InvalidPool) as caught:
        pool_from("small", {**SAID, variable: value})
    assert caught.value.field == f"pool small, {variable}"
    assert repr(value) in caught.value.problem
    assert complaint in caught.value.remedy


@pytest.mark.parametrize("name", ["a b", "-x", "x" * 65, "pool;reboot", "æ", ""])
def test_a_name_that_would_not_do_elsewhere(name):
    with pytest.raises(InvalidPool, match="not a name for a pool"):
        pool_from(name, SAID)


def test_limits_that_contradict_each_other():
    with pytest.raises(InvalidPool, match="mayfly_default_timeout: 7200 s is more than mayfly_max_timeout, 3600 s"):
        pool_from("small", {**SAID, "mayfly_default_timeout": "2h", "mayfly_max_timeout": "1h"})
    with pytest.raises(InvalidPool, match="mayfly_task_memory: not below mayfly_memory"):
        pool_from("small", {**SAID, "mayfly_memory": "1G", "mayfly_task_memory": "1024M"})


@pytest.mark.parametrize(
    ("variables", "refusal"),
    [
        ({"min_ready": 3}, "mayfly_min_ready: 3 is more than max_vms, 2"),
        ({"min_ready": 17, "max_vms": 16}, "mayfly_min_ready: 17 is more than max_vms, 16"),
        ({"min_ready": 2, "max_ready": 1}, "mayfly_max_ready: 1 is less than min_ready, 2"),
        (
            {"min_ready": 2, "periods": [{"when": "* * * * *"}, {"when": "* * * * *", "max_vms": 1}]},
            "mayfly_periods, period 2, min_ready: 2 is more than max_vms, 1",
        ),
        (
            {"max_ready": 1, "periods": [{"when": "* * * * *", "min_ready": 2}]},
            "mayfly_periods, period 1, max_ready: 1 is less than min_ready, 2",
        ),
    ],
)
def test_numbers_of_ready_machines_that_contradict_each_other(variables, refusal):
    with pytest.raises(InvalidPool, match=f"pool small, {refusal}"):
        pool_from("small", {**SAID, **{f"mayfly_{name}": value for name, value in variables.items()}})


def test_numbers_that_just_agree():
    said = {"mayfly_min_ready": 2, "mayfly_max_ready": 2, "mayfly_periods": [{"when": "* * * * *", "max_vms": 2}]}
    assert pool_from("small", {**SAID, **said}).warm.min_ready == 2


HOW = "write minute, hour, day, month, day of the week, as '* 19-23 * * 1-5'"


@pytest.mark.parametrize(
    ("period", "complaint"),
    [
        ({}, "when is missing: a cron line"),
        ("* * * * *", "expected a mapping"),
        (None, "expected a mapping"),
        ({"when": "* * * * *", "min_redy": 1}, "no such key 'min_redy'; did you mean min_ready?"),
        ({"when": "* * * * *", "xyzzy": 1}, "no such key 'xyzzy'; known are when, time_zone, min_ready"),
        ({"when": "* * * * *", "min_ready": -1}, "min_ready -1 is not right: input should be greater than"),
        ({"when": "* * * * *", "min_ready": None}, "min_ready None is not right: input should be a valid integer"),
        ({"when": "* * * * *", "scale_factor": "1"}, "scale_factor '1' is not right: input should be a valid number"),
        ({"when": "* * * * *", "max_vms": 0}, "max_vms 0 is not right: input should be greater than or equal to 1"),
        ({"when": "* * * * *", "time_zone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ({"when": "* * * * *", "time_zone": "../../etc/passwd"}, "no time zone '../../etc/passwd'"),
        ({"when": "* * * * *", "time_zone": 1}, "time_zone 1 is not right: input should be a valid string"),
        ({"when": ""}, f"when '': has 0 fields, not 5; {HOW}"),
        ({"when": "at night"}, f"when 'at night': has 2 fields, not 5; {HOW}"),
        ({"when": "60 * * * *"}, "when '60 * * * *': "),
        ({"when": "* 24 * * *"}, "when '* 24 * * *': "),
        ({"when": "* * 32 * *"}, "when '* * 32 * *': "),
        ({"when": "* * * 13 *"}, "when '* * * 13 *': "),
        ({"when": "* * * * 8"}, "when '* * * * 8': '8' is no day of the week"),
        ({"when": "* * last * *"}, "'last' is no day of the month"),
        ({"when": "* * 3rd sun * *"}, "has 6 fields, not 5"),
        ({"when": "* 23-19 * * *"}, "when '* 23-19 * * *': "),
    ],
)
def test_a_period_that_cannot_be_read(period, complaint):
    with pytest.raises(InvalidPool) as caught:
        pool_from("small", {**SAID, "mayfly_periods": [{"when": "* * * * *"}, period]})
    assert caught.value.field == "pool small, mayfly_periods, period 2"
    assert complaint.lower() in caught.value.remedy.lower()


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("* 19-23 * * *", "* 23 * * *", True),
        ("* 19-23 * * *", "* 0-6 * * *", False),
        ("0-29 * * * *", "30-59 * * * *", False),
        ("* * * * 1-5", "* * * * sat,sun", False),
        ("* * 1 * 1", "* * 2 * sat", True),  # the first may be a Saturday
        ("* * 1 * *", "* * 2 * *", False),
        ("* * 1 * 1", "* * 2 * mon", True),
        ("* * 1 * *", "* * * * tue", True),
        ("* * * 1 *", "* * * 2 *", False),
        ("* * 30,31 * *", "* * * 2 *", False),
        ("* * 29 * *", "* * * 2 *", True),
    ],
)
def test_periods_that_come_at_the_same_time(one, other, overlap):
    periods = [period_from({"when": line}) for line in (one, other)]
    assert list(overlapping(periods)) == ([(1, 2)] if overlap else [])


def test_periods_of_different_zones_may_come_at_the_same_time():
    night, day = {"when": "* 0-6 * * *"}, {"when": "* 7-23 * * *", "time_zone": "Asia/Tokyo"}
    assert list(overlapping([period_from(night), period_from(day)])) == [(1, 2)]


def test_of_many_periods_each_pair_is_named():
    lines = ["* 1 * * *", "* 2 * * *", "* 1-2 * * *", "* * * * *"]
    periods = [period_from({"when": line}) for line in lines]
    assert list(overlapping(periods)) == [(1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("line", "never"),
    [
        ("* * 30 2 *", True),
        ("* * 29 2 *", False),
        ("* * 31 4,6,9,11 *", True),
        ("* * 31 4,5 *", False),
        ("* * 30 2 mon", False),  # on Mondays of February
    ],
)
def test_a_period_that_never_lasts(line, never):
    assert never_lasts(period_from({"when": line})) == never


@pytest.mark.parametrize(
    ("text", "size"),
    [("1K", 1024), ("512M", 512 * 2**20), ("2g", 2 * 2**30), ("1 GiB", 2**30), (" 3MB ", 3 * 2**20), ("1T", 2**40)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5)),
        *((45, 45), (1.5, 1.5), ("90", 90), ("2.5", 2.5)),
    ],
)
def test_times(text, seconds):
    assert time_in_seconds(text) == seconds
