"""Values in template text: whatever they are, they stay values."""

import doctest

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.localcloud.template import parse
from orchestrator.opennebula import render
from orchestrator.opennebula.render import Key, Renderer, Unrenderable, quote

RENDERER = Renderer()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NASTY = st.text(st.sampled_from(list('"\\]>[=,#$\n\t ab')), max_size=20)
VALUE = TEXT | NASTY
KEYS = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)


def sayable(text: str) -> bool:
    try:
        quote(text)
    except Unrenderable:
        return False
    return True


@given(VALUE)
def test_a_quoted_value_reads_back_as_itself_or_is_refused(text):
    try:
        quoted = quote(text)
    except Unrenderable:
        return
    assert parse(f"A={quoted}\nB=[C={quoted},D={quoted}]\nE={quoted}\n") == {
        "A": [text],
        "B": [{"C": text, "D": text}],
        "E": [text],
    }


@given(VALUE)
def test_only_what_has_no_form_is_refused(text):
    forbidden = text.endswith("\\") or "]]>" in text or any(c in text for c in "\r\ufffe\uffff")
    forbidden = forbidden or any(ord(c) < 32 and c not in "\t\n" for c in text)
    assert sayable(text) is not forbidden


@given(
    context=st.dictionaries(KEYS, VALUE.filter(lambda text: sayable(text) and "$" not in text)),
    tags=st.dictionaries(KEYS.map(lambda key: f"MAYFLY_{key}"), VALUE.filter(sayable)),
    cpus=st.integers(1, 64),
    memory=st.integers(1, 10**6),
    required=VALUE.filter(sayable),
)
def test_a_machine_reads_back_as_what_was_said(context, tags, cpus, memory, required):
    text = RENDERER.render(
        "machine", cpus=cpus, memory_mb=memory, network_id=3, context=context, required=required, tags=tags
    )
    assert parse(text) == {
        "CPU": [str(cpus)],
        "VCPU": [str(cpus)],
        "MEMORY": [str(memory)],
        "NIC": [{"NETWORK_ID": "3"}],
        "CONTEXT": [context],
        **({"SCHED_REQUIREMENTS": [required]} if required else {}),
        **{key: [value] for key, value in tags.items()},
    }


@given(name=VALUE.filter(sayable), cmdline=VALUE.filter(sayable))
def test_a_version_reads_back_as_what_was_said(name, cmdline):
    text = RENDERER.render(
        "version", name=name, disk_image=1, kernel_image=2, ramdisk_image=3, kernel_cmdline=cmdline, tags={}
    )
    parsed = parse(text)
    assert parsed["NAME"] == [name]
    assert parsed["DISK"] == [{"IMAGE_ID": "1"}]
    assert parsed["OS"] == [{"KERNEL_DS": "$FILE[IMAGE_ID=2]", "INITRD_DS": "$FILE[IMAGE_ID=3]", "KERNEL_CMD": cmdline}]


@given(name=VALUE.filter(sayable), path=VALUE.filter(sayable), kind=st.sampled_from(["OS", "KERNEL", "RAMDISK"]))
def test_an_image_reads_back_as_what_was_said(name, path, kind):
    parsed = parse(RENDERER.render("image", name=name, path=path, kind=kind, tags={"MAYFLY_IMAGE": name}))
    assert (parsed["NAME"], parsed["PATH"], parsed["TYPE"]) == ([name], [path], [kind])
    assert parsed["MAYFLY_IMAGE"] == [name]
    assert ("FORMAT" in parsed) is (kind == "OS")


def test_a_quote_does_not_end_a_value():
    text = RENDERER.render("tags", tags={"MAYFLY_VM": '1"\nNIC=[NETWORK_ID="9"]\nX="'})
    assert parse(text) == {"MAYFLY_VM": ['1"\nNIC=[NETWORK_ID="9"]\nX="']}


@pytest.mark.parametrize("key", ["", "a", "A B", "A=1\nB", "1A", "A]", "Ä", "_A"])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(Unrenderable, match="no name for an attribute"):
        Key(key)
    with pytest.raises(Unrenderable, match="no name for an attribute"):
        RENDERER.render("machine", cpus=1, memory_mb=1, network_id=1, context={key: "x"}, required="", tags={})


def test_a_tag_is_never_an_attribute_with_a_meaning():
    with pytest.raises(Unrenderable, match="MAYFLY_"):
        RENDERER.render("tags", tags={"NIC": "x"})


def test_a_variable_of_opennebulas_in_a_context_is_refused():
    with pytest.raises(Unrenderable, match="takes for a variable"):
        RENDERER.render(
            "machine", cpus=1, memory_mb=1, network_id=1, context={"A": "$USER[PASSWORD]"}, required="", tags={}
        )


@pytest.mark.parametrize("value", [None, True, ["x"], {"a": "b"}, b"x"])
def test_what_is_neither_text_nor_number_is_refused(value):
    with pytest.raises(Unrenderable, match="neither a text nor a number"):
        quote(value)


def test_a_template_with_a_missing_value_says_which():
    with pytest.raises(jinja2.UndefinedError, match="network_id"):
        RENDERER.render("machine", cpus=1, memory_mb=1, context={}, tags={})


def test_the_examples_hold():
    assert doctest.testmod(render).failed == 0
