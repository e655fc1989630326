"""Prefixes that are being computed right now, so that nobody computes them a second time.

Requests with a common prefix that arrive together all miss the cache: it holds nothing before the first of them has
run. The rule: a waiting request is held back while a prefill in flight shares more of its prompt than the cache holds.
Then N requests together compute exactly the nodes of the trie of their prompts, plus one token for each of them found
wholly cached or wholly in flight (its last token must run to have logits), at page size 1.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..memory.prefix_cache import BYTES_PER_ID, DEFAULT_NAMESPACE, Namespace, TokenIds, common_bytes, key_bytes


class _Edge:
    """Whole pages that `count` prompts in flight go through."""

    __slots__ = ("children", "count", "key")

    def __init__(self, key: bytes, count: int) -> None:
        self.key = key
        self.count = count
        self.children: dict[bytes, _Edge] = {}


class PrefillTrie:
    """The prompts whose prefill is in flight: a trie per namespace, compared on the tokens.

    Adding, removing and asking take time in the length of the one prompt, not in how many are in flight or waiting.
    """

    def __init__(self, page_size: int = 1) -> None:
        self.page_size = page_size
        self._page_bytes = page_size * BYTES_PER_ID
        self._roots: dict[Namespace, _Edge] = {}
        self._keys: dict[Hashable, tuple[Namespace, bytes]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, owner: Hashable) -> bool:
        return owner in self._keys

    def add(self, owner: Hashable, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE) -> None:
        """`owner` begins to compute these tokens. Raises ValueError if it is in flight already."""
        if owner in self._keys:
            raise ValueError(f"{owner!r} is in flight already")
        data = key_bytes(ids)
        data = data[: len(data) - len(data) % self._page_bytes]
        self._keys[owner] = namespace, data
        edge = self._roots.setdefault(namespace, _Edge(b"", 0))
        edge.count += 1
        at = 0
        while at < len(data):
            page = data[at : at + self._page_bytes]
            child = edge.children.get(page)
            if child is None:
                edge.children[page] = _Edge(data[at:], 1)
                return
            common = common_bytes(child.key, data, at, self._page_bytes)
            if common < len(child.key):
                upper = _Edge(child.key[:common], child.count)
                child.key = child.key[common:]
                upper.children[child.key[: self._page_bytes]] = child
                edge.children[page] = child = upper
            child.count += 1
            edge = child
            at += common

    def remove(self, owner: Hashable) -> None:
        """The owner's prompt is in the cache now, or it gave up. Does nothing if it is not in flight."""
        namespace, data = self._keys.pop(owner, (None, b""))
        if namespace is None:
            return
        edge = self._roots[namespace]
        edge.count -= 1
        if not edge.count:
            del self._roots[namespace]
            return
        at = 0
        while at < len(data):
            page = data[at : at + self._page_bytes]
            child = edge.children[page]
            child.count -= 1
            if not child.count:
                del edge.children[page]
                return
            at += len(child.key)
            edge = child

    def shared_len(self, ids: TokenIds, namespace: Namespace = DEFAULT_NAMESPACE) -> int:
        """How many leading tokens (whole pages) these ids share with the prompt in flight most like them."""
        edge = self._roots.get(namespace)
        at = 0
        while edge is not None:  # no more of the ids is looked at than there is to compare
            child = edge.children.get(key_bytes(ids[at : at + self.page_size]))
            if child is None:
                break
            num_tokens = len(child.key) // BYTES_PER_ID
            common = common_bytes(child.key, key_bytes(ids[at : at + num_tokens]), 0, self._page_bytes)
            at += common // BYTES_PER_ID
            edge = child if common == len(child.key) else None
        return at

    def holds_back(self, ids: TokenIds, num_cached: int, namespace: Namespace = DEFAULT_NAMESPACE) -> bool:
        """Whether a request should wait: a prefill in flight is computing more of its prefix than the cache has.

        `ids` are all its tokens, of which the last is computed in any case. `num_cached` is a fresh look-up.
        """
        return bool(self._roots) and self.shared_len(ids[:-1], namespace) > num_cached
