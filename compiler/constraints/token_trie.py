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
from .native_walk import NativeTrie, native_trie

MAX_MEMO_BYTES = 128 * 2**20  # per vocabulary

LongArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


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
        with_quote = np.unique(np.searchsorted(offsets + lengths, np.flatnonzero(data == 0x22), side="right"))
        self.quoted_ids = [ids[i] for i in with_quote.tolist()]  # of the tokens with a double quote

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

        self._memo: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._memo_bytes = 0
        self.pinned: dict[Hashable, Any] = {}
        self.is_prepared = False  # see `prepare`
        self._lock = threading.Lock()

    def remember(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The first of what `make()` returns, computed once per key. For what constraints share.

        The second is its size in bytes; the least recently used go when all are larger than MAX_MEMO_BYTES.
        """
        if key in self.pinned:
            return self.pinned[key]
        with self._lock:
            found = self._memo.get(key)
            if found is not None:
                self._memo.move_to_end(key)
                return found[0]
        made, size = make()
        with self._lock:
            if key not in self._memo:
                self._memo[key] = (made, size)
                self._memo_bytes += size
            while self._memo_bytes > MAX_MEMO_BYTES and len(self._memo) > 1:
                self._memo_bytes -= self._memo.popitem(last=False)[1][1]
        return made

    def pin(self, key: Hashable, value: Any) -> None:
        """Keep something under a key of `remember` for good."""
        self.pinned[key] = value

    def forget(self) -> None:
        """Drop what is remembered and not pinned."""
        with self._lock:
            self._memo.clear()
            self._memo_bytes = 0

    @property
    def num_bytes(self) -> int:
        arrays = (self.bytes, self.children, self.tokens, self.token_starts, self.node_of_token)
        return sum(a.nbytes for a in arrays) + 13 * self.num_nodes + 4 * len(self.tokens)

    @cached_property
    def native(self) -> NativeTrie | None:
        """The tree for the compiled walk; None without it."""
        return native_trie(self)

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
        return self.packed(alive[self.node_of_token])

    def packed(self, allowed: BoolArray) -> MaskRow:
        """[vocab_size] bool -> [num_words] int32."""
        bits = np.zeros(self.num_words * 32, bool)
        bits[: self.vocab_size] = allowed
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32, copy=False)


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
