"""The automaton of a schema: a stack of frames, built as texts are read, with equal stacks made once.

A state is `context << 32 | leaf`: the context is a stack of frames, and `leaf` the state of the automaton or name tree
that the top frame reads a string, number or name with (0 in other frames). What a byte does depends on the top frame
alone, except where a value ends: then the frame below takes its result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..native_walk import Description, Leaf, Moves, Name, NativeMachine
from ..speller import QUOTE
from ..token_index import Mask
from ..token_trie import TokenTrie
from .distinct import canonical_of_text
from .frames import LEAF_BITS, SHIFT, Frame, Kind, Phase
from .native_stack import NativeStack
from .plans import Want
from .string_masks import string_mask
from .style import Style
from .universe import Universe
from .values import (
    ArrayProgram,
    ArrayTracks,
    Demand,
    ObjectProgram,
    ObjectTracks,
    ValueProgram,
    demand_of,
    exclusions,
    keep,
    surviving_arrays,
    surviving_objects,
)

UNIVERSE_BYTES = 35_000  # what a small schema's shapes and plans take, as measured over thousands of them
_UNKNOWN = "?"  # the canonical text of no value


class SchemaMachine:
    """Implements `Automaton`. Grows as texts are read; not bounded by itself (`num_bytes` tells)."""

    def __init__(self, universe: Universe, style: Style) -> None:
        self.universe = universe
        self.style = style
        self._entries: list[tuple[Frame, int] | None] = []  # frame and parent by context; None: not read yet
        self._contexts: dict[tuple[Frame, int], int] = {}
        self.native: NativeMachine | None = None
        self._stack: NativeStack | None = None  # which counts the contexts once it is there
        self._moves: dict[int, dict[int, int]] = {}
        self._num_moves = 0
        self._values: dict[Demand, ValueProgram] = {}
        self._survived: dict[tuple[Any, int, str | None], ArrayTracks | ObjectTracks] = {}
        self._end = self._push((Kind.END,), -1)
        root = self._push((Kind.ROOT,), -1)
        self.start = self._value((Want(universe.root),), root) << SHIFT if universe.inhabited(universe.root) else -1

    def fresh(self) -> SchemaMachine:
        """A machine for the same schema that has read nothing yet."""
        return SchemaMachine(self.universe, self.style)

    @property
    def num_states(self) -> int:
        """Contexts built so far; states inside strings and numbers are not counted one by one."""
        return len(self._entries) if self.native is None else self.native.num_contexts

    @property
    def num_bytes(self) -> int:
        return UNIVERSE_BYTES + 400 * len(self._contexts) + 100 * self._num_moves

    # Stack

    def _push(self, frame: Frame, parent: int) -> int:
        key = (frame, parent)
        found = self._contexts.get(key)
        if found is None:
            if self._stack is None:
                found = len(self._entries)
            else:
                found = self._stack.push(frame, parent)
            self._note(found, key)
        return found

    def _note(self, context: int, key: tuple[Frame, int]) -> None:
        if context >= len(self._entries):
            self._entries += [None] * (context + 1 - len(self._entries))
        self._entries[context] = key
        self._contexts[key] = context

    def _at(self, context: int) -> tuple[Frame, int]:
        """The frame and the parent of a context."""
        found = self._entries[context] if context < len(self._entries) else None
        if found is None:
            assert self._stack is not None
            found = self._stack.read(context, self._program)
            self._note(context, found)
        return found

    def attach(self, native: NativeMachine) -> None:
        """Let the compiled walk count the contexts from now on."""
        self.native = native
        self._stack = NativeStack(native, self.style)
        for number, key in enumerate(self._entries):
            assert key is not None
            assert self._stack.push(*key) == number

    def define_value(self, demand: int) -> None:
        """Give the compiled walk what a value may begin with."""
        assert self._stack is not None
        self._stack.define_value(demand, self._program(self._stack.demands[demand]))

    def _program(self, demand: Demand) -> ValueProgram:
        program = self._values.get(demand)
        if program is None:
            program = self._values[demand] = ValueProgram(demand, self.universe)
        return program

    def _value(self, demand: Demand, parent: int) -> int:
        records = any(want.without is not None for want in demand)
        if records:
            demand = tuple(
                want
                if not want.without
                else Want(want.formula, exclusions(self.universe.shapes[want.formula], want.without))
                for want in demand
            )
        program = self._program(demand)
        if records:
            inner = self._push((Kind.VALUE, program), self._push((Kind.ITEM_ROOT,), -1))
            return self._push((Kind.ITEM, inner << SHIFT, b""), parent)
        return self._push((Kind.VALUE, program), parent)

    def declared_names(self, state: int) -> list[str]:
        """The names that are declared for the object in which `state` stands, in the order they must have."""
        frame = self._at(state >> SHIFT)[0]
        return list(frame[1].trie.names) if frame[0] is Kind.OBJECT else []

    # The automaton

    def accepting(self, state: int) -> bool:
        frame, parent = self._at(state >> SHIFT)
        if frame[0] is Kind.PLAIN:
            result = frame[1].outcome(state & LEAF_BITS)
            return bool(result) and self._at(self._deliver(parent, result) >> SHIFT)[0][0] is Kind.END
        return frame[0] is Kind.END

    def moves(self, state: int) -> Mapping[int, int]:
        found = self._moves.get(state)
        if found is None:
            found = self._compute_moves(state)
            if len(self._moves) > 50_000:
                self._moves.clear()
                self._num_moves = 0
            self._num_moves += len(found)
            self._moves[state] = found
        return found

    def few_moves(self, state: int) -> Mapping[int, int] | None:
        """`moves` where they are few or known; None inside strings and recorded items."""
        found = self._moves.get(state)
        if found is None and self._at(state >> SHIFT)[0][0] not in (Kind.STRING, Kind.ITEM):
            return self.moves(state)
        return found

    def _compute_moves(self, state: int) -> dict[int, int]:
        context, leaf_state = state >> SHIFT, state & LEAF_BITS
        frame, parent = self._at(context)
        kind = frame[0]
        if kind is Kind.TEXT:
            text, done = frame[1], leaf_state + 1
            after = context << SHIFT | done if done < len(text) else parent << SHIFT | frame[2]
            return {text[leaf_state]: after}
        if kind is Kind.GAP:
            behind = parent << SHIFT | frame[2]
            return {**dict.fromkeys(b" \n\r\t", self._gap(behind, frame[1] - 1)), **self.moves(behind)}
        if kind is Kind.VALUE:
            return self._begin_value(frame[1], parent)
        if kind is Kind.STRING:
            return self._string_moves(context, frame, parent, leaf_state)
        if kind is Kind.PLAIN:
            base = context << SHIFT
            moves = {byte: base | target for byte, target in frame[1].moves(leaf_state).items()}
            if result := frame[1].outcome(leaf_state):
                moves.update(self.moves(self._deliver(parent, result)))
            return moves
        if kind is Kind.ITEM:
            return self._item_moves(frame, parent)
        if kind is Kind.NAME:
            return self._name_moves(context, frame, parent, leaf_state)
        if kind is Kind.OBJECT:
            return self._object_moves(frame, parent)
        if kind is Kind.ARRAY:
            return self._array_moves(frame, parent)
        return {}

    def _text(self, text: bytes, state: int) -> int:
        """The state in which `text` must come before `state`."""
        return self._push((Kind.TEXT, text, state & LEAF_BITS), state >> SHIFT) << SHIFT if text else state

    def _gap(self, state: int, left: int | None = None) -> int:
        """`state`, with up to `left` characters of whitespace allowed before it."""
        left = self.style.gap if left is None else left
        return self._push((Kind.GAP, left, state & LEAF_BITS), state >> SHIFT) << SHIFT if left else state

    def _begin_value(self, program: ValueProgram, parent: int) -> dict[int, int]:
        moves: dict[int, int] = {}
        if program.strings is not None:
            moves[QUOTE] = self._push((Kind.STRING, program.strings, None), parent) << SHIFT | program.strings.start
        if program.plain is not None:
            base = self._push((Kind.PLAIN, program.plain), parent) << SHIFT
            for byte, target in program.plain.moves(program.plain.start).items():
                moves[byte] = base | target
        if program.objects is not None:
            inside = self._push((Kind.OBJECT, program.objects, program.objects.start, Phase.OPEN), parent)
            moves[0x7B] = self._gap(inside << SHIFT)
        if program.arrays is not None:
            inside = self._push((Kind.ARRAY, program.arrays, program.arrays.start, Phase.OPEN), parent)
            moves[0x5B] = self._gap(inside << SHIFT)
        return moves

    # Items that are compared with others: a reading of their own, wrapped in frames that keep the text

    def _item_moves(self, frame: Frame, parent: int) -> dict[int, int]:
        moves: dict[int, int] = {}
        if result := self._result(frame[1]):  # a number may go on, or be over
            after = self._deliver_item(frame, parent, result)
            moves.update(self.moves(after) if after >= 0 else {})
        for byte, inner in self.moves(frame[1]).items():
            if (after := self._item_step(frame, parent, byte, inner)) >= 0:
                moves[byte] = after
        return moves

    def _item_step(self, frame: Frame, parent: int, byte: int, inner: int) -> int:
        read = (Kind.ITEM, inner, None if frame[2] is None else frame[2] + bytes([byte]))
        top = self._at(inner >> SHIFT)[0]
        return self._deliver_item(read, parent, top[1]) if top[0] is Kind.DONE else self._push(read, parent) << SHIFT

    def _result(self, state: int) -> int:
        """The result of an item that may end in `state` without a further byte of its own, else 0."""
        frame, parent = self._at(state >> SHIFT)
        if frame[0] is Kind.PLAIN and self._at(parent)[0][0] is Kind.ITEM_ROOT:
            return int(frame[1].outcome(state & LEAF_BITS))
        return 0

    def _deliver_item(self, frame: Frame, parent: int, result: int) -> int:
        """The state after an item, -1 if it equals one that it must not equal."""
        value = _UNKNOWN if frame[2] is None else canonical_of_text(frame[2])
        for i, want in enumerate(demand_of(self._at(parent)[0][2])):
            if want.without is not None and value in want.without:
                result &= ~(1 << i)
        return self._deliver(parent, result, value=value) if result else -1

    # Strings and names

    def _string_moves(self, context: int, frame: Frame, parent: int, leaf_state: int) -> dict[int, int]:
        leaf, text = frame[1], frame[2]
        if text is None:
            base = context << SHIFT
            moves = {byte: base | target for byte, target in leaf.moves(leaf_state).items()}
        else:
            moves = {
                byte: self._push((Kind.STRING, leaf, text + bytes([byte])), parent) << SHIFT | target
                for byte, target in leaf.moves(leaf_state).items()
            }
        if result := leaf.outcome(leaf_state):
            moves[QUOTE] = self._deliver(parent, result, text)
        return moves

    def _name_moves(self, context: int, frame: Frame, parent: int, node: int) -> dict[int, int]:
        trie, allowed = frame[1].trie, frame[1].declared_bits(frame[2])
        base = context << SHIFT
        moves = {byte: base | child for byte, child in trie.children[node].items() if trie.below[child] & allowed}
        number = trie.ends.get(node)
        if number is not None and allowed >> number & 1:
            moves[QUOTE] = self._deliver(parent, number)
        return moves

    # Objects and arrays

    def _object_moves(self, frame: Frame, parent: int) -> dict[int, int]:
        program: ObjectProgram = frame[1]
        tracks: ObjectTracks = frame[2]
        moves: dict[int, int] = {}
        key = self._key(program, tracks, parent)
        if key is not None:
            if frame[3] is Phase.OPEN:
                moves[QUOTE] = key
            else:
                comma = self.style.comma
                if self.style.gap:
                    moves[comma[0]] = self._text(comma[1:], self._gap(self._text(b'"', key)))
                else:
                    moves[comma[0]] = self._text(comma[1:] + b'"', key)
        if result := program.close(tracks):
            moves[0x7D] = self._deliver(parent, result)
        return moves

    def _key(self, program: ObjectProgram, tracks: ObjectTracks, parent: int) -> int | None:
        """The state behind the quote of the next key; None if none may come."""
        leaf = program.open_reader(tracks)
        names = program.declared_bits(tracks)
        if leaf is None and not names:
            return None
        if leaf is None:
            below = self._push((Kind.OBJECT, program, tracks, Phase.NAME), parent)
            return self._push((Kind.NAME, program, tracks), below) << SHIFT
        below = self._push((Kind.OBJECT, program, tracks, Phase.KEY), parent)
        return self._push((Kind.STRING, leaf, b"" if program.distinct else None), below) << SHIFT | leaf.start

    def _array_moves(self, frame: Frame, parent: int) -> dict[int, int]:
        program: ArrayProgram = frame[1]
        tracks: ArrayTracks = frame[2]
        moves: dict[int, int] = {}
        pending = program.next_item(tracks)
        if pending:
            below = self._push((Kind.ARRAY, program, pending, Phase.VALUE), parent)
            item = self._value(demand_of(pending), below) << SHIFT
            if frame[3] is Phase.OPEN:
                moves.update(self.moves(item))
            else:
                moves[self.style.comma[0]] = self._text(self.style.comma[1:], self._gap(item))
        if result := program.close(tracks):
            moves[0x5D] = self._deliver(parent, result)
        return moves

    def _deliver(self, context: int, result: int, text: bytes | None = None, value: str | None = None) -> int:
        """The state after a value or name above `context` has ended with `result`.

        `text`: the name's bytes, `value`: the value's canonical text, where they were kept.
        """
        frame, parent = self._at(context)
        if frame[0] is Kind.ROOT:
            return self._end << SHIFT
        if frame[0] is Kind.ITEM_ROOT:
            return self._push((Kind.DONE, result), -1) << SHIFT
        if frame[3] is Phase.VALUE:
            tracks = self._tracks_after(frame, result, value)
            return self._gap(self._push((frame[0], frame[1], tracks, Phase.AFTER), parent) << SHIFT)
        program: ObjectProgram = frame[1]
        classes, number = (0, result) if frame[3] is Phase.NAME else program.meaning(result)
        name = None if text is None else str(json.loads(b'"' + text + b'"'))
        after = program.after_key(frame[2], name, number, classes)
        below = self._push((Kind.OBJECT, program, after, Phase.VALUE), parent)
        begin = self._gap(self._value(demand_of(after), below) << SHIFT)
        return self._gap(self._text(self.style.colon, begin))

    def _tracks_after(self, frame: Frame, result: int, value: str | None) -> ArrayTracks | ObjectTracks:
        """What is left of the tracks of an array or object when the value above it has ended."""
        is_array = frame[0] is Kind.ARRAY
        if len(frame[2]) == 1:
            return surviving_arrays(frame[2], result, value) if is_array else surviving_objects(frame[2], result)
        key = (frame[2], result, value)
        tracks = self._survived.get(key)
        if tracks is None:
            tracks = surviving_arrays(frame[2], result, value) if is_array else surviving_objects(frame[2], result)
            keep(self._survived, key, tracks)
        return tracks

    # For the compiled walk: see `native_walk`

    def describe(self, context: int) -> Description | None:
        """What a context is; None where items or names are recorded byte by byte."""
        frame = self._at(context)[0]
        kind = frame[0]
        if kind is Kind.NAME:
            return Name(frame[1].trie, frame[1].declared_bits(frame[2]))
        if kind is Kind.PLAIN:
            return Leaf(frame[1].dfa, frame[1].outcomes, is_string=False)
        if kind is Kind.STRING:
            return frame[1].described() if frame[2] is None else None
        return None if kind is Kind.ITEM else Moves(self.moves(context << SHIFT))

    def leave(self, context: int, outcome: int) -> int:
        """The state behind a text that ends with a label, or behind a declared name."""
        frame, parent = self._at(context)
        return self._deliver(parent, outcome if frame[0] is Kind.NAME else frame[1].outcomes[outcome])

    # Reading in bulk

    def step(self, state: int, byte: int) -> int:
        """The state after a byte, -1 if it is not allowed."""
        context, leaf_state = state >> SHIFT, state & LEAF_BITS
        frame, parent = self._at(context)
        if frame[0] is Kind.STRING and (byte != QUOTE or not frame[1].outcome(leaf_state)):
            target = frame[1].step(leaf_state, byte)
            if target >= 0 and frame[2] is not None:
                context = self._push((Kind.STRING, frame[1], frame[2] + bytes([byte])), parent)
            return context << SHIFT | target if target >= 0 else -1
        if frame[0] is Kind.ITEM and not self._result(frame[1]):
            inner = self.step(frame[1], byte)
            return self._item_step(frame, parent, byte, inner) if inner >= 0 else -1
        return self.moves(state).get(byte, -1)

    def wide_mask(self, state: int, trie: TokenTrie) -> Mask | None:
        """The mask inside a string, put together from what its automaton allows and what follows its end."""
        outer = state >> SHIFT
        frame, below = self._at(outer)
        item = frame if frame[0] is Kind.ITEM else None
        inner = state if item is None else item[1]
        context, leaf_state = inner >> SHIFT, inner & LEAF_BITS
        text, parent = self._at(context)
        if text[0] is not Kind.STRING:
            return None
        recorded = text[2] is not None or item is not None
        if not text[1].is_wide(leaf_state) and not (recorded and trie.native and text[1].is_between(leaf_state)):
            return None

        def behind(outcome: int) -> int:
            after = self._deliver(parent, outcome, None if text[2] is None else b"?")
            if item is None:
                return after
            return self._item_step((*item[:2], None), below, QUOTE, after)

        exact = partial(self._reads, state) if recorded else None
        unlike = self._unlike(outer) if item is not None and self._at(parent)[0][0] is Kind.ITEM_ROOT else []
        depends = item is not None and self._at(below)[0][1].may_run_out
        return string_mask(self, text[1], leaf_state, behind, exact, self._compares, unlike, depends, trie)

    def _unlike(self, context: int) -> list[bytes]:
        """What an item that is a string so far must not go on with up to its end, lest it be like another."""
        frame, parent = self._at(context)
        read = frame[2]
        if read is None:
            return []
        begun = json.loads(read + b'"')
        wants = demand_of(self._at(parent)[0][2])
        texts = {json.loads(v) for want in wants for v in want.without or () if v.startswith('"')}
        rests = [text[len(begun) :] for text in texts if text.startswith(begun)]
        return [json.dumps(rest, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass") for rest in rests]

    def _compares(self, state: int) -> bool:
        """Whether the text at `state` is recorded, to be compared with other items or names."""
        frame = self._at(state >> SHIFT)[0]
        return frame[0] is Kind.ITEM or (frame[0] is Kind.STRING and frame[2] is not None)

    def _reads(self, state: int, data: bytes) -> bool:
        for byte in data:
            state = self.step(state, byte)
            if state < 0:
                return False
        return True

    def single(self, state: int) -> bool:
        """Whether exactly one byte may come next."""
        context = state >> SHIFT
        frame = self._at(context)[0]
        if frame[0] is Kind.ITEM:
            return self.single(frame[1]) and len(self.moves(state)) == 1
        if frame[0] is Kind.STRING and not frame[1].single(state & LEAF_BITS) and frame[1].is_wide(state & LEAF_BITS):
            return False
        return len(self.moves(state)) == 1
