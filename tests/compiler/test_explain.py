"""`--explain` says what a plan holds, in the author's words, and why the rest is not known."""
# ruff: noqa: E501 (tables with one case a line)

import pytest
from hypothesis import given, settings
from support.programs import programs
from support.scripted import ScriptedTokenizer
from support.toy_tokenizer import ToyTemplate, ToyTokenizer

from dslc.compiler.explain import explain, print_explanation
from dslc.compiler.parser import parse_program
from dslc.compiler.pipeline import compile_program


def explained(body, tokenizer=None, template=None):
    """{title: (gains, limits)} of a program with the parameter `topic` (%0)."""
    tokenizer = tokenizer or ToyTokenizer()
    program = parse_program(f'program p(topic) {{\n%0 = arg "topic"\n{body}\n}}')
    plan = compile_program(program, tokenizer, template)
    return {item.title: (list(item.gains), list(item.limits)) for item in explain(plan, tokenizer)}


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ('text "a b"; text %0; %1 = gen "x"', "from there on the prompt depends on the argument 'topic' (line 3)"),
        ('text %0; %1 = gen "x"', "from the start the prompt depends on the argument 'topic' (line 3)"),
        ('%3 = upper %0; text %3; %1 = gen "x"', "from the start the prompt depends on the argument 'topic' (line 3)"),
        ('set "v" %0; %3 = get "v"; text %3; %1 = gen "x"', "from the start the prompt depends on the variable 'v' (line 3)"),
        ('text "a b"; media image "cat"; %1 = gen "x"', "from there on the prompt depends on the image (line 3)"),
        (
            'text "a b"\nswitch %0 {\n case "a" { text "c" }\n}\n%1 = gen "x"',
            "from there on the prompt depends on the branch taken (line 4)",
        ),
        (
            'text "a b"; fork 1; [1] text "c"; join concate_and_append 1; %1 = gen "x"',
            "from there on the prompt depends on the branches joined (line 3)",
        ),
    ],
)  # fmt: skip
def test_why_a_prompt_is_not_constant(body, limit):
    _, limits = explained(body)['gen "x"']
    assert limits == [limit]


def test_a_turn_the_template_does_not_lower_is_named():
    _, limits = explained('role "tool" { text "x" }\n%1 = gen "x"', template=ToyTemplate("tool"))['gen "x"']
    (limit,) = limits
    assert limit.startswith("from the start the prompt depends on the tool turn (line 3), which the chat template")


def test_what_a_constant_prompt_gains():
    gains, limits = explained('text "one two three"; %1 = gen "x"; text "end"')['gen "x"']
    assert gains == [
        'the whole prompt is constant: 2 tokens and the text " three"; cached from one run to the next',
        'followed by the constant "end"',
    ]
    assert limits == []


def test_what_comes_before_is_named_by_path():
    found = explained("""
      text "a"
      %1 = gen "first"
      switch %1 {
        case "x" { %2 = gen "left" }
        case "y" { %3 = gen "right"; return 1 }
      }
      fork 1 2
      [1] %4 = gen "part"
      [2] %5 = select "kind" ["a", "ab", "ac"]
      [2] %6 = select "open" %0
    """)
    cached = "goes on from gen {}: prompt and output are in the cache"
    assert cached.format('"first"') in found['gen "left"'][0] and cached.format('"first"') in found['gen "right"'][0]
    for title in ('gen "part" on branch 1', 'select "kind" on branch 2'):
        assert cached.format('"first" or gen "left"') in found[title][0]
    assert "3 choices are one trie of 3 tokens (3 apart), scored in one pass" in found['select "kind" on branch 2'][0]
    assert found['select "open" on branch 2'][1][-1].startswith("the choices are not constant")


def test_branches_share_the_prompt_before_the_fork():
    found = explained('text %0; fork 1 2 3; [2] %1 = gen "x"')
    assert "the 3 branches of the fork share the prompt before it, computed once" in found['gen "x" on branch 2'][0]


def test_constraints_are_counted_and_forced_text_is_shown():
    gens = '%1 = gen "x" constraint=regex("id: [0-9]+")\n%2 = gen "y" constraint=regex("id: [0-9]+")'
    found = explained(f'text "a"\n{gens}\n%3 = gen "z" constraint=regex(%0)', ScriptedTokenizer())
    assert "the regex is known: compiled once for each vocabulary and process, one for 2 gens" in found['gen "x"'][0]
    assert any((gain.startswith("its first ") and '"id: "' in gain) or '"id:' in gain for gain in found['gen "x"'][0])
    assert "its regex depends on a value: it is compiled in the run" in found['gen "z"'][1]


def test_the_text_has_all_of_it():
    program = parse_program(
        'program p() {\ntext "a"\n%1 = gen "x" sampling=(max_new_tokens=5)\nopaque "a loop"\n}', "p.ir"
    )
    tokenizer = ToyTokenizer()
    assert print_explanation(compile_program(program, tokenizer), tokenizer).splitlines() == [
        "p: 1 gens, 0 selects; at most 5 new tokens in a run of every gen",
        'p.ir:3: gen "x"',
        '  + the whole prompt is constant: 0 tokens and the text "a"; cached from one run to the next',
        "p.ir:4: the program is run by its Python body, since the compiler cannot follow: a loop",
    ]
    assert "compiled without a tokenizer" in print_explanation(compile_program(program))


@settings(max_examples=100, deadline=None)
@given(programs())
def test_any_plan_can_be_explained(program):
    tokenizer = ScriptedTokenizer()
    plan = compile_program(program, tokenizer)
    assert len(explain(plan, tokenizer)) == len(plan.facts)
