"""Rows that form a tree after a common prefix: a trie of choices, a draft tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence


def ancestors(parents: Sequence[int]) -> npt.NDArray[np.bool_]:
    """[L, L]: whether row i sees row j, an ancestor or itself. parents[i] < i, or -1 for a child of the prefix."""
    sees = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for row, parent in enumerate(parents):
        if not -1 <= parent < row:
            raise EngineError(f"tree row {row} names row {parent} as its parent; parents stand before their children")
        if parent >= 0:
            sees[row] = sees[parent]
        sees[row, row] = True
    return sees


def depths(parents: Sequence[int]) -> npt.NDArray[np.int64]:
    """[L] 0 for a child of the prefix, else the parent's depth + 1."""
    result = np.zeros(len(parents), dtype=np.int64)
    for row, parent in enumerate(parents):
        result[row] = 0 if parent < 0 else result[parent] + 1
    return result


def split_chain(parents: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """(c, tree): the rows begin with c rows in a chain, and what follows is a tree on its end (or on the prefix).

    `tree` is the parents of the rows after the chain, counted from there. c is 0 where rows also hang elsewhere.
    """
    chain = 0
    while chain < len(parents) and parents[chain] == chain - 1:
        chain += 1
    # the chain must not take in a row on which, or beside which, others stand
    chain = min([chain, *(parent + 1 for parent in parents[chain:])])
    return chain, tuple(parent - chain for parent in parents[chain:])


def path(parents: Sequence[int], row: int) -> list[int]:
    """Rows from the child of the prefix down to `row` itself."""
    rows = [row]
    while parents[rows[-1]] >= 0:
        rows.append(parents[rows[-1]])
    return rows[::-1]
