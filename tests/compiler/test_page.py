"""The HTML page and the DOT graph hold the whole program, escaped, and load nothing."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from support.programs import programs
from support.scripted import ScriptedTokenizer

from dslc.compiler.ir import walk
from dslc.compiler.page import print_dot, print_page
from dslc.compiler.parser import parse_program
from dslc.compiler.pipeline import compile_program

VOID = {"meta"}


class Reader(HTMLParser):
    """Checks that tags are balanced; collects text, attributes and classes."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.classes, self.lines, self.attributes = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.attributes |= values.keys()
        self.classes += (values.get("class") or "").split()
        if "data-line" in values:
            self.lines.append(values["data-line"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def page_of(program):
    tokenizer = ScriptedTokenizer()
    reader = Reader()
    text = print_page(program, compile_program(program, tokenizer), tokenizer)
    reader.feed(text)
    assert reader.open == []
    return text, reader


@settings(max_examples=60, deadline=None)
@given(programs())
def test_any_program_has_a_page_with_all_its_ops(program):
    text, reader = page_of(program)
    assert reader.classes.count("op") == sum(1 for _ in walk(program.body))
    assert not {"src", "href", "onclick"} & reader.attributes and "http" not in re.sub(r"[^\x20-\x7e]", "", text)


@pytest.fixture
def program(tmp_path):
    source = 'program p(q) {\n%0 = arg "q"\ntext "<script>alert(1)</script> & \\" "\nfork 1\n'
    source += '[1] %1 = gen "x" constraint=regex("[a-z]+")\nswitch %1 {\ncase "</div>" { text "}" }\n}\n}\n'
    path = tmp_path / "p.ir"
    path.write_text(source)
    return parse_program(source, str(path))


def test_the_page_shows_source_and_program_side_by_side(program):
    text, reader = page_of(program)
    shown = "".join(reader.texts)
    assert "<script>alert" not in text and shown.count("<script>alert(1)</script> & ") == 2  # as source, as op
    assert 'gen "x" constraint=regex("[a-z]+")' in shown and "the whole prompt is constant" in shown
    file = program.body[0].where.file
    # Every op points at a line that is shown.
    rows = {line for line in reader.lines if line.startswith(file)}
    assert {str(op.where) for op in walk(program.body)} <= rows
    assert 'case "</div>"' in shown and reader.classes.count("gen") == 1


def test_a_source_that_is_gone_is_said_to_be(program, tmp_path):
    (tmp_path / "p.ir").unlink()
    assert "p.ir is not there to be shown" in page_of(program)[0]


@settings(max_examples=60, deadline=None)
@given(programs())
def test_any_program_is_a_graph(program):
    text = print_dot(program)
    nodes = re.findall(r"^  op(\d+) \[label=", text, re.MULTILINE)
    assert [int(node) for node in nodes] == list(range(sum(1 for _ in walk(program.body))))
    for source, target in re.findall(r"^  op(\d+) -> op(\d+) ", text, re.MULTILINE):
        assert int(source) < int(target) < len(nodes)


def test_the_graph_has_an_edge_for_each_value(program):
    text = print_dot(program)
    assert 'op3 -> op4 [label="%1"];' in text and text.startswith('digraph "p" {')
    assert 'label="text \\"<script>alert(1)</script> & \\\\\\" \\""' in text
