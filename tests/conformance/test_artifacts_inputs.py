"""What goes into the artifact store: inputs, each as it was, or a refusal that names the path."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.artifacts import Artifacts, Entry, EntryKind, Tree
from orchestrator.domain.errors import InvalidTask, PlatformError
from orchestrator.domain.task import InputSpec


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir(mode=0o755)
    return folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept(artifacts: Artifacts, source: Path) -> Tree:
    return artifacts.tree(artifacts.read_tree(source))


def nothing_half_done(artifacts: Artifacts) -> bool:
    return not list((artifacts.root / "tmp").glob("*"))


def test_a_folder_is_kept_with_its_names_modes_and_empty_folders(artifacts: Artifacts, source: Path) -> None:
    (source / "sub dir").mkdir(mode=0o750)
    (source / "empty").mkdir(mode=0o700)
    script = source / "sub dir" / "run me.sh"
    script.write_bytes(b"#!/bin/sh\n")
    script.chmod(0o751)
    (source / "line\nbreak").write_bytes(b"")
    (source / "naïve-数据").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(source) + b"/not-utf8-\xff\xfe")).write_bytes(b"y")
    (source / "link").symlink_to("sub dir/run me.sh")
    for name in ("line\nbreak", "naïve-数据", "not-utf8-\udcff\udcfe"):
        (source / name).chmod(0o644)
    tree = kept(artifacts, source)
    assert {entry.path: entry for entry in tree.entries} == {
        entry.path: entry
        for entry in (
            Entry("", EntryKind.DIRECTORY, 0o755),
            Entry("empty", EntryKind.DIRECTORY, 0o700),
            Entry("line\nbreak", EntryKind.FILE, 0o644, 0, sha(b"")),
            Entry("link", EntryKind.SYMLINK, 0o777, target="sub dir/run me.sh"),
            Entry("naïve-数据", EntryKind.FILE, 0o644, 1, sha(b"x")),
            Entry("not-utf8-\udcff\udcfe", EntryKind.FILE, 0o644, 1, sha(b"y")),
            Entry("sub dir", EntryKind.DIRECTORY, 0o750),
            Entry("sub dir/run me.sh", EntryKind.FILE, 0o751, 10, sha(b"#!/bin/sh\n")),
        )
    }
    assert nothing_half_done(artifacts)


def test_a_file_is_a_tree_of_one_and_a_symlink_named_as_input_is_followed(artifacts: Artifacts, source: Path) -> None:
    (source / "data.csv").write_bytes(b"a,b\n")
    (source / "data.csv").chmod(0o640)
    (source / "alias").symlink_to("data.csv")
    [entry] = kept(artifacts, source / "data.csv").entries
    assert entry == Entry("", EntryKind.FILE, 0o640, 4, sha(b"a,b\n"))
    assert artifacts.read_tree(source / "alias") == artifacts.read_tree(source / "data.csv")


def test_equal_trees_have_one_id_and_equal_contents_are_kept_once(artifacts: Artifacts, tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir(mode=0o755)
        for file in ("b", "a", "c/d"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(b"same")
        ids.add(artifacts.read_tree(folder))
    assert len(ids) == 1
    assert len([path for path in (artifacts.root / "blobs").rglob("*") if path.is_file()]) == 2  # a content, a manifest
    (tmp_path / "two" / "a").chmod(0o600)
    assert artifacts.read_tree(tmp_path / "two") not in ids


def test_what_is_kept_does_not_follow_later_changes_of_the_source(artifacts: Artifacts, source: Path) -> None:
    (source / "a").write_bytes(b"before")
    tree = kept(artifacts, source)
    with (source / "a").open("r+b") as file:
        file.write(b"AFTER!")
    [entry] = tree.files
    with artifacts.blobs.open(entry.sha256) as content:
        assert content.read() == b"before"


def test_special_bits_are_dropped(artifacts: Artifacts, source: Path) -> None:
    (source / "su").write_bytes(b"")
    (source / "su").chmod(0o6755)
    (source / "tmp").mkdir()
    (source / "tmp").chmod(0o3777)
    modes = {entry.path: entry.mode for entry in kept(artifacts, source).entries}
    assert (modes["su"], modes["tmp"]) == (0o755, 0o777)
    assert stat.S_IMODE((source / "su").stat().st_mode) == 0o6755


@pytest.mark.parametrize("target", ["b", "./b", "sub/../b", "sub/in", "gone", "self"])
def test_a_symlink_that_stays_inside_is_kept_as_it_is(artifacts: Artifacts, source: Path, target: str) -> None:
    (source / "b").write_bytes(b"")
    (source / "sub").mkdir()
    (source / "sub" / "in").symlink_to("../b")
    (source / "self").symlink_to(target)
    links = {e.path: e.target for e in kept(artifacts, source).entries if e.kind is EntryKind.SYMLINK}
    assert links == {"self": target, "sub/in": "../b"}


@pytest.mark.parametrize(
    "target", ["/etc/shadow", "..", "../outside", "../source/b", "sub/../../outside", "hop/outside", "{source}/b"]
)
def test_a_symlink_out_of_the_input_is_refused(artifacts: Artifacts, source: Path, target: str) -> None:
    (source.parent / "outside").write_bytes(b"secret")
    (source / "b").write_bytes(b"")
    (source / "sub").mkdir()
    (source / "link").symlink_to(target.format(source=source))
    (source / "sub" / "deep").mkdir()
    if target.startswith("hop"):
        (source / "hop").symlink_to("..")
    with pytest.raises(InvalidTask, match=r"symlink to .* outside the input") as refused:
        artifacts.read_tree(source)
    assert refused.value.field == "input" and refused.value.remedy
    assert nothing_half_done(artifacts)


def test_a_symlink_that_only_seems_to_stay_inside_is_refused(artifacts: Artifacts, source: Path) -> None:
    """`a/b` is `deep/er`: written as a/b/../../../outside it looks to leave by one step less than it does."""
    (source / "deep" / "er").mkdir(parents=True)
    (source / "short").symlink_to("deep/er")
    (source / "deep" / "link").symlink_to("../short/../../../source/deep")
    with pytest.raises(InvalidTask, match="outside the input"):
        artifacts.read_tree(source)


@pytest.fixture
def unix_socket(source: Path) -> Iterator[Path]:
    here = Path.cwd()
    os.chdir(source)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        os.chdir(here)
        yield source / "s"


@pytest.mark.parametrize("inside", [True, False])
def test_a_socket_is_refused(artifacts: Artifacts, unix_socket: Path, inside: bool) -> None:
    with pytest.raises(InvalidTask, match=r"/s' is a socket"):
        artifacts.read_tree(unix_socket.parent if inside else unix_socket)
    assert nothing_half_done(artifacts)


@pytest.mark.timeout(20)  # opening a pipe that nobody writes to would wait for ever
@pytest.mark.parametrize("inside", [True, False])
def test_a_named_pipe_is_refused_and_not_opened(artifacts: Artifacts, source: Path, inside: bool) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(InvalidTask, match=r"/pipe' is a named pipe"):
        artifacts.read_tree(source if inside else source / "pipe")


def test_a_device_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(InvalidTask, match="'/dev/zero' is a character device"):
        artifacts.read_tree(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["nothing", "file/below"])
def test_a_missing_source_is_refused(artifacts: Artifacts, source: Path, name: str) -> None:
    (source / "file").write_bytes(b"")
    with pytest.raises(InvalidTask, match=f"{name}'") as refused:
        artifacts.read_tree(source / name)
    assert refused.value.field == "input" and refused.value.remedy


def test_a_symlink_in_a_circle_and_a_dangling_one_are_refused_as_sources(artifacts: Artifacts, source: Path) -> None:
    (source / "round").symlink_to("round")
    (source / "gone").symlink_to("nowhere")
    with pytest.raises(InvalidTask, match="round"):
        artifacts.read_tree(source / "round")
    with pytest.raises(InvalidTask, match="does not exist"):
        artifacts.read_tree(source / "gone")


def test_an_unreadable_source_is_refused(artifacts: Artifacts, source: Path) -> None:
    (source / "secret").write_bytes(b"")
    (source / "secret").chmod(0)
    artifacts.root.mkdir()
    as_root = os.geteuid() == 0
    if as_root:
        os.chown(source, 65534, 65534)
        for folder in (artifacts.root, *list(source.parents)[:-2]):
            folder.chmod(0o777)
        os.seteuid(65534)
    try:
        with pytest.raises(InvalidTask, match="secret' cannot be read: permission denied"):
            artifacts.read_tree(source)
    finally:
        if as_root:
            os.seteuid(0)


def test_an_input_that_holds_the_store_itself_is_refused(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "home" / "artifacts")
    (tmp_path / "home").mkdir()
    for source in (tmp_path, tmp_path / "home"):
        with pytest.raises(InvalidTask, match="own artifact store"):
            artifacts.read_tree(source)


def test_a_file_that_changes_while_it_is_read_is_refused(artifacts: Artifacts, source: Path) -> None:
    """A writer appends for as long as the reading lasts; the file is large enough that it always meets the reader."""
    path, stop = source / "growing", threading.Event()
    path.write_bytes(b"x" * (32 << 20))
    started = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"y")
                started.set()
                stop.wait(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        assert started.wait(10)
        with pytest.raises(InvalidTask, match="growing' changed while it was read"):
            artifacts.read_tree(source)
    finally:
        stop.set()
        writer.join()
    assert nothing_half_done(artifacts)
    artifacts.read_tree(source)


def test_inputs_go_under_their_dest_with_their_content(artifacts: Artifacts, source: Path) -> None:
    (source / "d").mkdir()
    (source / "d" / "x").write_bytes(b"1")
    (source / "one.py").write_bytes(b"2")
    inputs = (
        InputSpec("", "data", artifacts.read_tree(source / "d")),
        InputSpec("", "code/one.py", artifacts.read_tree(source / "one.py")),
    )
    entries = artifacts.entries(inputs)
    assert [(e.path, e.kind) for e in entries] == [
        ("data", EntryKind.DIRECTORY),
        ("data/x", EntryKind.FILE),
        ("code/one.py", EntryKind.FILE),
    ]
    with entries[1].open() as one, entries[2].open() as two:
        assert (one.read(), two.read()) == (b"1", b"2")
    assert artifacts.contents(inputs) == {"data": ("x",), "code/one.py": ("",)}


def test_an_input_whose_blob_is_gone_is_told(artifacts: Artifacts) -> None:
    with pytest.raises(PlatformError, match="not in the artifact store any more"):
        artifacts.entries([InputSpec("a", "a", "0" * 64)])
    with pytest.raises(ValueError, match="not a sha256"):
        artifacts.entries([InputSpec("a", "a", "../../etc/passwd")])


names = st.text(st.characters(codec=None, exclude_characters="\0/"), min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
entries = st.builds(
    Entry,
    path=paths,
    kind=st.just(EntryKind.FILE),
    mode=st.integers(0, 0o777),
    size=st.integers(0, 2**63),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
) | st.builds(Entry, path=paths, kind=st.just(EntryKind.SYMLINK), mode=st.just(0o777), target=paths)


@settings(max_examples=200)
@given(st.lists(entries, unique_by=lambda entry: entry.path), st.booleans())
def test_a_manifest_survives_its_json_whatever_the_names_and_order(found: list[Entry], complete: bool) -> None:
    tree = Tree.of(found, complete=complete)
    assert Tree.from_json(tree.to_json()) == tree
    assert Tree.of(reversed(found), complete=complete).to_json() == tree.to_json()
    assert tree.to_json().isascii()


def test_a_manifest_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2"):
        Tree.from_json(b'{"format":2,"complete":true,"entries":[]}')
