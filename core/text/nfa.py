"""Small regexes as state sets that advance one character at a time.

Two users: `pretoken` asks whether a pre-tokeniser's pattern, started at some place, could still change its mind when
more text arrives; `stops` searches a text that arrives in pieces. Neither needs captures, so a set of live states is
enough (Thompson's construction), and it says something no backtracking engine tells: whether a match is still open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

CharTest = Callable[[str], bool]
MAX_STATES = 20_000
_FLAG_LETTERS = {"i": re.IGNORECASE, "s": re.DOTALL, "m": re.MULTILINE, "x": re.VERBOSE, "u": re.UNICODE, "a": re.ASCII}
_SPECIAL = set("\\^$.|?*+()[]{}")


class Unsupported(ValueError):
    """The pattern uses something outside the subset: back-references, look-around over more than one character..."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One character out of a class: `source` is the class as written, `flags` of the `re` module in force there."""

    source: str
    flags: int


@dataclass(frozen=True, slots=True)
class Assertion:
    """A condition on the characters before and after a place: `kind` one of next, not-next, b, B, start, end, ..."""

    kind: str
    atom: Atom | None = None


_NEWLINE = Atom("\\n", 0)
Consume = tuple[int, int]  # (atom number, target state)


@dataclass(slots=True)
class Nfa:
    """States 0..n-1. `epsilon[s]`: (assertion or None, target) pairs; `consume[s]`: (atom number, target) pairs."""

    epsilon: list[list[tuple[Assertion | None, int]]] = field(default_factory=list)
    consume: list[list[Consume]] = field(default_factory=list)
    atoms: list[Atom] = field(default_factory=list)
    start: int = 0
    accept: int = 0

    def add_state(self) -> int:
        if len(self.epsilon) >= MAX_STATES:
            raise Unsupported(f"the pattern needs more than {MAX_STATES} states")
        self.epsilon.append([])
        self.consume.append([])
        return len(self.epsilon) - 1

    def atom_index(self, atom: Atom) -> int:
        if atom not in self.atoms:
            self.atoms.append(atom)
        return self.atoms.index(atom)


Fragment = tuple[int, int]
# ("atom", Atom) | ("assert", Assertion) | ("cat" or "alt", nodes) | ("repeat", node, least, most or None)
Node = tuple[Any, ...]


class _Parser:
    """Recursive descent over the subset; produces nodes. Greedy, lazy and possessive loops have the same live states
    up to what possessive ones refuse, so they are not told apart: the states are a superset of the engine's."""

    def __init__(self, pattern: str, flags: int) -> None:
        self.pattern = pattern
        self.pos = 0
        self.flags = flags

    def parse(self) -> Node:
        node = self._alternatives()
        if self.pos != len(self.pattern):
            raise Unsupported(f"unbalanced ')' at position {self.pos}")
        return node

    def _peek(self, size: int = 1) -> str:
        return self.pattern[self.pos : self.pos + size]

    def _alternatives(self) -> Node:
        flags = self.flags
        branches = [self._sequence()]
        while self._peek() == "|":
            self.pos += 1
            branches.append(self._sequence())
        self.flags = flags  # an inline (?i) holds to the end of its group
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self.pos < len(self.pattern) and self._peek() not in ("|", ")"):
            if self.flags & re.VERBOSE and (self._peek().isspace() or self._peek() == "#"):
                self._skip_verbose()
                continue
            item = self._item()
            if item is not None:
                items.append(self._quantified(item))
        return ("cat", items)

    def _skip_verbose(self) -> None:
        if self._peek() == "#":
            end = self.pattern.find("\n", self.pos)
            self.pos = len(self.pattern) if end < 0 else end
        self.pos += 1

    def _item(self) -> Node | None:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return ("atom", Atom(self._class_source(), self.flags))
        if char == "\\":
            return self._escape()
        self.pos += 1
        if char == ".":
            return ("atom", Atom(".", self.flags))
        if char == "^":
            return ("assert", Assertion("line-start" if self.flags & re.MULTILINE else "start"))
        if char == "$":
            return ("assert", Assertion("line-end" if self.flags & re.MULTILINE else "end-or-newline", _NEWLINE))
        if char in "*+?":
            raise Unsupported(f"nothing to repeat at position {self.pos - 1}")
        return ("atom", Atom(re.escape(char), self.flags))

    def _group(self) -> Node | None:
        opened = self.pos
        self.pos += 1
        if self._peek() != "?":
            return self._group_body(opened)
        if self._peek(2) == "?:":
            self.pos += 2
            return self._group_body(opened)
        if self._peek(2) in ("?=", "?!"):
            kind = "next" if self._peek(2) == "?=" else "not-next"
            self.pos += 2
            return ("assert", self._lookahead(kind, self._group_body(opened)))
        named = re.compile(r"\?P?<([A-Za-z_]\w*)>").match(self.pattern, self.pos)
        if named:
            self.pos = named.end()
            return self._group_body(opened)
        flags = re.compile(r"\?([imsxua]*)(-[imsx]+)?([:)])").match(self.pattern, self.pos)
        if not flags:
            raise Unsupported(f"the group {self.pattern[opened : opened + 4]!r} at position {opened} is not supported")
        self.pos = flags.end()
        outer = self.flags
        for letter in flags[1]:
            self.flags |= _FLAG_LETTERS[letter]
        for letter in (flags[2] or "-")[1:]:
            self.flags &= ~_FLAG_LETTERS[letter]
        if flags[3] == ")":
            return None
        node = self._group_body(opened)
        self.flags = outer
        return node

    def _group_body(self, opened: int) -> Node:
        node = self._alternatives()
        if self._peek() != ")":
            raise Unsupported(f"the group opened at position {opened} is not closed")
        self.pos += 1
        return node

    def _lookahead(self, kind: str, node: Node) -> Assertion:
        while node[0] == "cat" and len(node[1]) == 1:
            node = node[1][0]
        if node[0] != "atom":
            raise Unsupported("look-ahead over more than one character is not supported")
        return Assertion(kind, node[1])

    def _escape(self) -> Node:
        start = self.pos
        match = re.compile(
            r"\\(?:[pP]\{\^?[\w=& :-]+\}|[pP]\w|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]+\}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)",
            re.S,
        ).match(self.pattern, self.pos)
        if not match:
            raise Unsupported("the pattern ends in a lone backslash")
        source = match[0]
        self.pos = match.end()
        letter = source[1]
        if letter in "bB":
            return ("assert", Assertion(letter, Atom(r"\w", self.flags)))
        if letter == "A":
            return ("assert", Assertion("start"))
        if letter in "zZ":  # Python's \Z; in Oniguruma \Z also allows a last newline, which only pre-tokenisers use
            return ("assert", Assertion("end") if letter == "z" else Assertion("end-or-newline", _NEWLINE))
        if letter.isdigit() and letter != "0":
            raise Unsupported(f"the back-reference {source} at position {start} is not supported")
        if letter.isalpha() and letter not in "pPxuUdDsSwWnrtfvae":
            raise Unsupported(f"the escape {source} at position {start} is not supported")
        if source.startswith("\\x{"):
            source = re.escape(chr(int(source[3:-1], 16)))
        return ("atom", Atom(r"\x1b" if source == r"\e" else r"\x00" if source == r"\0" else source, self.flags))

    def _class_source(self) -> str:
        start = self.pos
        depth = 0
        first = True  # a "]" right after "[" or "[^" is a literal
        while self.pos < len(self.pattern):
            char = self._peek()
            self.pos += 1
            if char == "\\":
                self.pos += 1
            elif char == "[" and (depth == 0 or self._peek() == ":" or "&&" in self.pattern[start : self.pos]):
                depth += 1
                if self._peek() == "^":
                    self.pos += 1
                first = depth == 1
                continue
            elif char == "]" and not first:
                depth -= 1
                if depth == 0:
                    return self.pattern[start : self.pos]
            first = False
        raise Unsupported(f"the class opened at position {start} is not closed")

    def _quantified(self, item: Node) -> Node:
        while True:
            char = self._peek()
            bounds = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.pos) if char == "{" else None
            if char and char in "*+?":
                self.pos += 1
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
            elif bounds and (bounds[1] or bounds[2]):
                self.pos = bounds.end()
                low = int(bounds[1] or 0)
                high = (int(bounds[3]) if bounds[3] else None) if bounds[2] else low
                if high is not None and high < low:
                    raise Unsupported(f"the repetition {bounds[0]} has its bounds reversed")
            else:
                return item
            if self._peek() in ("?", "+") and self._peek():
                self.pos += 1
            item = ("repeat", item, low, high)


def _build(nfa: Nfa, node: Node) -> Fragment:
    kind = node[0]
    if kind == "atom":
        start, end = nfa.add_state(), nfa.add_state()
        nfa.consume[start].append((nfa.atom_index(node[1]), end))
        return start, end
    if kind == "assert":
        if node[1].atom is not None:
            nfa.atom_index(node[1].atom)
        start, end = nfa.add_state(), nfa.add_state()
        nfa.epsilon[start].append((node[1], end))
        return start, end
    if kind == "alt":
        start, end = nfa.add_state(), nfa.add_state()
        for branch in node[1]:
            first, last = _build(nfa, branch)
            nfa.epsilon[start].append((None, first))
            nfa.epsilon[last].append((None, end))
        return start, end
    if kind == "cat":
        start = end = nfa.add_state()
        for item in node[1]:
            first, last = _build(nfa, item)
            nfa.epsilon[end].append((None, first))
            end = last
        return start, end
    return _build_repeat(nfa, node[1], node[2], node[3])


def _build_repeat(nfa: Nfa, item: Node, low: int, high: int | None) -> Fragment:
    start = end = nfa.add_state()
    for _ in range(low):
        first, last = _build(nfa, item)
        nfa.epsilon[end].append((None, first))
        end = last
    if high is None:
        loop, after = nfa.add_state(), nfa.add_state()
        first, last = _build(nfa, item)
        nfa.epsilon[end].append((None, loop))
        nfa.epsilon[loop] += [(None, first), (None, after)]
        nfa.epsilon[last].append((None, loop))
        return start, after
    after = nfa.add_state()
    for _ in range(high - low):
        nfa.epsilon[end].append((None, after))
        first, last = _build(nfa, item)
        nfa.epsilon[end].append((None, first))
        end = last
    nfa.epsilon[end].append((None, after))
    return start, after


def build_nfa(pattern: str, flags: int = 0) -> Nfa:
    """The automaton of `pattern`. Raises Unsupported, saying what of the pattern is outside the subset."""
    nfa = Nfa()
    nfa.start, nfa.accept = _build(nfa, _Parser(pattern, flags).parse())
    return nfa


class LiveStates:
    """Runs an Nfa over characters. A *kernel* is a frozenset of states before their empty moves are followed: those
    may depend on the next character. Steps are remembered by (kernel, what the atoms say of the character)."""

    def __init__(self, nfa: Nfa, char_test: Callable[[Atom], CharTest], wild: CharTest | None = None) -> None:
        """`char_test` makes the test of an atom; a character for which `wild` holds is taken to match every atom."""
        self.nfa = nfa
        self._wild = wild
        self._tests = [char_test(atom) for atom in nfa.atoms]
        self._number = {atom: number for number, atom in enumerate(nfa.atoms)}
        self._signature = lru_cache(maxsize=65_536)(self._signature_of)
        self._steps: dict[tuple[frozenset[int], int], frozenset[int]] = {}
        self.start = frozenset((nfa.start,))
        assertions = {a for moves in nfa.epsilon for a, _ in moves if a is not None}
        self._has_assertions = bool(assertions)
        self.is_context_free = all(a.kind not in ("b", "B", "start", "line-start") for a in assertions)

    def _signature_of(self, char: str) -> int:
        if self._wild is not None and self._wild(char):
            return -1
        signature = 0
        for number, test in enumerate(self._tests):
            signature |= test(char) << number
        return signature

    def closure(
        self, kernel: Iterable[int], before: str | None, after: str | None, if_unknown: bool | None = None
    ) -> set[int]:
        """States reachable by empty moves between the characters `before` and `after` (None: the text's edge).

        With `if_unknown` the text may go on after its edge: conditions on what follows are taken as met, or as not.
        """
        seen = set(kernel)
        todo = list(seen)
        while todo:
            for assertion, target in self.nfa.epsilon[todo.pop()]:
                if target not in seen and (assertion is None or self.holds(assertion, before, after, if_unknown)):
                    seen.add(target)
                    todo.append(target)
        return seen

    def holds(self, assertion: Assertion, before: str | None, after: str | None, if_unknown: bool | None) -> bool:
        """Whether a condition is met between two characters; see `closure`."""
        kind = assertion.kind
        if kind == "start":
            return before is None
        if kind == "line-start":
            return before is None or before == "\n"
        if after is None and if_unknown is not None:
            return if_unknown
        if kind == "end":
            return after is None
        assert assertion.atom is not None
        if after is not None and self._wild is not None and self._wild(after):
            return True
        follows = after is not None and self._matches(assertion.atom, after)
        if kind in ("end-or-newline", "line-end"):  # the former also wants the newline to be the last: not looked at
            return after is None or follows
        if kind in ("next", "not-next"):
            return follows == (kind == "next")
        is_boundary = follows != (before is not None and self._matches(assertion.atom, before))
        return is_boundary == (kind == "b")

    def _matches(self, atom: Atom, char: str) -> bool:
        return bool(self._signature(char) >> self._number[atom] & 1)

    def allows(self, char: str) -> int:
        """Bit a is set if atom a matches the character."""
        return self._signature(char)

    def advance(self, states: Iterable[int], char: str) -> frozenset[int]:
        """The kernel after `char` was consumed from `states` (already closed)."""
        signature = self._signature(char)
        return frozenset(
            target for state in states for atom, target in self.nfa.consume[state] if signature >> atom & 1
        )

    def step(self, kernel: frozenset[int], before: str | None, char: str) -> frozenset[int]:
        """Close the kernel in view of `char`, then consume it."""
        if not self.is_context_free:
            return self.advance(self.closure(kernel, before, char), char)
        key = (kernel, self._signature(char))
        result = self._steps.get(key)
        if result is None:
            result = self._steps[key] = self.advance(self.closure(kernel, None, char), char)
        return result

    def is_open(self, kernel: frozenset[int], before: str | None) -> bool:
        """Whether more text could lengthen or alter what these states would match."""
        if not kernel:
            return False
        closed = self.closure(kernel, before, None, if_unknown=True)
        if any(self.nfa.consume[state] for state in closed):
            return True
        return self._has_assertions and any(a is not None for state in closed for a, _ in self.nfa.epsilon[state])

    def accepts(self, kernel: frozenset[int], before: str | None, after: str | None) -> bool:
        """Whether the pattern is matched by what led to this kernel, with `after` the next character."""
        return self.nfa.accept in self.closure(kernel, before, after)
