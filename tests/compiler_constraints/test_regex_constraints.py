"""Regexes: the automaton accepts what `re.fullmatch` accepts, masks equal brute force, bad patterns are refused."""

from __future__ import annotations

import random
import re

import pytest
from support.constraint_support import TEXTS, mask_of, random_walk, small_vocabulary

from dslc.compiler.constraints import charset, check_constraint, compile_constraint
from dslc.compiler.constraints.char_dfa import from_regex
from dslc.compiler.constraints.regex_syntax import parse_regex
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

PATTERNS = [
    r"(0|[1-9][0-9]*)(\.[0-9]+)?",
    r"-?[0-9]{1,3}",
    r"[a-z]+( [a-z]+){0,4}",
    r"\d{4}-\d{2}-\d{2}(T\d\d:\d\d:\d\dZ?)?",
    r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)",
    r"[\w.]{1,8}@\w{1,5}\.(com|org)",
    r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})",
    r"(bug|billing|other)",
    r".{1,12}",
    r"(?s).{0,6}",
    r"(?i)straße|ſK",
    r"(?i:[a-f]x)|Y",
    r"[^\W\d_]{2,5}",
    r"日本(語|人)?[ぁ-ん]*",
    r"[^\x00-\x7f]{1,3}",
    r'"([^"\\\x00-\x1f]|\\["\\nt])*"',
    r"a*?b+?c??",
    r"(?:ab|a)(?:bc|c)?",
    r"^abc$|^x\Z",
    r"(^a|b)(c|$)",
    r"\s+\S{2}\s?",
    r"(?x) a  b # comment" "\n" r"[ ]c",
    r"[]a^-]{2}[\]\-\\]",
    r"\x41\u00e9\U0001F600\101\N{DIGIT ONE}",
    r"x{,3}y{2,}(?:z{2}){3}",
    r"[\s\S]{3}|[^\s]",
    r"(a|b|){3}",
    r"(?a:\w\d)\w",
    r"a{b}{1,2}c{,d",
    r"",
]
SAMPLES = ["", "a", "ab", "abc", "ABx", "-12", "0.25", "007", "12.", "2024-11-20", "192.168.0.1", "a.b@c.com", "#fff",
           "bug", "other", "straße", "STRASSE", "ſk", "SK", "dX", "y", "Y", "été", "日本語の", "日本", "é😀ñ", '"a\\n"',
           '"a\nb"', "x", "x\n", "ac", "bc", "b", "  ab ", "ab c", "]^]", "--\\", "Aé😀A1", "yy", "xyyzzzzzz", "\n\n\n",
           "a1_", "a1é", "a{b}c{,d", "abb", "line\nbreak", " \u2003ab", "\u0661\u0662", "Ⅷx"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_automaton_accepts_what_fullmatch_accepts(pattern):
    dfa = from_regex(parse_regex(pattern))
    rng = random.Random(pattern)
    alphabet = sorted(set("".join(SAMPLES) + "".join(TEXTS)))
    texts = SAMPLES + ["".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(200)]
    # Texts of the language, and neighbours of them, so that both verdicts occur.
    texts += [t for text in members(dfa, rng, 60) for t in (text, text[1:], text + "a", text[:-1] + "\n", text + "\n")]
    assert any(re.fullmatch(pattern, t) for t in texts)
    for text in texts:
        assert dfa.matches(text) == bool(re.fullmatch(pattern, text)), text


def members(dfa, rng, count):
    """Random texts of the language."""
    found = []
    for _ in range(count):
        state, text = dfa.start, ""
        while len(text) < 40 and not (dfa.accept[state] and rng.random() < 0.3):
            live = [i for i, c in enumerate(dfa.classes) if dfa.delta[state, c]]
            if not live:
                break
            i = rng.choice(live)
            high = int(dfa.bounds[i + 1]) - 1 if i + 1 < len(dfa.bounds) else charset.MAX_CODE_POINT
            code_point = rng.choice([int(dfa.bounds[i]), high, rng.randint(int(dfa.bounds[i]), high)])
            text += chr(code_point)
            state = int(dfa.delta[state, dfa.classes[i]])
        found.append(text)
    return found


@pytest.mark.parametrize("letter", ["d", "w", "s", "D", "W", "S"])
def test_unicode_classes_equal_re_on_every_code_point(letter):
    ranges = charset.unicode_class(letter.lower())
    ranges = charset.complement(ranges) if letter.isupper() else ranges
    every = "".join(chr(cp) for cp in range(0x110000) if not 0xD800 <= cp <= 0xDFFF)
    assert sum(hi - lo + 1 for lo, hi in ranges) == len(re.findall(rf"\{letter}", every))
    assert all(re.fullmatch(rf"\{letter}+", "".join(map(chr, range(lo, hi + 1)))) for lo, hi in ranges)


@pytest.mark.parametrize("item", ["k", "[a-z]", "[^a-z]", "σ", "[à-þ]", "[A-Za-zµ]", "İ", "ı", "ß", "[^K]"])
def test_ignore_case_equals_re_on_every_cased_code_point(item):
    dfa = from_regex(parse_regex(f"(?i){item}"))
    compiled = re.compile(f"(?i){item}")
    for cp in range(0x2200):
        assert dfa.matches(chr(cp)) == bool(compiled.fullmatch(chr(cp))), hex(cp)


@pytest.mark.parametrize(
    "pattern, part, position",
    [
        ("[.*", "unterminated character set", 0),
        ("a(?=b)", "lookahead", 1),
        ("(?<!x)y", "negative lookbehind", 0),
        (r"(a)\1", "backreference", 3),
        (r"(?P<n>a)(?P=n)", "backreference", 8),
        (r"\bword", "word boundary", 0),
        ("a++", "possessive", 2),
        ("(?>ab)c", "atomic", 0),
        ("a**", "multiple repeat", 2),
        ("(a", "unterminated subpattern", 0),
        ("x{3,1}", "min repeat greater than max repeat", 2),
        (r"a$\s", "before what may be a newline", 1),
        (r"(?m)\s^a", "start of the pattern", 6),
    ],
)
def test_unsupported_or_wrong_patterns_are_refused_by_name_and_position(pattern, part, position):
    with pytest.raises(ConstraintError) as caught:
        check_constraint(Constraint("regex", pattern))
    assert caught.value.field == "regex"
    assert part in str(caught.value) and f"position {position}" in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "(.{1,5000}){1,5000}",
        "(x{1,80}y{0,80}){1,800}",
        "(.*[ab].{40})+",
        "(" * 5000 + "a" + ")" * 5000,
        "a{1000}{1000}{1000}",
        "[^\\s\\S]a",
    ],
)
def test_large_deep_and_empty_patterns_are_refused(pattern):
    with pytest.raises(ConstraintError):
        check_constraint(Constraint("regex", pattern))


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*c", "(.*a.{10})", "(a?){300}a{300}", "(.{1,50}){1,50}", ".{1,5000}"]
)
def test_patterns_that_explode_elsewhere_compile(pattern):
    check_constraint(Constraint("regex", pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_mask_equals_brute_force_along_random_walks(pattern):
    vocabulary = small_vocabulary()
    compiled = compile_constraint(Constraint("regex", pattern), vocabulary)
    automaton = compiled.index.automaton
    rng = random.Random(pattern)
    for _ in range(4):
        matcher = compiled.start()
        for _ in range(12):
            expected = []
            for token_id, data in enumerate(vocabulary.token_bytes):
                if token_id in vocabulary.eos_ids:
                    if matcher.is_accepting:
                        expected.append(token_id)
                elif data and compiled.index.step_bytes(matcher.state_key[1], data) >= 0:
                    expected.append(token_id)
            allowed = mask_of(matcher, vocabulary.size)
            assert allowed == expected
            token = rng.choice(allowed)
            matcher.advance(token)
            if matcher.is_terminated:
                break
    assert automaton.num_states > 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_completed_walks_match_and_every_prefix_is_viable(pattern):
    vocabulary = small_vocabulary(1)
    compiled = compile_constraint(Constraint("regex", pattern), vocabulary)
    ended = 0
    for seed in range(20):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 400)
        if complete:
            ended += 1
            assert re.fullmatch(pattern, data.decode())
    assert ended == 20


def test_a_token_may_lead_from_an_accepting_to_a_non_accepting_state():
    """outlines-core 0.2.14 drops these: after `0` it offers no `.`, so 0.2 cannot be written."""
    vocabulary = small_vocabulary()
    matcher = compile_constraint(Constraint("regex", r"(0|[1-9][0-9]*)(\.[0-9]+)?"), vocabulary).start()
    for byte in b"0.2":
        matcher.advance(vocabulary.token_bytes.index(bytes([byte])))
    assert matcher.is_accepting
