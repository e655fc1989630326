"""Live states against Python's own regex engine."""

import itertools
import re

import pytest

from dslc.core.text.nfa import LiveStates, Unsupported, build_nfa

PATTERNS = [
    *(
        "a",
        "a|b",
        "ab*",
        "(ab)*",
        "a{2}",
        "a{1,2}b?",
        "a{0}b",
        "a{,2}b",
        "[ab]+",
        "[^a]",
        ".",
        r"\w\W",
        r"\d|\s",
        "(?:a|b)(?:b|1)",
    ),
    *(
        "(?P<x>a)b",
        "(?i:A)B",
        "(?i)aB",
        "(?i:a(?-i:B))",
        "(?s:.)",
        "(?m:^b)",
        "a(?m:$)",
        r"\ba",
        r"a\b",
        r"a\Bb",
        "^a",
        r"\Ab",
    ),
    *(
        "a(?=b)b",
        "a(?!b).",
        "a+?b",
        "[]a]",
        "[^]a]",
        r"[\]a]",
        r"\x61",
        r"\u0061b",
        "a{,}",
        "a{x",
        "[a-b-]",
        r"\.",
        "",
        "a||b",
    ),
    *("(?x: a  b # no\n)", "x*y*", "(a*)*b", "(a|ab)(1|b1)", "a$", "(?:)a"),
]


def live(pattern, flags=0):
    return LiveStates(
        build_nfa(pattern, flags), lambda atom: lambda c: re.fullmatch(atom.source, c, atom.flags) is not None
    )


def run(states, text):
    kernel, before = states.start, None
    for char in text:
        kernel = states.advance(states.closure(kernel, before, char), char)
        before = char
    return kernel, before


TEXTS = ["".join(t) for n in range(5) for t in itertools.product("abB1 \n", repeat=n) if n < 4 or "\n" not in t]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_accepts_what_python_accepts(pattern):
    states, expected = live(pattern), re.compile(pattern)
    for text in TEXTS:
        kernel, before = run(states, text)
        assert states.accepts(kernel, before, None) == (expected.fullmatch(text) is not None), text


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in ("(?m:^b)", r"a\b", "a(?m:$)", "a$")])
def test_closed_means_that_no_longer_text_matches(pattern):
    states, expected = live(pattern), re.compile(pattern)
    longer = {}
    for text in TEXTS:
        if expected.fullmatch(text):
            for end in range(len(text)):
                longer[text[:end]] = text
    for text in TEXTS:
        if not states.is_open(*run(states, text)):
            assert text not in longer, (text, longer.get(text))


@pytest.mark.parametrize(
    "pattern, complaint",
    [
        ("(a", "not closed"),
        ("a)", "unbalanced"),
        ("*a", "nothing to repeat"),
        ("[a", "not closed"),
        ("a{2,1}", "reversed"),
        (r"(a)\1", "back-reference"),
        ("(?<=a)b", "group"),
        ("(?P=x)", "group"),
        ("a(?=bc)", "more than one"),
        ("\\", "lone backslash"),
        (r"\G", "escape"),
        ("((a{100}){100}){100}", "states"),
    ],
)
def test_what_lies_outside_the_subset_is_refused(pattern, complaint):
    with pytest.raises(Unsupported, match=complaint):
        build_nfa(pattern)
