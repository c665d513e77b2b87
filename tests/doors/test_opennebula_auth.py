"""ONE_AUTH: whatever is wrong with the file, the message names the variable and never shows what the file holds."""

import os

import pytest

from orchestrator.domain.errors import NotPossible
from orchestrator.opennebula.auth import read_session


@pytest.mark.parametrize("content", ["ann:secret", "ann:secret\n", "  ann:secret \n\n", "ann:to:ken"])
def test_one_line_with_user_and_password(tmp_path, content):
    file = tmp_path / "one_auth"
    file.write_text(content)
    assert read_session(file) == content.strip()


@pytest.mark.parametrize("content", ["", "\n", "ann", ":secret", "ann:", "ann:secret\nbob:secret"])
def test_a_file_that_holds_anything_else(tmp_path, content):
    file = tmp_path / "one_auth"
    file.write_text(content)
    with pytest.raises(NotPossible, match="ONE_AUTH") as caught:
        read_session(file)
    assert "secret" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "one_auth"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotPossible, match=r"ONE_AUTH: .* is not text"):
        read_session(file)


def test_no_file(tmp_path):
    with pytest.raises(NotPossible, match=r"ONE_AUTH: there is no file .*/one_auth"):
        read_session(tmp_path / "one_auth")


def test_a_directory(tmp_path):
    with pytest.raises(NotPossible, match=r"ONE_AUTH: .* cannot be read: Is a directory"):
        read_session(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path):
    file = tmp_path / "one_auth"
    file.write_text("ann:secret")
    file.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(NotPossible, match=r"ONE_AUTH: .* may not be read by this user"):
            read_session(file)
    finally:
        os.seteuid(user)


def test_the_default_is_opennebulas_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".one").mkdir()
    (tmp_path / ".one" / "one_auth").write_text("ann:secret")
    assert read_session(None) == "ann:secret"
