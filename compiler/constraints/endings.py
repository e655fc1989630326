"""The shortest way to a whole text: for outputs that have to be complete when their tokens run out.

A shortest text by bytes is found by breadth-first search over the automaton, and cut into as few tokens as it can be.
That is a bound: another text may take fewer tokens. Where too much is near, as with numbers that must differ from one
another, a short text is looked for by way of a few bytes at each place. Where few places are within reach, the fewest
tokens of all are found by searching automaton and token tree together. All are ways that exist, so a text that can end
in n tokens by one of them does end in n tokens.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .token_index import Automaton
    from .token_trie import TokenTrie

MAX_STATES = 20_000  # of the automaton that are looked at for a shortest text
_FEW_BYTES = (2, 4, 8)  # that are tried at each place where all are too many
_RANK = [b'"]}:, '.find(byte) if byte in b'"]}:, ' else 10 + (not chr(byte).isalnum()) for byte in range(256)]
MAX_PLACES = 2_000  # pairs of a state and a node of the tree that are looked at for the fewest tokens


def shortest_end(automaton: Automaton, trie: TokenTrie, state: int) -> tuple[int, ...] | None:
    """Tokens that lead from `state` to acceptance, as few as was found; None if no way was found within the limits."""
    data = short_text(automaton, state)
    found = fewest_tokens(trie, data) if data is not None else None
    if found is not None and len(found) < 2:
        return found
    return fewest_of_all(automaton, trie, state) or found


def short_text(automaton: Automaton, state: int) -> bytes | None:
    """The bytes of a short text from `state` to acceptance; None if none was found within the limits."""
    tried = (shortest_text(automaton, state, num_bytes=number) for number in (256, *_FEW_BYTES))
    return next((text for text in tried if text is not None), None)


def shortest_text(automaton: Automaton, state: int, max_states: int = MAX_STATES, num_bytes: int = 256) -> bytes | None:
    """The bytes of a shortest text from `state` to acceptance; None if more than `max_states` states are nearer.

    `num_bytes`: of those that may come at each place so many are tried, those first that close something.
    """
    came: dict[int, tuple[int, int]] = {state: (-1, 0)}
    queue = deque([state])
    while queue:
        here = queue.popleft()
        if automaton.accepting(here):
            out = bytearray()
            while here != state:
                here, byte = came[here]
                out.append(byte)
            return bytes(reversed(out))
        if len(came) > max_states:
            return None
        moves = automaton.moves(here)
        for byte in moves if len(moves) <= num_bytes else sorted(moves, key=_RANK.__getitem__)[:num_bytes]:
            if (target := moves[byte]) not in came:
                came[target] = (here, byte)
                queue.append(target)
    return None


def fewest_tokens(trie: TokenTrie, data: bytes) -> tuple[int, ...] | None:
    """`data` in as few tokens as possible; None if the vocabulary cannot spell it."""
    size = len(data)
    best: list[tuple[int, int, int] | None] = [None] * (size + 1)  # (tokens, token, where it began)
    best[0] = (0, -1, 0)
    for start in range(size):
        reached = best[start]
        if reached is None:
            continue
        node = 0
        for end in range(start, size):
            node = trie.node_byte.find(data[end], trie.child_start[node], trie.child_start[node + 1])
            if node < 0:
                break
            known, first = best[end + 1], trie.token_start[node]
            if first != trie.token_start[node + 1] and (known is None or known[0] > reached[0] + 1):
                best[end + 1] = (reached[0] + 1, trie.token_ids[first], start)
    ids: list[int] = []
    at = size
    while at:
        step = best[at]
        if step is None:
            return None
        ids.append(step[1])
        at = step[2]
    return tuple(reversed(ids))


def fewest_of_all(
    automaton: Automaton, trie: TokenTrie, state: int, max_places: int = MAX_PLACES
) -> tuple[int, ...] | None:
    """The fewest tokens from `state` to acceptance; None if that takes looking at more than `max_places` places."""
    came: dict[int, tuple[int, int]] = {state: (-1, -1)}  # state between two tokens -> (state before, token)
    layer = [state]
    num_places = 0
    while layer:
        for here in layer:
            if automaton.accepting(here):
                return _tokens_to(here, came)
        later: list[int] = []
        for begin in layer:
            todo = [(0, begin)]
            while todo:
                node, here = todo.pop()
                low, high = trie.child_start[node], trie.child_start[node + 1]
                if low == high:
                    continue
                for byte, target in automaton.moves(here).items():
                    child = trie.node_byte.find(byte, low, high)
                    if child < 0:
                        continue
                    num_places += 1
                    if num_places > max_places:
                        return None
                    first = trie.token_start[child]
                    if first != trie.token_start[child + 1] and target not in came:
                        came[target] = (begin, trie.token_ids[first])
                        later.append(target)
                    todo.append((child, target))
        layer = later
    return None


def _tokens_to(state: int, came: dict[int, tuple[int, int]]) -> tuple[int, ...]:
    ids: list[int] = []
    state, token = came[state]
    while token >= 0:
        ids.append(token)
        state, token = came[state]
    return tuple(reversed(ids))
