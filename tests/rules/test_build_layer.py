"""What the program of a builder says of pip's and apt's ends, and tells of what it installed."""

from __future__ import annotations

import json

import pytest

from orchestrator.decide.layers import resolved
from orchestrator.guest.layer import builder_program
from orchestrator.guest.scripts.build_layer import LONGEST_REASON, installed, reason, run


def test_the_reason_begins_with_the_first_complaint() -> None:
    said = [
        b"Collecting six==9\n",
        b"ERROR: Cannot install a and b\n",
        b"\n",
        b"The conflict is caused by:\n",
        b"    a 1 depends on six<1\n",
        b"ERROR: ResolutionImpossible\n",
    ]
    told = reason(said)
    assert told.startswith("ERROR: Cannot install a and b The conflict is caused by: a 1 depends on six<1")
    assert told.endswith("ERROR: ResolutionImpossible")


def test_the_reason_of_apt_leaves_out_what_it_read() -> None:
    assert (
        reason([b"Reading package lists...\n", b"E: Unable to locate package x\n"]) == "E: Unable to locate package x"
    )


def test_without_a_complaint_the_last_lines_are_the_reason() -> None:
    assert reason([b"%d\n" % number for number in range(100)]) == " ".join(map(str, range(90, 100)))
    assert reason([]) == ""


def test_the_reason_is_one_short_line_of_text() -> None:
    told = reason([b"ERROR: \xff" + b"x " * 10_000 + b"\n"])
    assert len(told) == LONGEST_REASON and "\n" not in told


def test_a_program_that_fails_ends_the_builder_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["sh", "-c", "echo 'ERROR: no such package' >&2; exit 3"], "pip")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "pip: ERROR: no such package\n"
    with pytest.raises(SystemExit):
        run(["sh", "-c", "exit 3"], "mksquashfs")
    assert capsys.readouterr().err == "mksquashfs: exited with 3\n"


@pytest.mark.parametrize(
    "archive, sha256",
    [
        ({"hash": "sha256=abc", "hashes": {"sha256": "abc"}}, "abc"),
        ({"hash": "sha256=abc"}, "abc"),
        ({"hashes": {"md5": "1"}}, ""),
    ],
)
def test_what_was_installed_is_told_with_its_hash(archive: dict[str, object], sha256: str) -> None:
    item = {"metadata": {"name": "six", "version": "1.16.0"}, "download_info": {"archive_info": archive}}
    told = installed(item)
    assert told == {"name": "six", "version": "1.16.0", "sha256": sha256}
    assert resolved(json.dumps({"packages": [told], "debian": []}).encode()) == ("six==1.16.0",)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"packages": 1, "debian": []}',
        b'{"packages": [], "debian": [{"name": "x"}]}',
        b'{"packages": [{"name": "a\\nb", "version": "1"}], "debian": []}',
        b'{"packages": [{"name": "\xc3\xa9", "version": "1"}], "debian": []}',
        b'{"packages": [{"name": "%s", "version": "1"}], "debian": []}' % (b"x" * 1000),
        b"[" * 100_000,
        b"\xff",
        b" " * 2_000_000,
    ],
)
def test_what_a_builder_tells_is_not_believed(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"resolved\.json"):
        resolved(text)


def test_the_program_stands_alone() -> None:
    assert "orchestrator.guest.scripts" not in builder_program()
