"""A constraint on the answer only: what a model thinks before it is free up to the marker that ends it.

The output is the begin marker (if the prompt has not opened the reasoning), free text, the end marker, and then the
constraint. A token that ends the marker and reaches over may come if the constraint can begin with the rest of it; the
end of text may not come before the answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from ...core.errors import ConstraintError
from .endings import fewest_tokens, short_text
from .interface import MaskRow, Matcher
from .matcher import AutomatonMatcher


def after_reasoning(matcher: Matcher, begin: str, end: str, special: Mapping[int, bytes]) -> Matcher:
    """`matcher`, at its beginning, for the text after reasoning. `special`: the markers that are special tokens, by id.

    Raises ConstraintError: only our automata can.
    """
    if not isinstance(matcher, AutomatonMatcher):
        raise ConstraintError("this grammar backend cannot leave reasoning free", field="reasoning")
    return AfterReasoning(matcher, begin.encode("utf-8"), end.encode("utf-8"), special)


class AfterReasoning:
    """Implements `Matcher`. `_at` counts the bytes of the begin marker that are there; `_seen` those of the end marker
    that the text ends with, all of them in the answer."""

    __slots__ = ("_at", "_begin", "_end", "_inner", "_path", "_seen", "_special", "_taken")

    def __init__(self, inner: AutomatonMatcher, begin: bytes, end: bytes, special: Mapping[int, bytes]) -> None:
        self._inner = inner
        self._special = special
        self._begin, self._end = begin, end
        self._at = self._seen = 0
        self._path: list[tuple[int, int]] = []
        self._taken = 0

    @property
    def _is_answering(self) -> bool:
        return self._seen == len(self._end)

    def fill_mask(self, row: MaskRow) -> None:
        if self._is_answering:
            self._inner.fill_mask(row)
            return
        row.fill(0)
        allowed = self._allowed()
        row[: len(allowed)] = allowed

    def _allowed(self) -> MaskRow:
        index = self._inner.index
        key = (self._begin[self._at :], self._end, self._seen)
        found = index.reasoning_rows.get(key)
        if found is None:
            found = index.reasoning_rows[key] = self._row()
        return found

    def _row(self) -> MaskRow:
        trie = self._inner.index.trie
        vocabulary = trie.vocabulary
        bits = np.zeros(trie.num_words * 32, np.uint8)
        rest = self._begin[self._at :]
        for token_id, spelt in enumerate(vocabulary.token_bytes):
            data = self._special.get(token_id, spelt)
            if rest:
                bits[token_id] = bool(data) and rest.startswith(data or b"?")
            elif data and self._end[-1] in data:
                seen, over = self._after(data)
                bits[token_id] = seen < len(self._end) or self._reads(over)
            else:
                bits[token_id] = 1
        bits[list(vocabulary.eos_ids)] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _after(self, data: bytes) -> tuple[int, bytes]:
        """How much of the end marker a text ends with after `data`, and what goes beyond the marker."""
        end, seen = self._end, self._seen
        for place, byte in enumerate(data):
            text = end[:seen] + bytes((byte,))
            seen = next(n for n in range(len(text), -1, -1) if text[len(text) - n :] == end[:n])
            if seen == len(end):
                return seen, data[place + 1 :]
        return seen, b""

    def _reads(self, data: bytes) -> bool:
        index = self._inner.index
        return not data or index.step_bytes(index.automaton.start, data) >= 0

    def look_ahead(self, limit: int) -> int:
        return self._inner.look_ahead(limit)

    def advance(self, token_id: int) -> None:
        if self._is_answering:
            self._inner.advance(token_id)
            self._taken += 1
            return
        vocabulary = self._inner.index.trie.vocabulary
        words = self._allowed().view(np.uint32)
        if not 0 <= token_id < vocabulary.size or not words[token_id // 32] >> (token_id % 32) & 1:
            raise ConstraintError(f"token {token_id} is not allowed before the answer")
        data = self._special.get(token_id, vocabulary.token_bytes[token_id]) or b""
        self._path.append((self._at, self._seen))
        if self._at < len(self._begin):
            self._at += len(data)
            return
        self._seen, over = self._after(data)
        if self._is_answering:
            self._inner.enter(over)

    @property
    def is_accepting(self) -> bool:
        return self._is_answering and self._inner.is_accepting

    @property
    def is_terminated(self) -> bool:
        return self._inner.is_terminated

    @property
    def must_stop(self) -> bool:
        return self._is_answering and self._inner.must_stop

    def forced(self) -> list[int]:
        if self._is_answering:
            return self._inner.forced()
        rest, index = self._begin[self._at :], self._inner.index
        if not rest or index.encode is None:
            return []
        for token_id, data in self._special.items():
            if data == rest:
                return [token_id]
        token_bytes = index.trie.vocabulary.token_bytes
        ids = index.encode(rest.decode("utf-8", "replace"))
        return ids if b"".join(token_bytes[i] or b"" for i in ids) == rest else []

    def shortest_end(self) -> tuple[int, ...] | None:
        if self._is_answering:
            return self._inner.shortest_end()
        index = self._inner.index
        with index.lock:
            text = short_text(index.automaton, index.automaton.start)
        if text is None:
            return None
        before, end = self._begin[self._at :], self._end[self._seen :]
        ends = [token_id for token_id, data in self._special.items() if data == end]
        first = [token_id for token_id, data in self._special.items() if before and data == before]
        parts = [tuple(first) or fewest_tokens(index.trie, before)]
        if ends:
            parts += [tuple(ends[:1]), fewest_tokens(index.trie, text)]
        else:
            parts.append(fewest_tokens(index.trie, end + text))
        return None if None in parts else tuple(token_id for part in parts if part for token_id in part)

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= len(self._path) + self._taken:
            raise ConstraintError(f"cannot roll back {num_tokens} of {len(self._path) + self._taken} tokens")
        inner = min(num_tokens, self._taken)
        self._inner.rollback(inner)
        self._taken -= inner
        back = num_tokens - inner
        if back:
            self._at, self._seen = self._path[-back]
            del self._path[-back:]
            self._inner.enter(b"")

    def copy(self) -> AfterReasoning:
        other = AfterReasoning(self._inner.copy(), self._begin, self._end, self._special)
        other._at, other._seen, other._path, other._taken = self._at, self._seen, self._path.copy(), self._taken
        return other

    @property
    def state_key(self) -> Hashable:
        return self._inner.state_key if self._is_answering else (self._begin[self._at :], self._end, self._seen)
