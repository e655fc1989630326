"""StopMatcher against a search over the whole text, for every way to cut the text into pieces."""

import itertools
import random
import re

import pytest

from dslc.core.errors import RequestError
from dslc.core.text.stops import StopMatch, StopSet


def search_whole(text, stops, regexes):
    """(start, end, stops of that span) of the stop that ends first, then starts first; by brute force."""
    for end in range(1, len(text) + 1):
        spans = [(end - len(s), s) for s in stops if text[:end].endswith(s)]
        for source in regexes:
            whole = re.compile(f"(?:{source})(?=(?s:.{{{len(text) - end}}})\\Z)")
            spans += [(start, source) for start in range(end) if whole.match(text, start)]
        if spans:
            first = min(start for start, _ in spans)
            named = [stop for start, stop in spans if start == first]
            return first, end, [stop for stop in named if stop in stops][:1] or named
    return None


def feed_all(matcher, pieces):
    shown = [matcher.feed(piece) for piece in pieces] + [matcher.finish()]
    return "".join(shown)


def chunkings(text, rng):
    yield [text]
    yield list(text)
    for _ in range(4):
        cuts = sorted(rng.sample(range(len(text) + 1), k=min(3, len(text) + 1)))
        yield [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


STRINGS = ["ab", "abab", "b\n", "\n\n", "\n", "aab", "</s>", "a", "xx", "日本", "🙂b", "bbbbb"]
REGEXES = [
    *(r"\d+", r"\d+\n", r"a+b", r"(?:ab|ba){2}", r"[.!?]\s", r"(?i:STOP)", r"x.?x", r"a{2,3}\b", r"\bb\b", r"^ab"),
    *(r"a(?=b)", r"a(?!b)", r"(?m:$)\n", r"(?m:^)b", r"[^a-z]{3}", r"日\w", r"(a|b)*x", r"b\B", r"\sa(?!a)|\sab"),
]


def test_matches_a_search_over_the_whole_text():
    rng = random.Random(0)
    found = 0
    for _ in range(1500):
        alphabet = rng.choice(["ab", "abx\n", "ab1\n .", "aStOp!? ", "日本🙂b", "ab </s>"])
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(14)))
        stops = rng.sample(STRINGS, rng.randrange(4))
        regexes = rng.sample(REGEXES, rng.randrange(3))
        expected = search_whole(text, stops, regexes)
        found += expected is not None
        compiled = StopSet(stops, regexes)
        for pieces in chunkings(text, rng):
            matcher = compiled.matcher()
            shown = feed_all(matcher, pieces)
            if expected is None:
                assert matcher.match is None and shown == text, (text, stops, regexes, pieces)
                continue
            start, end, named = expected
            assert matcher.match is not None, (text, stops, regexes, pieces)
            assert (matcher.match.start, matcher.match.end) == (start, end), (text, stops, regexes, pieces)
            assert matcher.match.stop in named
            assert shown == text[:start]
    assert 300 < found < 1300


def test_every_chunking_of_a_text():
    text, stops = "aabab\n\nab", ["ab\n\n", "\n\na"]
    for mask in range(2 ** (len(text) - 1)):
        cuts = [0, *(i + 1 for i in range(len(text) - 1) if mask >> i & 1), len(text)]
        matcher = StopSet(stops).matcher()
        assert feed_all(matcher, [text[a:b] for a, b in itertools.pairwise(cuts)]) == "aab"
        assert matcher.match == StopMatch(3, 7, "ab\n\n") and matcher.held == "ab\n\n"


def test_shows_everything_that_cannot_be_a_stop_and_nothing_else():
    matcher = StopSet(["END", "\nQ:"]).matcher()
    assert [matcher.feed(c) for c in "xE\nQENx"] == ["x", "", "E", "", "\nQ", "", "ENx"]
    matcher = StopSet([], [r"\d+;"]).matcher()
    assert [matcher.feed(c) for c in "a12b3;"] == ["a", "", "", "12b", "", ""]
    assert matcher.match == StopMatch(4, 6, r"\d+;")


def test_without_stops_all_text_passes():
    matcher = StopSet().matcher()
    assert matcher.feed("abc") == "abc" and matcher.finish() == "" and matcher.match is None


def test_held_text_comes_out_at_the_end():
    matcher = StopSet(["abc"]).matcher()
    assert matcher.feed("xab") == "x"
    assert matcher.held == "ab"
    assert matcher.finish() == "ab" and matcher.match is None


def test_a_condition_on_the_next_character_waits_for_it():
    matcher = StopSet([], [r"a(?!b)"]).matcher()
    assert matcher.feed("xa") == "x" and matcher.match is None
    assert matcher.feed("c") == "" and matcher.match == StopMatch(1, 2, r"a(?!b)")
    matcher = StopSet([], [r"a(?!b)"]).matcher()
    assert matcher.feed("xa") == "x" and matcher.finish() == "" and matcher.match == StopMatch(1, 2, r"a(?!b)")


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("[.*", "not a valid regex"),
        ("a*", "matches the empty text"),
        (r"(?<=a)b", "cannot be searched as text arrives"),
        (r"(a)\1", "back-reference"),
        (r"a(?=bc)", "more than one character"),
        ("a$", "end of the text"),
        ("(?:a{1000}){1000}", "states"),
    ],
)
def test_unusable_regexes_are_refused_by_name(source, complaint):
    with pytest.raises(RequestError, match=complaint) as caught:
        StopSet([], ["ok", source])
    assert caught.value.field == "stop_regex[1]"
