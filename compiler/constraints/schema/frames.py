"""The frames of the stack that a schema's automaton is, and its states."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

SHIFT = 32  # a state is `context << SHIFT | leaf`
LEAF_BITS = (1 << SHIFT) - 1


class Kind(IntEnum):
    """Kinds of frames, with what they hold."""

    END = 0  # the text is complete
    ROOT = 1  # below the whole value
    TEXT = 2  # bytes that must come, and the leaf of the context below after them; the leaf says how many have come
    VALUE = 3  # program: a value is to begin
    STRING = 4  # leaf, bytes so far if they are needed (else None): inside a string
    PLAIN = 5  # leaf: inside a number or literal
    NAME = 6  # object program, tracks: inside a declared name
    OBJECT = 7  # program, tracks or pending tracks, phase
    ARRAY = 8  # program, tracks or pending tracks, phase
    GAP = 9  # how much whitespace may still come, and the leaf of the context below, before which it stands
    # state of a reading of its own, bytes so far (None: unknown): a value that is compared with others
    ITEM = 10
    ITEM_ROOT = 11  # below the reading of an ITEM
    DONE = 12  # result: an ITEM has ended


class Phase(IntEnum):
    OPEN = 0  # just opened
    NAME = 1  # a declared name is being read above
    KEY = 2  # any name is being read above
    VALUE = 3  # a value is being read above
    AFTER = 4  # a value has been read


Frame = tuple[Any, ...]
