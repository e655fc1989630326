"""Where a text's token ids are final, whatever text follows: the proof behind `Tokenizer.safe_cut`.

A tokenizer of the `tokenizers` library works in steps: added tokens are cut out, each rest is normalised, split into
pre-tokens, and each pre-token is encoded alone. Ids before a place c are final if no later text can move what any of
these steps did before c:

- *added tokens*: c is not inside or after a piece of text that may become an added token;
- *normaliser*: the character at c neither composes with nor is reordered past what precedes it;
- *pre-tokeniser*: a scanner goes from left to right; a piece is settled once no way of matching its pattern from its
  start is still open at the end of the text (`nfa.LiveStates` knows). Later steps of a pre-tokeniser see the pieces of
  earlier ones, of which the last may be unfinished;
- *no pre-tokeniser*: c lies between two characters that no token of the vocabulary holds side by side.

Last, the text up to c is split on its own and must give the same pieces. Wherever this cannot be shown, c is 0.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .nfa import Atom, CharTest, LiveStates, Unsupported, build_nfa

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FIRST_WINDOW = 32  # characters at the end of a text that are looked at first; then eight times as many
_LOOK_BACK = 256  # how far before them a place is looked for at which every text is split
_MAX_CLOSED_TRIES = 16


def _oniguruma_test(atom: Atom) -> CharTest:
    import regex

    try:
        matches = regex.compile(atom.source, atom.flags & ~re.VERBOSE).fullmatch
    except regex.error as error:
        raise Unsupported(f"the class {atom.source} cannot be read: {error}") from None
    return functools.lru_cache(maxsize=65_536)(lambda char: matches(char) is not None)


def _unassigned(char: str) -> bool:
    """Characters on which two Unicode versions may disagree count as matching everything."""
    return unicodedata.category(char) == "Cn"


Splitter = Callable[[str], list[tuple[str, tuple[int, int]]]]


class Stage:
    """One step of a pre-tokeniser: the library's splitter and the live states of its pattern."""

    def __init__(self, split: Splitter, pattern: str) -> None:
        """`split` is `pre_tokenize_str`; `pattern` covers its pieces: whole matches, or gaps between matches."""
        self._split = split
        self.live = LiveStates(build_nfa(pattern), _oniguruma_test, _unassigned)
        if not self.live.is_context_free:
            raise Unsupported("a condition on the character before is not supported")
        self._all_states = frozenset(range(len(self.live.nfa.epsilon)))

    def pieces(self, text: str) -> list[tuple[int, int]]:
        """Piece bounds covering the text; pieces that the splitter drops are put back in."""
        bounds: list[tuple[int, int]] = []
        end = 0
        for _, (start, stop) in self._split(text):
            if start > end:
                bounds.append((end, start))
            if stop > start:
                bounds.append((start, stop))
            end = max(end, stop)
        if end < len(text):
            bounds.append((end, len(text)))
        return bounds

    def never_joins(self, left: str, right: str) -> bool:
        """Whether no match ever holds these two characters side by side."""
        return not self.live.step(self.live.advance(self._all_states, left), None, right)

    def run(self, text: str, start: int, stop: int) -> tuple[bool, bool, int]:
        """(the pattern matches text[start:stop], a match from `start` is still open at the end of the text, how many
        characters were looked at)."""
        live, kernel, pos = self.live, self.live.start, start
        matched = False
        while pos < len(text):
            kernel = live.step(kernel, None, text[pos])
            pos += 1
            if pos == stop:
                following = text[pos] if pos < len(text) else None
                matched = live.accepts(kernel, None, following)
            if not kernel:
                return matched, False, pos - start
        return matched, live.is_open(kernel, None), pos - start

    def settled(self, text: str) -> tuple[int, int]:
        """(c, e): pieces up to c are final whatever follows; the next piece starts at c and reaches e at least."""
        gap_start: int | None = None
        patience = 64 * len(text) + 4096  # runs over one another, in a gap, would take the square of its length
        for start, stop in self.pieces(text):
            is_match, is_open, _ = self.run(text, start, stop)
            if is_match:
                if is_open:
                    return (start, start) if gap_start is None else (gap_start, start)
                gap_start = None
                continue
            for pos in range(start, stop):
                _, is_open, num_seen = self.run(text, pos, stop)
                patience -= num_seen
                if patience < 0:
                    return 0, 0
                if is_open:
                    return (start, pos) if gap_start is None else (gap_start, pos)
            if gap_start is None:
                gap_start = start
        return (len(text), len(text)) if gap_start is None else (gap_start, len(text))


def _stage_pattern(config: dict[str, Any]) -> str | None:
    """The pattern of one step, from its JSON; None if it never splits. Raises Unsupported."""
    kind = config["type"]
    if kind == "ByteLevel":
        return GPT2_PATTERN if config.get("use_regex", True) else None
    if kind == "Metaspace":  # among other steps; alone it is left to _Pairs
        mark = re.escape(config.get("replacement", "▁"))
        return f"[ {mark}][^ {mark}]*|[^ {mark}]+" if config.get("split", True) else None
    if kind == "Digits":
        return r"\p{N}" if config.get("individual_digits") else r"\p{N}+"
    if kind == "Whitespace":
        return r"\w+|[^\w\s]+"
    if kind == "WhitespaceSplit":
        return r"\s+|\S+"
    if kind == "BertPreTokenizer":
        return r"\s+|[\p{P}!-/:-@\[-`{-~]|[^\s\p{P}!-/:-@\[-`{-~]+"
    if kind == "Punctuation" and str(config.get("behavior", "Isolated")).lower() == "isolated":
        return r"[\p{P}!-/:-@\[-`{-~]"
    if kind == "Split":
        return _split_pattern(config)
    raise Unsupported(f"the pre-tokeniser {kind} is not supported")


def _split_pattern(config: dict[str, Any]) -> str:
    pattern = config["pattern"]
    source = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    behavior = str(config["behavior"]).lower()
    if behavior == "isolated" or (behavior == "removed" and config.get("invert")):
        return str(source)
    if behavior == "contiguous":
        return f"(?:{source})+"
    char = pattern.get("String", "")
    if len(char) == 1 and not config.get("invert"):
        if behavior == "mergedwithnext":
            return f"{source}[^{source}]*|[^{source}]+"
        if behavior == "mergedwithprevious":
            return f"[^{source}]*{source}|[^{source}]+"
    raise Unsupported(f"Split with behavior {config['behavior']} is not supported")


def _flatten(config: dict[str, Any] | None, item: Any, key: str) -> list[tuple[dict[str, Any], Any]]:
    """A normaliser or pre-tokeniser as a flat list of (JSON, library object) pairs."""
    if config is None:
        return []
    if config["type"] != "Sequence":
        return [(config, item)]
    return [pair for i, part in enumerate(config[key]) for pair in _flatten(part, item[i], key)]


@functools.lru_cache(maxsize=65_536)
def starts_afresh(char: str) -> bool:
    """Whether no Unicode normal form joins `char` to what precedes it or moves it forward. May say no too often."""
    if char < "\x80":
        return True
    first = unicodedata.normalize("NFKD", char)[0]
    for c in {char, first}:
        category = unicodedata.category(c)
        if category[0] in "MC" or unicodedata.combining(c):
            return False
        if category[0] == "L" and (c > "\uffff" or "\u1160" <= c <= "\u11ff" or "\ud7b0" <= c <= "\ud7fb"):
            return False  # conjoining Hangul vowels and finals; letters beyond the BMP are not told apart
    return True


class Normalizer:
    """What a tokenizer does to a text before it splits it. `rewrites`: lengths may change; `joins`: a character may be
    rewritten in view of those after it, though never of one that `starts_afresh`."""

    def __init__(self, apply: Callable[[str], str] | None = None, rewrites: bool = False, joins: bool = False) -> None:
        self.apply = apply if apply is not None else lambda text: text
        self.rewrites = rewrites
        self.joins = joins

    @classmethod
    def of_json(cls, config: dict[str, Any] | None, item: Any) -> Normalizer:
        """Of a tokenizer.json and the library's object for it. Raises Unsupported."""
        rewrites = joins = False
        for part, _ in _flatten(config, item, "normalizers"):
            kind = part["type"]
            if kind in ("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer", "StripAccents"):
                rewrites = joins = True
            elif kind == "Lowercase":
                rewrites = True
            elif not _replaces_char(part):
                raise Unsupported(f"the normaliser {kind} is not supported")
        return cls(item.normalize_str if item is not None else None, rewrites, joins)

    def positions(self, text: str, normal: str) -> dict[int, int]:
        """Position in `normal` (= apply(text)) -> position in `text`, at the places where one may cut; both ends."""
        if not self.rewrites:
            return {i: i for i in range(len(text) + 1)}
        starts = [i for i, char in enumerate(text) if i == 0 or not self.joins or starts_afresh(char)]
        if normal == text:
            return {**{i: i for i in starts}, len(text): len(text)}
        places: dict[int, int] = {}
        pos = 0
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            places[pos] = start
            pos += len(self.apply(text[start:stop]))
        places[pos] = len(text)
        return places if pos == len(normal) else {0: 0}


def _replaces_char(step: dict[str, Any]) -> bool:
    """Whether the step puts one character for another."""
    return step["type"] == "Replace" and len(step["pattern"].get("String", "")) == len(step["content"]) == 1


@dataclass(frozen=True, slots=True)
class AddedText:
    """An added token that ordinary text may spell."""

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _AddedTokens:
    """Where added tokens stand in a text, and where one may be about to stand."""

    def __init__(self, tokens: Iterable[AddedText], mark: str) -> None:
        """`mark`: what a space becomes before the tokens are looked for ("" if it stays)."""
        self._mark = mark
        self._tokens = {token.content: token for token in tokens}
        by_length = sorted(self._tokens, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, by_length))).finditer if by_length else None
        self._prefixes = {content[:i] for content in by_length for i in range(1, len(content))}
        self._longest = len(by_length[0]) if by_length else 0
        self._takes_left_space = any(token.lstrip for token in self._tokens.values())

    def open_part(self, text: str) -> tuple[int, int]:
        """(q, p): q is the end of the last added token; from p on the text may yet become one (p may be below q)."""
        if self._find is None:
            return 0, len(text)
        if self._mark:
            text = text.replace(" ", self._mark)
        start = end = 0
        token: AddedText | None = None
        for match in self._find(text):
            start, end, token = match.start(), match.end(), self._tokens[match[0]]
        reach = len(text)
        if token is not None and end == len(text):
            if token.single_word or text[start:] in self._prefixes:
                reach = start
        elif token is not None and token.rstrip and not text[end:].strip():
            reach = start
        first = max(end, len(text) - self._longest + 1)
        reach = min([reach, *(i for i in range(first, len(text)) if text[i:] in self._prefixes)])
        while self._takes_left_space and reach > 0 and text[reach - 1].isspace():
            reach -= 1
        return end, reach


class Pairs:
    """Characters that stand side by side in some token: between others a BPE or Unigram model always cuts."""

    def __init__(self, tokens: Iterable[str], mark: str, splits: bool) -> None:
        """`mark` stands for a space ("" if none does); `splits`: the pre-tokeniser splits before each mark."""
        self._mark = mark
        self._splits = splits
        self._pairs: set[str] = set()
        self._known: set[str] = set()
        for token in tokens:
            if len(token) == 1:
                self._known.add(token)
            self._pairs.update(token[i : i + 2] for i in range(len(token) - 1))
        self._lefts = {pair[0] for pair in self._pairs}

    def cut(self, text: str) -> int:
        text = text.replace(" ", self._mark) if self._mark else text
        if text and text[-1] in self._known and text[-1] not in self._lefts:
            return len(text)
        for pos in range(len(text) - 1, 0, -1):
            left, right = text[pos - 1], text[pos]
            if self._splits and right == self._mark:
                return pos
            # Neighbouring unknown characters may be fused into one unknown token.
            if left + right not in self._pairs and (left in self._known or right in self._known):
                return pos
        return 0


def stages_of_json(steps: list[tuple[dict[str, Any], Any]]) -> list[Stage]:
    """The steps of a pre-tokeniser, as (JSON, library object). Raises Unsupported."""
    stages: list[Stage] = []
    is_bytes = False
    for step, item in steps:
        pattern = _stage_pattern(step)
        if pattern is not None:
            if is_bytes:
                raise Unsupported(f"the pre-tokeniser {step['type']} after ByteLevel, on bytes, is not supported")
            stages.append(Stage(item.pre_tokenize_str, pattern))
        is_bytes |= step["type"] == "ByteLevel"
    if not stages:
        raise Unsupported("byte-level text without a pre-tokeniser is not supported")
    return stages


def pairs_of_json(model: dict[str, Any], metaspaces: list[dict[str, Any]], words: Callable[[], Iterable[str]]) -> Pairs:
    """For a model without a pre-tokeniser, or with Metaspace only. Raises Unsupported."""
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "dropout")):
        raise Unsupported("a BPE model with word marks, dropout or whole words has no cuts without a pre-tokeniser")
    if model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise Unsupported(f"a {model['type']} model without a pre-tokeniser is not supported")
    mark = metaspaces[0].get("replacement", "▁") if metaspaces else ""
    splits = any(step.get("split", True) for step in metaspaces)
    return Pairs((word for word in words() if not re.fullmatch("<0x[0-9A-F]{2}>", word)), mark, splits)


class CutFinder:
    """Finds safe cuts for one tokenizer. `unsupported` says why every cut is 0, if that is so."""

    def __init__(
        self,
        *,
        normalizer: Normalizer | None = None,
        added: Sequence[AddedText] = (),
        added_mark: str = "",
        stages: Sequence[Stage] = (),
        split: Splitter | None = None,
        pairs: Pairs | None = None,
        unsupported: str = "",
    ) -> None:
        """Either `stages` with `split`, the whole pre-tokeniser, or `pairs`. `added_mark`: see `_AddedTokens`."""
        self._normalizer = normalizer or Normalizer()
        self._added = _AddedTokens(added, added_mark)
        self._stages = stages
        self._split = split
        self._pairs = pairs
        self.unsupported = unsupported

    @classmethod
    def of_backend(cls, config: dict[str, Any], backend: Any, added: Sequence[AddedText]) -> CutFinder:
        """`backend`: a `tokenizers.Tokenizer`; `config`: the `model` (its settings, no vocabulary), `normalizer` and
        `pre_tokenizer` of its JSON."""
        try:
            rules = Normalizer.of_json(config.get("normalizer"), backend.normalizer)
            steps = _flatten(config.get("pre_tokenizer"), backend.pre_tokenizer, "pretokenizers")
            for part, _ in _flatten(config.get("normalizer"), backend.normalizer, "normalizers"):
                if _replaces_char(part):  # no such character is left to split at
                    steps = [(step, item) for step, item in steps if step.get("pattern") != part["pattern"]]
            if all(step["type"] == "Metaspace" for step, _ in steps):
                words = functools.partial(backend.get_vocab, with_added_tokens=False)
                pairs = pairs_of_json(config["model"], [step for step, _ in steps], words)
                return cls(normalizer=rules, added=added, pairs=pairs)
            split = backend.pre_tokenizer.pre_tokenize_str
            return cls(normalizer=rules, added=added, stages=stages_of_json(steps), split=split)
        except Unsupported as error:
            return cls(unsupported=str(error))

    def cut(self, text: str) -> int:
        """See `Tokenizer.safe_cut`."""
        if self.unsupported or not text:
            return 0
        fresh, reach = self._added.open_part(text)
        if reach <= fresh:
            if reach == fresh == len(text):
                return fresh
            return self.cut(text[:reach]) if reach < fresh else fresh
        if self._normalizer.joins and reach == len(text):
            reach -= 1  # what follows may join the last character
            while reach > fresh and not starts_afresh(text[reach]):
                reach -= 1
        part = text[fresh:reach]
        size = _FIRST_WINDOW
        while size < len(part):
            start = self._hard_boundary(part, len(part) - size)
            if start > 0 and (cut := self._cut_part(part[start:])) > 0:
                return fresh + start + cut
            size *= 8
        return fresh + self._cut_part(part)

    def _hard_boundary(self, text: str, pos: int) -> int:
        """The last place at or before `pos` at which every text is split; 0 if none is near."""
        if self._pairs is not None:
            return 0
        for place in range(pos, max(pos - _LOOK_BACK, 0), -1):
            if self._is_hard(text, place):
                return place
        return 0

    def _is_hard(self, text: str, place: int) -> bool:
        """No match of any stage crosses `place`, and some stage has a match that starts there."""
        if self._normalizer.joins and not (starts_afresh(text[place]) and starts_afresh(text[place - 1])):
            return False
        left, right = self._normalizer.apply(text[place - 1]), self._normalizer.apply(text[place])
        if len(left) != 1 or len(right) != 1 or not all(stage.never_joins(left, right) for stage in self._stages):
            return False
        following = self._normalizer.apply(text[place : place + _FIRST_WINDOW])
        return any(
            stage.run(following, 0, pieces[0][1])[0]
            for stage in self._stages
            if (pieces := stage.pieces(following)) and pieces[0][1] < len(following)
        )

    def _cut_part(self, text: str) -> int:
        """The cut in a text that starts at a boundary and holds no added token."""
        normal = self._normalizer.apply(text)
        places = self._normalizer.positions(text, normal)
        if self._pairs is not None:
            pos = self._pairs.cut(normal)
            while pos > 0 and pos not in places:
                pos = self._pairs.cut(normal[: pos - 1])
            return places.get(pos, 0)
        base, open_text = 0, normal
        for stage in self._stages:
            cut, reach = stage.settled(open_text)
            base, open_text = base + cut, open_text[cut:reach]
            if not open_text:
                break
        return self._closed(normal, base, places)

    def _closed(self, normal: str, limit: int, places: dict[int, int]) -> int:
        """The last cut up to `limit` before which the text, split on its own, gives the same pieces."""
        pieces = self._bounds(normal)
        ends = [stop for _, stop in pieces if stop <= limit] + [start for start, _ in pieces if start <= limit]
        candidates = sorted({*(end for end in ends if end in places and end > 0)}, reverse=True)
        for end in candidates[:_MAX_CLOSED_TRIES]:
            if self._bounds(normal[:end]) == [piece for piece in pieces if piece[1] <= end]:
                return places[end]
        return 0

    def _bounds(self, text: str) -> list[tuple[int, int]]:
        assert self._split is not None
        return [bounds for _, bounds in self._split(text) if bounds[1] > bounds[0]]
