"""Grammars: the language is lark's (every text up to a length), masks equal brute force, finished walks parse."""

from __future__ import annotations

import base64
import itertools
import json
import random

import lark
import pytest
from support.constraint_support import mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import check_constraint, compile_constraint
from dslc.compiler.constraints.compile import ConstraintCache
from dslc.compiler.constraints.ebnf.machine import GrammarMachine
from dslc.compiler.constraints.ebnf.reader import networks_of
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

ARITHMETIC = """
?start: sum
?sum: product | sum "+" product -> add | sum "-" product -> sub
?product: atom | product "*" atom | product "/" atom
?atom: NUMBER | "-" atom | "(" sum ")"
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""
JSON = r"""
?start: value
?value: object | array | string | SIGNED_NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: string ":" value
string: ESCAPED_STRING
%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""
SQL = r"""
start: query ";"?
query: "SELECT"i _W columns _W "FROM"i _W source [_W "WHERE"i _W condition] [_W "ORDER"i _W "BY"i _W _list{order}]
columns: "*" | _list{column}
column: expression [_W "AS"i _W NAME]
source: NAME | "(" query ")"
order: NAME [_W ("ASC"i | "DESC"i)]
?condition: condition _W "OR"i _W conjunct | conjunct
?conjunct: conjunct _W "AND"i _W test | test
test: expression OPERATOR expression | "(" condition ")" | "NOT"i _W test
?expression: NAME | INT | TEXT | CALL "(" _list{expression} ")"
_list{x}: x (", " x)*
CALL: "COUNT" | "MAX"
OPERATOR: /<=|>=|<>|[=<>]/
NAME: /[a-z_][a-z0-9_]{0,20}/
TEXT: /'([^'\n]|'')*'/
INT: /[0-9]{1,9}/
_W: " "
"""
ROOT_JSON = r"""
# GBNF, as published for llama.cpp
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
SMALL = {
    "left": 'start: start "a" | "b"',
    "right": 'start: "a" start | "b"',
    "both": 'start: start "a" start | "b"',
    "doubled": 'start: start start | "a" | "b" | ',
    "tripled": 'start: start start start | "a" | start "b"',
    "nested": 'start: "a" start "b" | "c" | ',
    "palindromes": 'start: "a" start "a" | "b" start "b" | "c" |',
    "mutual": 'start: x | y "c"\nx: y "a" | "c" x\ny: x "b" | "a"',
    "hidden-left": 'start: z start "a" | "b"\nz: "c" | ',
    "hidden-empty": 'start: z z "a" | start z\nz: z "b" | "c" |',
    "two-counts": 'start: x "c" | y\nx: "a" x "b" |\ny: "a" y "b" "b" | "a"',
    "unit-cycle": 'start: x | "a" start\nx: y | "b"\ny: x | "c"',
    "overlap": 'start: A B A\nA: /[ab]+/\nB: /b+c?/',
    "overlap-nested": 'start: A | "a" start A "b"\nA: /a+b?|b/',
    "repeats": 'start: x~2..3 ["c"]\nx: "a" x? "b" | "b"',
    "unproductive": 'start: "a" x | "b" start "c" | "c"\nx: "b" x',
    "ignored": 'start: "a" start "a" | "c"\n%ignore "b"',
    "templates": 'start: _between{x, "c"}\n_between{p, by}: p (by p)*\nx: "a" start "b" | "b"',
}  # fmt: skip


def machine(source: str) -> GrammarMachine:
    return GrammarMachine(networks_of(source))


def read(automaton, data: bytes) -> int:
    return step(automaton, automaton.start, data)


def parses(parser: lark.Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.LarkError:
        return False
    return True


def some_completion(automaton, state: int) -> bytes | None:
    """A shortest text from `state` to acceptance."""
    paths = {state: b""}
    todo = [state]
    for at in todo:
        if automaton.accepting(at):
            return paths[at]
        for byte, after in automaton.moves(at).items():
            if after not in paths:
                paths[after] = paths[at] + bytes([byte])
                todo.append(after)
    return None


@pytest.mark.parametrize("name", SMALL)
def test_language_is_that_of_lark_on_all_short_texts(name):
    automaton = machine(SMALL[name])
    parser = lark.Lark(SMALL[name], parser="earley", lexer="dynamic_complete")
    texts = ["".join(t) for size in range(6) for t in itertools.product("abc", repeat=size)]
    language = {text for text in texts if parses(parser, text)}
    begun = {text[:n] for text in language for n in range(len(text) + 1)}
    assert language
    for text in texts:
        state = read(automaton, text.encode())
        assert (state >= 0 and automaton.accepting(state)) == (text in language), text
        if text in begun:
            assert state >= 0, text
        elif state >= 0:  # it must go on to a text that is longer than those above
            rest = some_completion(automaton, state)
            assert rest is not None and parses(parser, text + rest.decode()), text


def random_grammar(rng: random.Random) -> dict[str, list[list[str]]]:
    names = ["root", "x", "y", "z"][: rng.randint(1, 4)]
    symbols = ['"a"', '"b"', '"ab"', *names, *names]
    return {
        name: [[rng.choice(symbols) for _ in range(rng.choice([0, 1, 1, 2, 2, 3]))] for _ in range(rng.randint(1, 3))]
        for name in names
    }


def derived(rules: dict[str, list[list[str]]], longest: int) -> set[str]:
    """All texts of a grammar up to a length: a least fixpoint, without any parser."""
    found: dict[str, set[str]] = {name: set() for name in rules}
    grows = True
    while grows:
        grows = False
        for name, options in rules.items():
            for option in options:
                texts = {""}
                for symbol in option:
                    pieces = {symbol[1:-1]} if symbol.startswith('"') else found[symbol]
                    texts = {a + b for a in texts for b in pieces if len(a) + len(b) <= longest}
                grows = grows or not texts <= found[name]
                found[name] |= texts
    return found["root"]


def test_random_grammars_have_exactly_the_texts_that_can_be_derived():
    unsatisfiable = 0
    for seed in range(80):
        rules = random_grammar(random.Random(seed))
        source = "\n".join(
            f"{name} ::= " + " | ".join(" ".join(option) or '""' for option in options)
            for name, options in rules.items()
        )
        language = derived(rules, 4)
        try:
            automaton = machine(source)
        except ConstraintError as error:
            assert "no text matches" in str(error) and not language, source
            unsatisfiable += 1
            continue
        states = {"": automaton.start}
        begun = {text[:n] for text in language for n in range(len(text) + 1)}
        for text in ("".join(t) for size in range(5) for t in itertools.product("ab", repeat=size)):
            if text:
                before = states[text[:-1]]
                states[text] = automaton.step(before, ord(text[-1])) if before >= 0 else -1
            state = states[text]
            assert (state >= 0 and automaton.accepting(state)) == (text in language), (source, text)
            assert state >= 0 or text not in begun, (source, text)
            assert state < 0 or text in begun or some_completion(automaton, state) is not None, (source, text)
    assert 5 < unsatisfiable < 60


PARSED = {"arithmetic": ARITHMETIC, "json": JSON, "sql": SQL}


@pytest.mark.parametrize("name", PARSED)
def test_a_hundred_random_generations_parse_with_lark(name):
    vocabulary = small_vocabulary(2)
    compiled = compile_constraint(Constraint("ebnf", PARSED[name]), vocabulary)
    parser = lark.Lark(PARSED[name], parser="earley", lexer="dynamic_complete", ambiguity="resolve")
    automaton = compiled.index.automaton
    ended = 0
    for seed in range(100):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 24, closing_after=12)
        if not complete:  # the shortest way on from a text that was cut
            rest = some_completion(automaton, read(automaton, data))
            assert rest is not None
            data += rest
        ended += complete
        text = data.decode("utf-8")
        assert parses(parser, text), text
    assert ended > 20


def test_the_published_json_grammar_in_root_form_gives_json():
    vocabulary = small_vocabulary(3)
    compiled = compile_constraint(Constraint("ebnf", ROOT_JSON), vocabulary)
    for seed in range(60):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 200, closing_after=30)
        assert complete and isinstance(json.loads(data), dict)
    for text in ('{"a": [1, 2.5e3, -0], "b": {"c": null}}', "{}", '{"é\\u00e9": ["\\"", true]}\n  '):
        assert accepts(compiled, text)
    for text in ('{"a": 01}', "[]", '{"a" 1}', '{"a": "\x01"}', '{"a": 1,}'):
        assert not accepts(compiled, text)


def accepts(compiled, text: str) -> bool:
    state = read(compiled.index.automaton, text.encode())
    return state >= 0 and compiled.index.automaton.accepting(state)


ALL = {**SMALL, **PARSED, "root-json": ROOT_JSON}


@pytest.mark.parametrize("name", ALL)
def test_mask_equals_brute_force_and_the_plain_walk(name):
    vocabulary = small_vocabulary(5)
    compiled = ConstraintCache().get(Constraint("ebnf", ALL[name]), vocabulary)
    alone = machine(ALL[name])
    for seed in range(3):
        rng = random.Random(seed)
        matcher, data = compiled.start(), b""
        for _ in range(20):
            expected = []
            for token, piece in enumerate(vocabulary.token_bytes):
                if token in vocabulary.eos_ids:
                    if alone.accepting(read(alone, data)):
                        expected.append(token)
                elif piece and read(alone, data + piece) >= 0:
                    expected.append(token)
            allowed = mask_of(matcher, vocabulary.size)
            assert allowed == expected, data
            state = matcher.state_key[1]
            row = compiled.index.compute_in_python(state)
            out = mask_row(row, vocabulary.size)
            assert out == expected
            token = rng.choice(allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
            data += vocabulary.token_bytes[token] or b""


def published_vocabulary(kind: str, folder):
    """Byte-level BPE, SentencePiece with byte fallback, or a tekken file."""
    from support import tokenizer_kinds

    from dslc.core.text.load import load_tokenizer

    if kind != "tekken":
        return load_tokenizer(tokenizer_kinds.folder(kind)).vocabulary
    pieces = [t for t in small_vocabulary(8).token_bytes if t and len(t) > 1 and t.decode("utf-8", "ignore")]
    ranks = [bytes([b]) for b in range(256)] + sorted(set(pieces))
    listed = [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(ranks)]
    sizes = {"default_vocab_size": 24 + len(ranks), "default_num_special_tokens": 24}
    (folder / "tekken.json").write_text(json.dumps({"config": {"pattern": r"\S+|\s+", **sizes}, "vocab": listed}))
    return load_tokenizer(folder).vocabulary


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "tekken"])
@pytest.mark.parametrize("name", ["arithmetic", "json", "sql", "root-json"])
def test_mask_equals_brute_force_over_published_kinds_of_vocabulary(kind, name, tmp_path):
    vocabulary = published_vocabulary(kind, tmp_path)
    compiled = ConstraintCache().get(Constraint("ebnf", ALL[name]), vocabulary)
    alone = machine(ALL[name])
    within_characters = 0
    for seed in range(4):
        rng = random.Random(seed)
        matcher, state = compiled.start(), alone.start
        for _ in range(25):
            allowed = mask_of(matcher, vocabulary.size)
            after = {token: step(alone, state, piece) for token, piece in enumerate(vocabulary.token_bytes) if piece}
            ends = set(vocabulary.eos_ids)
            expected = {token for token, target in after.items() if target >= 0 and token not in ends}
            assert set(allowed) == expected | (ends if alone.accepting(state) else set())
            odd = [t for t in allowed if (vocabulary.token_bytes[t] or b"a")[0] >= 0x80]
            odd = odd or [t for t in allowed if b'"' in (vocabulary.token_bytes[t] or b"")]
            token = rng.choice(odd if odd and rng.random() < 0.5 else allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
            within_characters += (vocabulary.token_bytes[token] or b"a")[0] >= 0x80
            state = after[token]
    assert within_characters or name == "arithmetic"


def step(automaton, state: int, data: bytes) -> int:
    for byte in data:
        if state < 0:
            break
        state = automaton.step(state, byte)
    return state


def mask_row(mask, size: int) -> list[int]:
    import numpy as np
    from support.constraint_support import allowed_ids

    from dslc.compiler.constraints import mask_words

    row = np.full(mask_words(size), -1, np.int32)
    mask.write(row)
    return allowed_ids(row, size)


def test_states_are_shared_where_what_was_read_makes_no_difference():
    pairs = {
        JSON: [('{"a": [1, 2', '{"bc": [{"x": []}, 7'), ('[{"a": 1},', "[[[]], 2,")],
        ROOT_JSON: [('{"a": [1, 2], ', '{"b": "x", "c": [[3]],')],
        'start: start "+" start | "a" | "-" start': [("a+a+a+a", "a"), ("a+--a+", "a+")],
        'start: "a" start | "b"': [("aaaaaaa", "a")],
        'start: start start | "a"': [("aaaaaaa", "a")],
        'start: item start | item\nitem: "(" start? ")"': [("(()())()", "()")],
    }
    for source, texts in pairs.items():
        automaton = machine(source)
        for a, b in texts:
            first, second = read(automaton, a.encode()), read(automaton, b.encode())
            assert first >= 0
            if source != ROOT_JSON:  # there a blank may have come or not
                assert first == second, (a, b)
            else:
                assert automaton.moves(first).keys() == automaton.moves(read(automaton, b.encode() + b" ")).keys()


def test_forced_bytes_and_roll_back():
    vocabulary = small_vocabulary(6)

    def encode(text: str) -> list[int]:
        return [vocabulary.token_bytes.index(bytes([b])) for b in text.encode()]

    source = 'root ::= "name: " name ", again: " root | "stop here"\nname ::= "(" name ")" | "x"'
    compiled = ConstraintCache().get(Constraint("ebnf", source), vocabulary, encode=encode)
    matcher = compiled.start()
    keys = [matcher.state_key]
    matcher.advance(vocabulary.token_bytes.index(b"n"))
    keys.append(matcher.state_key)
    assert b"".join(vocabulary.token_bytes[t] or b"" for t in matcher.forced()) in (b"ame:", b"ame: ")
    for byte in b"ame: (x)":
        matcher.advance(vocabulary.token_bytes.index(bytes([byte])))
        keys.append(matcher.state_key)
    assert compiled.index.forced_bytes(matcher.state_key[1])[0] == b", again: "
    for count in (1, 3, 5):
        matcher.rollback(count)
        del keys[-count:]
        assert matcher.state_key == keys[-1]
    assert matcher.state_key == compiled.start().state_key


def test_ambiguity_is_bounded_and_refused_clearly_beyond():
    automaton = machine('root ::= s\ns ::= s s s | s s | "a"')
    state, count = automaton.start, 0
    with pytest.raises(ConstraintError, match="too ambiguous"):
        for count in range(5000):  # noqa: B007
            state = automaton.step(state, ord("a"))
    assert count > 50
    deep = machine('root ::= "(" root ")" | "x"')
    state = read(deep, b"(" * 20_000 + b"x" + b")" * 20_000)
    assert deep.accepting(state)


CHAIN = "root ::= r0\n" + "\n".join(f'r{i} ::= r{i + 1} "x" | "({i})"' for i in range(1000)) + '\nr1000 ::= "z" r0'


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "empty"),
        ('start: "a', "line 1, column 8"),
        ('start: "a" (\n', "Unclosed parenthesis"),
        ('start: x\n\nx: "a" | y', "line 3.*'y'"),
        ('begin: "a"', "no rule 'start'.*begin"),
        ('start: A\nA: A "b"', "Recursion in terminal 'A'"),
        ("start: /[a/", "line 1.*unterminated"),
        ("start: /a(?=b)/", "lookahead"),
        (r"start: /(a)\1/", "back"),
        ('start: "a"\nstart: "b"', "defined more than once"),
        ("start: A\n%declare A", "terminal A"),
        ("start: start", "no text matches"),
        ("start: a\na: b\nb: a", "no text matches"),
        ('start: "a" start', "no text matches"),
        ("start: /[^\\s\\S]/", "no text matches"),
        ("start: " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested"),
        ('start: x~1..100000\nx: "(" x? ")"', "repeats"),
        ('start: _t{"a"}\n_t{x}: x _t{_u{x}}\n_u{y}: y y', "without end"),
        ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested"),
        ('root ::= "a', "line 1, column 10"),
        ('root ::= "a"\nx ::= (("b")', "line 2"),
        ('root ::= "a" b', "line 1.*'b' is used but not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2.*twice"),
        ("root ::= [z-a]", "is backwards"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= root", "no text matches"),
        ('root ::= x{1,100000}\nx ::= "(" x? ")"', "repeats"),
        ('root ::= "a"{3,1}', "at least 3 and at most 1"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "a" (=b)', "lookahead|unexpected"),
        ("root ::= " + '"abc" | ' * 100_000 + '"d"', "characters"),
    ],
)
def test_wrong_grammars_are_refused_with_their_place(source, message):
    with pytest.raises(ConstraintError, match=message) as caught:
        check_constraint(Constraint("ebnf", source))
    assert caught.value.field == "ebnf"


def test_large_grammars_compile_in_bounds():
    words = [f"value_{i}" for i in range(3000)]
    automaton = machine("start: " + " | ".join(f'"{w}"' for w in words))
    for word in words[::499]:
        assert automaton.accepting(read(automaton, word.encode()))
    assert read(automaton, b"value_3000") < 0
    automaton = machine(CHAIN)
    assert automaton.accepting(read(automaton, b"(0)")) and automaton.accepting(read(automaton, b"(2)xx"))


@pytest.mark.parametrize("num", [1, 2, 7, 2500])
def test_long_repeats_of_rules_count_exactly(num):
    automaton = machine(f'start: item~{num // 2 + 1}..{num + 1}\nitem: "a" | "(" item ")"')
    for count in sorted({0, 1, num // 2, num // 2 + 1, num, num + 1, num + 2}):
        text = b"a" * count if count < 2 else b"a" * (count - 2) + b"(a)a"
        state = read(automaton, text)
        assert (state >= 0 and automaton.accepting(state)) == (num // 2 + 1 <= count <= num + 1), count
