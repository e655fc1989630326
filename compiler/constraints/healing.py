"""Token healing: the end of the prompt is given back and generated again, so that a token may reach over the seam.

*Naive*: the prompt's tokens are final, the constraint begins after them. *Wrong because* a model that has learnt
`": "` and `" yes"` as tokens never sees `" "` followed by `"yes"`. *So* the matcher begins with the bytes given back:
only tokens that spell them, or go on from them into the constraint, may come.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from ...core.errors import ConstraintError
from .endings import fewest_tokens, short_text
from .interface import MaskRow, Matcher
from .matcher import AutomatonMatcher
from .token_index import Mask, pack, walk

MAX_ROWS = 256  # masks of healed text that a constraint keeps


def healing(matcher: Matcher, healed: str) -> Matcher:
    """`matcher`, at its beginning, made to spell `healed` first. Raises ConstraintError: only our automata can."""
    if not healed:
        return matcher
    if not isinstance(matcher, AutomatonMatcher):
        raise ConstraintError("this grammar backend cannot heal: give token_healing=False", field="token_healing")
    return HealedMatcher(matcher, healed.encode("utf-8"))


class HealedMatcher:
    """Implements `Matcher` for `healed` followed by a constraint: its own places first, then those of `inner`."""

    __slots__ = ("_at", "_healed", "_inner", "_path", "_taken")

    def __init__(self, inner: AutomatonMatcher, healed: bytes) -> None:
        self._inner = inner  # at its beginning
        self._healed = healed
        self._at = 0  # bytes of `healed` that are there
        self._path: list[int] = []  # `_at` before each token that spelt some of them
        self._taken = 0  # tokens that only the inner matcher has taken

    @property
    def _rest(self) -> bytes:
        return self._healed[self._at :]

    def fill_mask(self, row: MaskRow) -> None:
        if self._at == len(self._healed):
            self._inner.fill_mask(row)
            return
        rows, rest = self._inner.index.healed_rows, self._rest
        mask = rows.get(rest)
        if mask is None:
            if len(rows) >= MAX_ROWS:
                rows.clear()
            mask = rows[rest] = self._mask(rest)
        mask.write(row)

    def _mask(self, rest: bytes) -> Mask:
        """Tokens that `rest` begins with, and those that begin with it and go on as the constraint does."""
        index = self._inner.index
        trie, node = index.trie, 0
        tokens: list[int] = []
        for byte in rest:
            node = trie.node_byte.find(byte, trie.child_start[node], trie.child_start[node + 1])
            if node < 0:
                break
            tokens += trie.token_ids[trie.token_start[node] : trie.token_start[node + 1]]
        if node >= 0:
            with index.lock:
                tokens += walk(index.automaton, trie, index.automaton.start, node)
        words, values = pack(tokens)
        base = np.zeros(trie.num_words, np.int32)
        base[words] = values
        return Mask(base, words[:0], values[:0])

    def look_ahead(self, limit: int) -> int:
        return self._inner.look_ahead(limit)

    def advance(self, token_id: int) -> None:
        if self._at == len(self._healed):
            self._inner.advance(token_id)
            self._taken += 1
            return
        vocabulary = self._inner.index.trie.vocabulary
        data = vocabulary.token_bytes[token_id] if 0 <= token_id < vocabulary.size else None
        rest = self._rest
        if data and token_id not in vocabulary.eos_ids and rest.startswith(data):
            self._path.append(self._at)
            self._at += len(data)
        elif data and token_id not in vocabulary.eos_ids and self._reaches_over(data):
            self._path.append(self._at)
            self._at = len(self._healed)
        else:
            shown = f"{data!r}" if data else "no text"
            raise ConstraintError(f"token {token_id} ({shown}) does not spell the healed text {rest!r}")

    def _reaches_over(self, data: bytes) -> bool:
        """Whether a token spells all that is left and goes on as the constraint does; the inner matcher goes there."""
        rest = self._rest
        return data.startswith(rest) and self._inner.enter(data[len(rest) :])

    @property
    def is_accepting(self) -> bool:
        return self._at == len(self._healed) and self._inner.is_accepting

    @property
    def is_terminated(self) -> bool:
        return self._inner.is_terminated

    @property
    def must_stop(self) -> bool:
        return self._at == len(self._healed) and self._inner.must_stop

    def forced(self) -> list[int]:
        if self._at == len(self._healed):
            return self._inner.forced()
        return list(self._inner.index.forced_after(self._rest))

    def shortest_end(self) -> tuple[int, ...] | None:
        if self._at == len(self._healed):
            return self._inner.shortest_end()
        index = self._inner.index
        with index.lock:
            text = short_text(index.automaton, index.automaton.start)
            return None if text is None else fewest_tokens(index.trie, self._rest + text)

    def rollback(self, num_tokens: int) -> None:
        inner = min(num_tokens, self._taken)
        if not 0 <= num_tokens <= len(self._path) + self._taken:
            raise ConstraintError(f"cannot roll back {num_tokens} of {len(self._path) + self._taken} tokens")
        self._inner.rollback(inner)
        self._taken -= inner
        back = num_tokens - inner
        if back:
            self._at = self._path[-back]
            del self._path[-back:]
            self._inner.enter(b"")

    def copy(self) -> HealedMatcher:
        other = HealedMatcher(self._inner.copy(), self._healed)
        other._at, other._path, other._taken = self._at, self._path.copy(), self._taken
        return other

    @property
    def state_key(self) -> Hashable:
        return (len(self._healed) - self._at, self._inner.state_key) if self._rest else self._inner.state_key
