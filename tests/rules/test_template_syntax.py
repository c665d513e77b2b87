"""The template syntax, as OpenNebula's lexer and the recorded errors have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.localcloud.template import TemplateError, merge, parse, render, text_of, vector_of, vectors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("\n  \n", {}),
        ('NAME="a b"', {"NAME": ["a b"]}),
        ('name = "a"', {"NAME": ["a"]}),
        ("CPU=1 MEMORY=64", {"CPU": ["1"], "MEMORY": ["64"]}),
        ('A="1"\nA="2"\n', {"A": ["1", "2"]}),
        ("EMPTY=\nNEXT=1", {"EMPTY": [""], "NEXT": ["1"]}),
        ('E=""', {"E": [""]}),
        ("# a comment\nA=1 # another\nB=2\n", {"A": ["1"], "B": ["2"]}),
        ('A="# no comment"', {"A": ["# no comment"]}),
        ('A="say \\"hi\\""', {"A": ['say "hi"']}),
        ('A="a\\nb"', {"A": ["a\\nb"]}),
        ('A="two\nlines"', {"A": ["two\nlines"]}),
        ('A="[x=1]"', {"A": ["[x=1]"]}),
        ('NIC=[NETWORK_ID="0",IP="1.2.3.4"]', {"NIC": [{"NETWORK_ID": "0", "IP": "1.2.3.4"}]}),
        ('NIC = [ network_id = 0 ,\n  IP = "x" ]', {"NIC": [{"NETWORK_ID": "0", "IP": "x"}]}),
        ("D=[A=1]\nD=[A=2]", {"D": [{"A": "1"}, {"A": "2"}]}),
        ("D=[]", {"D": [{}]}),
        ('D=[A="1",A="2"]', {"D": [{"A": "2"}]}),
        ('C=[K="$USER[SSH_PUBLIC_KEY]"]', {"C": [{"K": "$USER[SSH_PUBLIC_KEY]"}]}),
        ('OS=[KERNEL_DS="$FILE[IMAGE_ID=3]"]\nB=1', {"OS": [{"KERNEL_DS": "$FILE[IMAGE_ID=3]"}], "B": ["1"]}),
        ("T='single'", {"T": ["'single'"]}),
        ("<T><A>1</A><A>2</A><V><X>y</X></V></T>", {"A": ["1", "2"], "V": [{"X": "y"}]}),
        ("  <VM><NAME><![CDATA[a<b]]></NAME><E/></VM>", {"NAME": ["a<b"], "E": [""]}),
    ],
)
def test_parse(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # These three are recorded; the original prints garbage as the line.
        ('NAME="x\nCPU=', "unexpected $end, expecting OBRACKET or CCDATA or STRING at line 2, columns 12:13"),
        ("CPU=1 MEMORY=64 DISK=[", "unexpected $end, expecting CBRACKET or VARIABLE at line 1, columns 22:23"),
        ("K=[", "unexpected $end, expecting CBRACKET or VARIABLE at line 1, columns 3:4"),
        ("K", "unexpected $end, expecting EQUAL or EQUAL_EMPTY at line 1, columns 1:2"),
        ("K=[A]", "unexpected CBRACKET, expecting EQUAL or EQUAL_EMPTY at line 1, columns 4:5"),
        ("K=[A=1", "unexpected $end, expecting CBRACKET or COMMA at line 1, columns 6:7"),
        ("A=1,B=2", "unexpected COMMA, expecting VARIABLE or $end at line 1, columns 3:4"),
        ("A=1]", "unexpected CBRACKET, expecting VARIABLE or $end at line 1, columns 3:4"),
    ],
)
def test_syntax_errors(text, error):
    with pytest.raises(TemplateError) as raised:
        parse(text)
    assert str(raised.value) == f"Parse error: syntax error, {error}"


@pytest.mark.parametrize("text", ["<TEMPLATE><NAME>xmlvm<TEMPLATE>", "<", "<a>&nope;</a>"])
def test_bad_xml(text):
    with pytest.raises(TemplateError, match=r"^Parse error: XML Template malformed\.$"):
        parse(text)


def test_an_entity_bomb_is_refused():
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 12))
    with pytest.raises(TemplateError):
        parse(f'<!DOCTYPE t [<!ENTITY e0 "boom">{entities}]><t><A>&e11;</A></t>')


def test_a_value_that_ends_in_a_backslash_swallows_what_follows():
    assert text_of(parse('A="x\\"\n'), "A") == "x\\"
    with pytest.raises(TemplateError, match="unexpected"):
        parse('A="x\\" B="y"')


def test_merge_replaces_whole_vectors():
    base = parse('CPU=1\nCONTEXT=[NETWORK="YES",KEY="k"]\nNIC=[NETWORK_ID=0]\nNIC=[NETWORK_ID=1]')
    merged = merge(base, parse('CONTEXT=[A="b"]\nNIC=[NETWORK_ID=2]\nMEMORY=1'))
    assert merged == {
        "CPU": ["1"],
        "CONTEXT": [{"A": "b"}],
        "NIC": [{"NETWORK_ID": "2"}],
        "MEMORY": ["1"],
    }
    assert base["NIC"] == [{"NETWORK_ID": "0"}, {"NETWORK_ID": "1"}]


def test_reading_a_template():
    template = parse("A=1\nA=2\nV=[X=1]\nV=[X=2]")
    assert text_of(template, "A") == "2"
    assert text_of(template, "NONE", "d") == "d"
    assert vectors(template, "V") == [{"X": "1"}, {"X": "2"}]
    assert vector_of(template, "V") == {"X": "2"}
    assert vector_of(template, "A") == {}


keys = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)
# Not expressible in this syntax: a value that ends in a backslash, or has one before a quote.
values = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\"), max_size=20)
templates = st.dictionaries(
    keys, st.lists(values | st.dictionaries(keys, values, max_size=3), min_size=1, max_size=3), max_size=4
)


@given(templates)
def test_what_is_rendered_reads_back(template):
    assert parse(render(template)) == template
