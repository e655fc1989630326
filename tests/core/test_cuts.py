"""Safe cuts of pre-tokenisers by brute force: every short text, every short continuation, many patterns."""

import itertools
import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from dslc.core.text.cuts import CutFinder, starts_afresh
from dslc.core.text.nfa import LiveStates

PATTERNS = [
    *("a+|b+| +|1+", "ab", "aba|ab", "a(?!b)", "a+(?!1)|b", "(?:ab)+", "[ab]{1,2}", " ?[ab]+|1{1,2}|\\s+(?!\\S)|\\s+"),
    *(
        "'s| ?[a-b]+|.",
        "a*b|a+|[^a]",
        "b?a+b+|b?a+|.",
        "a(?=1)|b1",
        "ab?1|b|1",
        "(?i:A)b|b+",
        "1[ab]*1|a|b",
        "a{2}|b{2,3}",
    ),
    *("[ab]*a(?!b)|b| ", "a++|[^a]", "(?:a|ab)(?:1|b1)| ", " *1| +", "[^\\S1]+a?|\\w"),
]
BEHAVIORS = ["isolated", "contiguous"]


def finder_of(splitter):
    config = {"pre_tokenizer": json.loads(splitter.__getstate__()), "model": {"type": "BPE"}}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitter
    return CutFinder.of_backend(config, backend, [])


def pieces(splitter, text):
    return [bounds for _, bounds in splitter.pre_tokenize_str(text)]


def holds(splitter, text, cut, continuations):
    head = pieces(splitter, text[:cut])
    return all(pieces(splitter, text + x)[: len(head)] == head for x in continuations)


def check_all(splitter, alphabet="ab1 ", length=4, more=3):
    """That all cuts hold. Returns the share of the text up to the last cut that would hold which the cuts reach."""
    finder = finder_of(splitter)
    assert finder.unsupported == ""
    reached = possible = 0
    continuations = ["".join(t) for n in range(more + 1) for t in itertools.product(alphabet, repeat=n)]
    for size in range(1, length + 1):
        for text in map("".join, itertools.product(alphabet, repeat=size)):
            cut = finder.cut(text)
            assert holds(splitter, text, cut, continuations), (text, cut)
            reached += cut
            possible += next(c for c in range(size, -1, -1) if holds(splitter, text, c, continuations))
    return reached / max(possible, 1)


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_pattern(pattern, behavior):
    share = check_all(pre_tokenizers.Split(Regex(pattern), behavior))
    assert share > 0.6 or behavior == "contiguous"


@pytest.mark.parametrize(
    "first, second", [*itertools.pairwise(PATTERNS), ("1+", "[ab]+"), ("a1", "b+| "), ("111", ".")]
)
def test_two_patterns_in_a_row(first, second):
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (first, second)]
    assert check_all(pre_tokenizers.Sequence(splits), more=2) > 0.5


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Split(" ", "merged_with_next"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="never")]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
    ids=str,
)
def test_library_splitters(splitter):
    assert check_all(splitter, alphabet="a1 's", more=2) > 0.6


@pytest.mark.parametrize(
    "splitter, why",
    [
        (pre_tokenizers.UnicodeScripts(), "UnicodeScripts is not supported"),
        (pre_tokenizers.Split(Regex("(?<=a)b"), "isolated"), "group"),
        (pre_tokenizers.Split(Regex(r"\bab\b"), "isolated"), "character before"),
        (pre_tokenizers.Split(Regex("a"), "removed"), "behavior"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), "without a pre-tokeniser"),
        (pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()]), "after ByteLevel"),
    ],
)
def test_what_is_not_supported_says_so_and_is_never_cut(splitter, why):
    finder = finder_of(splitter)
    assert why in finder.unsupported
    assert finder.cut("some text, long enough") == 0


def test_no_normal_form_joins_what_starts_afresh():
    """Over all of Unicode up to U+1FFFF, after letters and marks that like to combine."""
    import unicodedata

    firsts = [
        "a",
        "e",
        "\u1100",
        "\u1112\u1161",
        "\u0915",
        "\u09c7",
        "\u0bc6",
        "\u1025",
        "\u3046",
        "\u0301",
        "\u0323\u0301",
    ]
    for code in range(0x20000):
        char = chr(code)
        if 0xD800 <= code < 0xE000 or not starts_afresh(char):
            continue
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            tail = unicodedata.normalize(form, char)
            for first in firsts if code < 0x3400 else firsts[:3]:
                assert unicodedata.normalize(form, first + char) == unicodedata.normalize(form, first) + tail, hex(code)


def test_a_long_gap_takes_linear_work(monkeypatch):
    """Started anywhere in it, the pattern runs on to its end: that much is not looked at; no cut is a right answer."""
    splitter = pre_tokenizers.Split(Regex("a+x"), "isolated")
    finder = finder_of(splitter)
    steps = 0
    step = LiveStates.step

    def counted(*args):
        nonlocal steps
        steps += 1
        return step(*args)

    monkeypatch.setattr(LiveStates, "step", counted)
    text = "a" * 20_000 + "b"
    assert finder.cut(text) == 0
    assert steps < 200 * len(text)
