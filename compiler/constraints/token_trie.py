"""The vocabulary as a tree over bytes, in arrays: what masks are read off."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np

from ...core.constraint import Vocabulary
from .interface import MaskRow, mask_words

MAX_MEMO = 2048

LongArray = np.ndarray[Any, np.dtype[np.int64]]


class TokenTrie:
    """Nodes in breadth-first order, node 0 the root; the children of a node are consecutive and sorted by byte.

    `node_byte[n]` is the byte that leads to n, `child_start[n] : child_start[n + 1]` are its children, and
    `token_ids[token_start[n] : token_start[n + 1]]` the tokens that end there. EOS ids and tokens without bytes are
    not in the tree. A token with no bytes at all would never get on and is left out too.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self.num_words = mask_words(self.vocab_size)
        ends = set(vocabulary.eos_ids)
        ids = [i for i, token in enumerate(vocabulary.token_bytes) if token and i not in ends]
        tokens = [vocabulary.token_bytes[i] or b"" for i in ids]
        data = np.frombuffer(b"".join(tokens), np.uint8)
        lengths = np.array([len(t) for t in tokens], np.int64)
        offsets = np.cumsum(lengths) - lengths
        self.max_token_len = int(lengths.max()) if len(ids) else 0

        bytes_by_level = [np.zeros(1, np.uint8)]
        parents_by_level = [np.zeros(0, np.int64)]
        node = np.zeros(len(ids), np.int64)
        num_nodes, active = 1, np.arange(len(ids))
        for depth in range(self.max_token_len):
            active = active[lengths[active] > depth]
            keys = node[active] * 256 + data[offsets[active] + depth]
            distinct, inverse = np.unique(keys, return_inverse=True)
            node[active] = num_nodes + inverse.reshape(-1)
            num_nodes += len(distinct)
            bytes_by_level.append((distinct & 255).astype(np.uint8))
            parents_by_level.append(distinct >> 8)

        self.num_nodes = num_nodes
        self.bytes = np.concatenate(bytes_by_level)
        counts = np.bincount(np.concatenate(parents_by_level), minlength=num_nodes)
        self.children = np.concatenate([[1], 1 + np.cumsum(counts)])  # [N + 1]
        order = np.argsort(node, kind="stable")
        self.tokens = np.array(ids, np.int64)[order] if ids else np.zeros(0, np.int64)
        self.token_starts = np.searchsorted(node[order], np.arange(num_nodes + 1))  # [N + 1]
        self.node_of_token = np.full(self.vocab_size, num_nodes, np.int64)  # num_nodes: in no node
        self.node_of_token[ids] = node

        # The same for one-by-one walks: plain bytes and arrays are several times quicker to index than numpy's.
        self.node_byte = self.bytes.tobytes()
        self.child_start = array("i", self.children.astype(np.int32).tobytes())
        self.token_start = array("i", self.token_starts.astype(np.int32).tobytes())
        self.token_ids = array("i", self.tokens.astype(np.int32).tobytes())
        self.eos_ids = tuple(i for i in vocabulary.eos_ids if 0 <= i < self.vocab_size)

        self.quote_child = np.full(num_nodes, -1, np.int64)  # the child by a double quote, -1 if there is none
        quotes = np.flatnonzero(self.bytes[1:] == 0x22) + 1
        self.quote_child[np.searchsorted(self.children, quotes, side="right") - 1] = quotes
        self.memo: OrderedDict[Hashable, Any] = OrderedDict()  # what automata shared by constraints have computed
        self.memo_lock = threading.Lock()

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, computed once per key; the least recently used of MAX_MEMO entries goes first."""
        with self.memo_lock:
            if key in self.memo:
                self.memo.move_to_end(key)
                return self.memo[key]
        made = make()
        with self.memo_lock:
            self.memo[key] = made
            while len(self.memo) > MAX_MEMO:
                self.memo.popitem(last=False)
        return made

    @cached_property
    def tails(self) -> QuoteTails:
        """What follows a double quote within tokens."""
        return QuoteTails(self)

    @property
    def num_bytes(self) -> int:
        arrays = (self.bytes, self.children, self.tokens, self.token_starts, self.node_of_token)
        return sum(a.nbytes for a in arrays) + 13 * self.num_nodes + 4 * len(self.tokens)

    def find(self, data: bytes) -> int:
        """The node `data` leads to; -1 if no token begins with it."""
        node = 0
        for byte in data:
            node = self.node_byte.find(byte, self.child_start[node], self.child_start[node + 1])
            if node < 0:
                return -1
        return node

    def dense_row(self, alive_nodes: LongArray) -> MaskRow:
        """A mask row [num_words] allowing exactly the tokens that end at `alive_nodes`."""
        alive = np.zeros(self.num_nodes + 1, bool)
        alive[alive_nodes] = True
        bits = np.zeros(self.num_words * 32, bool)
        bits[: self.vocab_size] = alive[self.node_of_token]
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32, copy=False)


class QuoteTails:
    """Tokens cut at a double quote: `texts` [T] are the distinct pieces behind one (0: the empty one), `trie` their
    tree (its token ids are piece numbers). A token with several quotes has an entry for each."""

    def __init__(self, trie: TokenTrie) -> None:
        numbers: dict[bytes, int] = {b"": 0}
        entries: list[tuple[int, int, int]] = []
        ends = set(trie.vocabulary.eos_ids)
        for token, data in enumerate(trie.vocabulary.token_bytes):
            if not data or token in ends:
                continue
            at = data.find(b'"')
            while at >= 0:
                tail = data[at + 1 :]
                entries.append((trie.find(data[: at + 1]), token, numbers.setdefault(tail, len(numbers))))
                at = data.find(b'"', at + 1)
        entries.sort()
        self.texts = list(numbers)
        # Pieces that may end a further name or item.
        self.far = [t.count(b'"') > 1 or b"}" in t or b"]" in t for t in self.texts]
        self.nodes = np.array([e[0] for e in entries], np.int64)
        self.tokens = np.array([e[1] for e in entries], np.int64)
        self.numbers = np.array([e[2] for e in entries], np.int64)
        self.trie = TokenTrie(Vocabulary.of((None, *self.texts[1:]), ()))

    def behind(self, quote_nodes: LongArray) -> tuple[LongArray, LongArray]:
        """(tokens, piece numbers) of all entries cut at these nodes (ascending)."""
        low = np.searchsorted(self.nodes, quote_nodes)
        counts = np.searchsorted(self.nodes, quote_nodes, side="right") - low
        ends = np.cumsum(counts)
        at = np.repeat(low - ends + counts, counts) + np.arange(int(ends[-1]) if len(ends) else 0)
        return self.tokens[at], self.numbers[at]


_tries: OrderedDict[str, TokenTrie] = OrderedDict()
_lock = threading.Lock()
_MAX_TRIES = 4


def trie_of(vocabulary: Vocabulary) -> TokenTrie:
    """The vocabulary's tree, built once per process (the last few are kept)."""
    with _lock:
        trie = _tries.get(vocabulary.hash)
        if trie is None:
            trie = _tries[vocabulary.hash] = TokenTrie(vocabulary)
        _tries.move_to_end(vocabulary.hash)
        while len(_tries) > _MAX_TRIES:
            _tries.popitem(last=False)
        return trie
