"""The program passes, before and after in IR text, and the laws they keep."""
# ruff: noqa: E501 (tables with one case a line)

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ids_of import ids_of
from support.programs import ALL_OPS, programs
from support.toy_tokenizer import ToyTemplate, ToyTokenizer

import dslc
from dslc.compiler.fields import all_refs
from dslc.compiler.ir import Program, Role, Text, walk
from dslc.compiler.parser import parse_ops
from dslc.compiler.passes.base import Context
from dslc.compiler.passes.chat_template import LOWER_CHAT_TEMPLATE
from dslc.compiler.passes.fold_text import FOLD_TEXT
from dslc.compiler.passes.tokenize_constants import TOKENIZE_CONSTANTS
from dslc.compiler.pipeline import compile_program
from dslc.compiler.printer import print_op, print_program
from dslc.compiler.verifier import diagnose
from dslc.core.text.load import load_tokenizer

BUILTIN = Path(dslc.__file__).parent / "runtime" / "builtin" / "dslc_tiny"


def rewritten(pass_, before, context=None):
    """The ops after a pass, one line each, ids shown as the pieces they stand for."""
    context = context or Context()
    after = pass_.run(Program("p", body=parse_ops(before)), context)
    return [line.strip() for op in after.body for line in print_op(op).splitlines()]


def assert_rewrites(pass_, before, after, context=None):
    assert rewritten(pass_, before, context) == [line.strip() for line in after.strip().splitlines()]


# fold-text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('text "Q: "; text "why?"; %1 = gen; text "\\n"', 'text "Q: why?"\n%1 = gen\ntext "\\n"'),
        ('text "a"; text ""; text "b"', 'text "ab"'),
        ('text ""', ""),
        ('text "a"; set "x" 1; text "b"', 'text "ab"\nset "x" 1'),
        ('text "a"; %1 = text; text "b"', 'text "a"\n%1 = text\ntext "b"'),
        ('text "a"; fork 1; text "b"', 'text "a"\nfork 1\ntext "b"'),
        ('fork 1; text "a"; [1] text "x"; text "b"; [1] text "y"', 'fork 1\ntext "ab"\n[1] text "xy"'),
        ('fork 1; [1] text "a"; join gather_variable 1; text "b"', 'fork 1\n[1] text "a"\njoin gather_variable 1\ntext "b"'),
        ('text "a"; media image "cat.png"; text "b"', 'text "a"\nmedia image "cat.png"\ntext "b"'),
        ('text "a"; special "<|end|>"; text "b"', 'text "a"\nspecial "<|end|>"\ntext "b"'),
        ('text "a"; role "user" { text "b"; text "c" }; text "d"', 'text "a"\nrole "user" { text "bc" }\ntext "d"'),
        ('%1 = concat "Q" ": "; text %1; text "x"', 'text "Q: x"'),
        ('%1 = concat 1 "b"; text %1', 'text "1b"'),
        ('%1 = len "abc"; set "n" %1', 'set "n" 3'),
        ('%1 = len "abc"; text %1', '%1 = len "abc"\ntext %1'),  # no text: it fails in the run, as it would
        ('%1 = int "x"; set "n" %1', '%1 = int "x"\nset "n" %1'),
        ('%1 = mul "ab" 1000000000; set "n" %1', '%1 = mul "ab" 1000000000\nset "n" %1'),
        ('%1 = gen; %2 = concat "A " %1 " B"; text %2; text "C"', '%1 = gen\ntext "A "\ntext %1\ntext " BC"'),
        ('%1 = gen; %2 = concat "A " %1; text %2; set "x" %2', '%1 = gen\n%2 = concat "A " %1\ntext "A "\ntext %1\nset "x" %2'),
        (
            '%1 = gen sampling=(n=2); %2 = index %1 0; %3 = concat "A " %2; text %3',
            '%1 = gen sampling=(n=2)\n%2 = index %1 0\ntext "A "\n%4 = concat %2\ntext %4',
        ),
        (
            '%1 = gen; %2 = concat "A " %1; %3 = concat %2 "; " %2; text %3',
            '%1 = gen\ntext "A "\ntext %1\ntext "; A "\ntext %1',
        ),
        (
            '%1 = gen; %2 = add "A " %1; %3 = add %2 ";"; text %3; text "B"',
            '%1 = gen\ntext "A "\ntext %1\ntext ";B"',
        ),
        ('%1 = gen; %2 = len %1; %3 = add %2 1; text %3', '%1 = gen\n%2 = len %1\n%3 = add %2 1\ntext %3'),
        ('%1 = concat; set "x" [%1, 2]', 'set "x" ["", 2]'),
    ],
)  # fmt: skip
def test_fold_text(before, after):
    assert_rewrites(FOLD_TEXT, before, after)


@settings(max_examples=150, deadline=None)
@given(programs(constraints=False))
def test_fold_text_keeps_programs_legal_and_is_idempotent(program):
    once = FOLD_TEXT.run(program, Context())
    assert diagnose(once) == []
    assert FOLD_TEXT.run(once, Context()) == once
    assert len(list(all_refs(once))) == len({ref.id for ref in all_refs(once)})


# lower-chat-template


def chat(refuses="nobody"):
    return Context(template=ToyTemplate(refuses))


def test_roles_become_template_text():
    assert_rewrites(
        LOWER_CHAT_TEMPLATE,
        'role "system" { text "Be brief." }; role "assistant" { %1 = gen }',
        """
        role "system" prefix="<|system|>\\n" suffix="<|end|>\\n" {
          special "<|system|>\\n"
          text "Be brief."
          special "<|end|>\\n"
        }
        role "assistant" prefix="<|assistant|>\\n" suffix="<|end|>\\n" {
          special "<|assistant|>\\n"
          %1 = gen
          special "<|end|>\\n"
        }""",
        chat(),
    )


def lowered_roles(before, context):
    program = LOWER_CHAT_TEMPLATE.run(Program("p", body=parse_ops(before)), context)
    return [op.role for op in walk(program.body) if isinstance(op, Role) and op.prefix is not None]


def test_a_turn_that_does_not_pass_stays_and_so_do_those_after_it():
    before = 'role "system" { text "a" }\nrole "tool" { text "b" }\nrole "user" { text "c" }'
    assert lowered_roles(before, chat("tool")) == ["system"]
    assert lowered_roles(before, chat("system")) == []


def test_where_contents_are_stripped_only_plain_constants_are_lowered():
    context = Context(template=ToyTemplate("nobody", strips="user"))
    turns = 'role "user" { text "b" }; role "user" { text " b" }; role "user" { text %1 }; role "user" { %2 = gen }'
    assert lowered_roles(f'role "system" {{ text " a" }}; {turns}', context) == ["system", "user"]


class Counting:
    """A template whose fragments depend on the number of turns before."""

    def fragments(self, roles, plain=False):
        return f"{len(roles)}. ", "\n"


def test_a_turn_whose_text_depends_on_the_path_stays():
    before = 'switch "a" {\n case "a" { role "user" { text "x" } }\n}\nrole "assistant" { text "y" }'
    assert lowered_roles(before, Context(template=Counting())) == ["user"]
    assert lowered_roles(before, chat()) == ["user", "assistant"]
    returning = before.replace('text "x" }', 'text "x" }; return 1')  # that path does not come to the second turn
    assert lowered_roles(returning, Context(template=Counting())) == ["user", "assistant"]


def test_branches_know_the_turns_before_the_fork():
    lines = rewritten(
        LOWER_CHAT_TEMPLATE,
        'role "user" { text "a" }\nfork 1 2\n[2] role "user" { text "b" }\nrole "user" { text "c" }',
        Context(template=Counting()),
    )
    assert [line for line in lines if "special" in line and "\\n" not in line] == [
        'special "1. "', 'special "2. "', 'special "2. "',
    ]  # fmt: skip


def test_a_turn_in_which_the_program_may_return_stays():
    assert lowered_roles('role "user" { text "a"; return 1 }', chat()) == []
    maybe = 'role "user" { switch "a" {\n case "b" { return 1 }\n} }; role "user" { text "a" }'
    assert list(lowered_roles(maybe, chat())) == ["user"]


# tokenize-constants


def tokenized(before, tokenizer=None):
    """Lines after the pass; ids as `ids<piece|piece>`."""
    tokenizer = tokenizer or ToyTokenizer()
    program = TOKENIZE_CONSTANTS.run(Program("p", body=parse_ops(before)), Context(tokenizer))
    lines = print_program(program).splitlines()[1:-1]
    shown = []
    for line in lines:
        words = line.split(" ")
        at = words.index("tokens") if "tokens" in words else -1
        if at >= 0:
            ids = []
            while words[at + 1].isdigit():
                ids.append(int(words.pop(at + 1)))
            words[at] = "ids<" + "|".join(tokenizer.decode([i], False) for i in ids) + ">"
        shown.append(" ".join(words).strip().replace("\n", "\\n"))
    return shown


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('text "The sky is"', ['ids<The| sky> "The sky"', 'text " is"']),
        ('text "The"; %1 = gen', ['text "The"', "%1 = gen"]),
        (
            'text "Say it. "; %1 = gen; text " Then go"',
            ['ids<Say| it|.> "Say it."', 'text " "', "%1 = gen", 'ids< Then> " Then" continues=true', 'text " go"'],
        ),
        ('special "<|user|>Hello you<|end|>"', ['ids<<|user|>|Hello| you|<|end|>> "<|user|>Hello you<|end|>"']),
        (
            'special "<|user|>\\n"; text "Hello you"; special "<|end|>\\n"',
            ['ids<<|user|>|\\n|Hello| you|<|end|>> "<|user|>\\nHello you<|end|>"', 'special "\\n"'],
        ),
        # After a gen, a plain run may open with kept text; a special token closes it.
        (
            '%1 = gen; text "ok"; special "<|end|>"; text "go on"; %2 = gen',
            ["%1 = gen", 'ids<ok> "ok" continues=true', 'ids<<|end|>|go> "<|end|>go"', 'text " on"', "%2 = gen"],
        ),
        # What follows a value is not known to start a token.
        ('%1 = gen; text "A: "; text %1; text " B C"', ["%1 = gen", 'ids<A|:> "A:" continues=true', 'text " "', "text %1", 'text " B C"']),
        ('%1 = gen; text %1; special "<|end|>"; text "x y"', ["%1 = gen", "text %1", 'ids<<|end|>|x> "<|end|>x"', 'text " y"']),
        # A branch goes on with the text that its parent left open: the ids start at the first settled place.
        (
            'text "one tw"; fork 1; [1] text "o three four"; text "x"',
            ['ids<one> "one"', 'text " tw"', "fork 1", '[1] text "o"', '[1] ids< three> " three"', '[1] text " four"', 'text "x"'],
        ),
        ('text "one two"; fork 1; special "<|end|>"', ['ids<one> "one"', 'text " two"', "fork 1", 'ids<<|end|>> "<|end|>"']),
        # What is not settled stays template text, or plain text, as it was.
        (
            'text "x"; special "<|a|>y\\n"; %1 = gen; special "y z"; text "w"',
            ['ids<x|<|a|>|y> "x<|a|>y"', 'special "\\n"', "%1 = gen", 'ids<y> "y" continues=true fixed=1', 'special " z"', 'text "w"'],
        ),
        ('text "a b"; media image "cat"; text "c d"', ['ids<a| b> "a b"', 'media image "cat"', 'ids<c> "c"', 'text " d"']),
        # A lowered turn's end is settled by the next one's special token, across the regions.
        (
            'role "a" prefix="" suffix="" { special "<|end|>\\n" }; role "b" prefix="" suffix="" { special "<|b|>" }',
            ['role "a" prefix="" suffix="" { ids<<|end|>|\\n> "<|end|>\\n" }', 'role "b" prefix="" suffix="" { ids<<|b|>> "<|b|>" }'],
        ),
        # Only the executor knows what stands around a turn that is not lowered.
        ('text "a b"; role "user" { text "c d" }; text "e f"', ['ids<a> "a"', 'text " b"', 'role "user" { text "c d" }', 'text "e f"']),
        (
            'text "a b"; switch %0 {\n case 1 { text " c d" }\n case 2 { text " c d" }\n}; text "e f g"',
            ['ids<a> "a"', 'text " b"', "switch %0 {", *(line for i in "12" for line in (f"case {i} {{", 'ids< c> " c"', 'text " d"', "}")), "}", 'text "e f g"'],
        ),
        ('text "a b"; switch 1 {\n case 1 { return 2 }\n}; special "<|end|>"', ['ids<a> "a"', 'text " b"', "switch 1 { case 1 { return 2 } }", 'ids<<|end|>> "<|end|>"']),
        ('%1 = scope "v" { text "a b c" }; text " d"', ['%1 = scope "v" {', 'ids<a| b> "a b"', 'text " c"', "}", 'text " d"']),
    ],
)  # fmt: skip
def test_tokenize_constants(before, after):
    assert tokenized(before) == after


STRAIGHT = frozenset({"text", "special", "gen", "select", "media", "set", "expr", "scope"})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('special "<|a|>"; text "x y"', ['special "<|a|>"', 'ids<x> "x"', 'text " y"']),
        ('special "<|a|>b"; text "x y"', ['special "<|a|>b"', 'text "x y"']),
        ('special "<|bos|>b c"', ['ids<<|bos|>|b> "<|bos|>b"', 'special " c"']),
        ('text "x y"; special "<|a|>"', ['ids<x| y|<|a|>> "x y<|a|>"']),
        ('role "u" prefix="<|u|>" suffix="" { special "<|u|>" }', ['role "u" prefix="<|u|>" suffix="" { ids<<|u|>> "<|u|>" }']),
        ('fork 1; text "x y"; [1] special "<|a|>"', ["fork 1", 'ids<x> "x"', 'text " y"', '[1] special "<|a|>"']),
    ],
)  # fmt: skip
def test_whether_a_bos_is_due_is_left_to_the_executor(before, after):
    assert tokenized(before, ToyTokenizer(adds_bos=True)) == after


@pytest.fixture(scope="module")
def tokenizers():
    return {"toy": ToyTokenizer(), "built-in": load_tokenizer(BUILTIN)}


@pytest.mark.parametrize("name", ["toy", "built-in"])
@settings(max_examples=200, deadline=None)
@given(program=programs(STRAIGHT, max_size=12, constraints=False), kept=st.sampled_from(["", "cut", " ", "\n"]))
def test_ids_are_those_of_the_whole_run(tokenizers, name, program, kept):
    """Joint rule: however text was split into ops, and whatever a cut generation leaves behind, a run's ids are those
    of its text as one string."""
    tokenizer = tokenizers[name]
    context = Context(tokenizer)
    after = TOKENIZE_CONSTANTS.run(program, context)
    assert ids_of(after, tokenizer, kept) == ids_of(program, tokenizer, kept)
    folded = FOLD_TEXT.run(program, context)
    assert ids_of(TOKENIZE_CONSTANTS.run(folded, context), tokenizer, kept) == ids_of(folded, tokenizer, kept)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_a_text_may_be_split_anywhere(tokenizers, text, places):
    tokenizer = tokenizers["built-in"]
    cuts = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    body = tuple(Text(text=text[a:b]) for a, b in itertools.pairwise(cuts))
    program = TOKENIZE_CONSTANTS.run(FOLD_TEXT.run(Program("p", body=body), Context()), Context(tokenizer))
    assert ids_of(program, tokenizer) == tokenizer.encode(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=3), st.booleans())
def test_a_lowered_conversation_has_the_ids_of_the_template(tokenizers, contents, with_system):
    tokenizer = tokenizers["built-in"]
    turns = (["system"] if with_system else []) + ["user", "assistant"] * 2
    messages = [{"role": role, "content": content} for role, content in zip(turns, contents, strict=False)]
    body = tuple(Role(role=m["role"], body=(Text(text=m["content"]),)) for m in messages)
    program = compile_program(Program("p", body=body), tokenizer).program
    assert ids_of(program, tokenizer) == tokenizer.encode_prompt(tokenizer.chat_template.render(messages))


@settings(max_examples=150, deadline=None)
@given(programs(ALL_OPS, constraints=False))
def test_passes_in_a_row_keep_programs_legal(program):
    context = Context(ToyTokenizer(), ToyTemplate("tool"))
    for pass_ in (LOWER_CHAT_TEMPLATE, FOLD_TEXT, TOKENIZE_CONSTANTS):
        program = pass_.run(program, context)
        assert diagnose(program) == [], pass_.name
