"""Several languages read at once: each text gets the set of those it is in, whichever are equal, empty or nested."""

from __future__ import annotations

import itertools
import random

from support.constraint_samples import random_regex

from dslc.compiler.constraints.char_algebra import ALL, NONE, tag
from dslc.compiler.constraints.char_dfa import from_regex
from dslc.compiler.constraints.regex_syntax import parse_regex

TEXTS = ["".join(chosen) for size in range(4) for chosen in itertools.product("ab-x", repeat=size)]


def language(pattern: str):
    return from_regex(parse_regex(pattern))


def check(languages) -> None:
    chars, sets = tag(languages)
    for text in [*TEXTS, "é", "the", "日本"]:
        members = sum(1 << i for i, one in enumerate(languages) if one.matches(text))
        assert sets[chars.label(text)] == members, text


def test_labels_say_which_languages_a_text_is_in():
    check([language("a*")])
    check([NONE, NONE])
    check([language("a*"), language("(a|aa)*"), NONE, language("a*")])
    check([ALL, language("[ab]{1,2}"), language("ab?"), ALL])
    rng = random.Random(0)
    for _ in range(40):
        patterns = [random_regex(rng, 2) for _ in range(rng.randint(1, 4))]
        chosen = [language(rng.choice(patterns)) for _ in range(rng.randint(1, 6))]
        check([*chosen, *rng.sample([NONE, ALL], rng.randint(0, 2))])


def test_equal_languages_need_no_product():
    same = language("[a-z]{1,20}")
    chars, sets = tag([same, NONE, language("[a-z]{1,20}")])
    assert chars is same and sets == (0, 0b101)
