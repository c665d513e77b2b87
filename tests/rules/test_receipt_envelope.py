"""The envelope of a receipt: no byte of it can be another, and no other key will do."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.receipts import Keys, Refused
from orchestrator.receipts.envelope import canonical, opened, sealed
from orchestrator.receipts.names import file_of, path_of, uri_of

STATEMENT = {"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "a"}], "predicate": {"n": 1.5}}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def file(keys: Keys) -> bytes:
    return canonical(sealed(STATEMENT, keys.signer()))


def test_a_good_one_opens_with_the_public_key_alone(keys: Keys, file: bytes) -> None:
    found = opened(file, keys.trusted())
    assert found.statement == STATEMENT
    assert found.key_id == keys.list()[0].id


@given(data=st.data())
def test_one_byte_changed_anywhere_is_refused(keys: Keys, file: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(file) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(byte != file[at])
    with pytest.raises(Refused):
        opened(file[:at] + bytes([byte]) + file[at + 1 :], keys.trusted())


@given(data=st.data())
def test_a_byte_more_or_less_anywhere_is_refused(keys: Keys, file: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(file)))
    byte = bytes([data.draw(st.integers(0, 255))])
    for changed in (file[:at] + byte + file[at:], file[:at] + file[at + 1 :]):
        assume(changed != file)
        with pytest.raises(Refused):
            opened(changed, keys.trusted())


@given(text=st.binary(max_size=300))
def test_what_is_no_envelope_is_refused(keys: Keys, text: bytes) -> None:
    with pytest.raises(Refused):
        opened(text, keys.trusted())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("AAAA"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["keyid", "sig", "x"]), inner),
    max_leaves=6,
)


@given(payload=_JSON, kind=_JSON, signatures=_JSON)
def test_an_envelope_of_other_kinds_of_values_is_refused(keys: Keys, payload: Any, kind: Any, signatures: Any) -> None:
    for each in (kind, "application/vnd.in-toto+json"):
        text = canonical({"payload": payload, "payloadType": each, "signatures": signatures})
        with pytest.raises(Refused):
            opened(text, keys.trusted())


def changed(file: bytes, **fields: Any) -> bytes:
    return canonical({**json.loads(file), **fields})


def test_the_same_written_otherwise_is_refused(keys: Keys, file: bytes) -> None:
    data = json.loads(file)
    [signature] = data["signatures"]
    for other in (
        json.dumps(data).encode(),
        file + b"\n",
        changed(file, more=1),
        changed(file, signatures=[{**signature, "more": 1}]),
        changed(file, signatures=[signature, {**signature, "keyid": "0" * 64}]),
        changed(file, signatures=[]),
        changed(file, payload=data["payload"] + "===="),
    ):
        with pytest.raises(Refused):
            opened(other, keys.trusted())


def test_another_statement_under_the_same_signature_is_refused(keys: Keys, file: bytes) -> None:
    other = base64.b64encode(canonical({**STATEMENT, "predicate": {"n": 1.6}})).decode()
    with pytest.raises(Refused, match="was changed"):
        opened(changed(file, payload=other), keys.trusted())


def test_another_kind_of_payload_is_refused(keys: Keys, file: bytes) -> None:
    with pytest.raises(Refused, match="text/plain"):
        opened(changed(file, payloadType="text/plain"), keys.trusted())


def test_another_key_is_refused_whatever_it_says_of_itself(keys: Keys, file: bytes, tmp_path: Path) -> None:
    other = Keys(tmp_path)
    forged = canonical(sealed(STATEMENT, other.signer()))
    with pytest.raises(Refused, match="another key"):
        opened(forged, keys.trusted())
    [signature] = json.loads(forged)["signatures"]
    ours = keys.list()[0].id
    with pytest.raises(Refused, match="signature is not right"):
        opened(changed(forged, signatures=[{**signature, "keyid": ours}]), keys.trusted())


def test_only_a_statement_that_is_written_canonically_is_taken(keys: Keys) -> None:
    """Whoever holds the key could sign other things; they are no receipts."""
    from securesystemslib.dsse import Envelope

    for payload in (b"", b"{", b"[]", b'{"a": 1}', b'{"b":1,"a":1}', b"NaN"):
        envelope = Envelope(payload, "application/vnd.in-toto+json", {})
        envelope.sign(keys.signer())
        with pytest.raises(Refused, match="what was signed"):
            opened(canonical(envelope.to_dict()), keys.trusted())


# -- names in a crate

_names = st.text(st.characters(exclude_categories=(), exclude_characters="/\0"), min_size=1, max_size=8)


def _is_a_file_name(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return name not in (".", "..")


@given(st.lists(_names.filter(_is_a_file_name), min_size=1, max_size=3).map("/".join))
def test_every_path_has_its_own_uri_and_its_own_file(path: str) -> None:
    uri = uri_of(path)
    assert path_of(uri).encode("utf-8", "surrogateescape") == path.encode("utf-8", "surrogateescape")
    name = file_of(uri)
    assert name.isprintable()
    assert name.encode("utf-8")
    if "%" in name:
        assert name == uri
    else:
        assert uri_of(name) == uri


@pytest.mark.parametrize(
    "uri",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "%2e%2e/x", "a%2fb", "a b", "%00", "%", "%zz", "%e9"],
)
def test_what_is_no_name_in_a_crate_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        path_of(uri)
