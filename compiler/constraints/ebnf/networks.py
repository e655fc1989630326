"""Rules as small deterministic automata over terminals and rules: recursive transition networks (Woods 1970).

All networks share one numbering of states. State END is behind the whole text, BARE an end of a rule from which nothing
else is possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from ..char_dfa import from_regex
from ..nfa import TooLarge
from ..regex_ast import Regex
from ..regex_syntax import RegexError
from ..spelling import ByteDfa, shared_byte_dfa
from .grammar import Expr, Grammar, Or, Ref, Rep, Seq, Term, components, grammar_error, reachable, simplified

END, BARE = 0, 1
MAX_STATES = 40_000  # of all networks, repeats written out
MAX_WORK = 400_000  # members of sets of states while rules are made deterministic

Symbol = tuple[str, int]  # ("term", number) or ("rule", number)


class Terminal:
    """A regular piece over bytes. `after_end` holds the bytes that may go on where a text could also end."""

    def __init__(self, dfa: ByteDfa) -> None:
        self.dfa = dfa
        self.start_moves = dict(dfa.moves(dfa.start))

    @cached_property
    def after_end(self) -> frozenset[int]:
        chars, speller = self.dfa.chars, self.dfa.speller
        live = (chars.delta[chars.accept] != 0).any(axis=0)
        return frozenset(
            byte
            for byte, entry in speller.row(0).items()
            if (live[~entry] if entry < 0 else bool((speller.reach[entry] & live).any()))
        )

    def step(self, state: int, byte: int) -> int:
        return self.dfa.step(state, byte)


class Networks:
    """The networks of a grammar. Rules and terminals are numbers.

    `terms[q]` and `calls[q]` are the moves of state q: (terminal or rule, next state). `final[q]`: the rule may end.
    `entry[r]` is a rule's first state, `corners[r]` the states it can be in before any byte; `component[r]` numbers the
    rules that can begin with one another, callers first.
    """

    def __init__(self, grammar: Grammar) -> None:
        rules = simplified(reachable(grammar))
        rules = {name: rules[name] for name in reachable(Grammar(rules, grammar.start, grammar.lines))}
        self.names = list(rules)
        self.number = {name: i for i, name in enumerate(self.names)}
        self.terminals: list[Terminal] = []
        self._by_regex: dict[Regex, int] = {}
        self._by_key: dict[bytes, int] = {}
        self._empty: set[int] = set()
        self._nullable_terms: set[int] = set()
        self.terms: list[list[tuple[int, int]]] = [[], []]
        self.calls: list[list[tuple[int, int]]] = [[], []]
        self.final: list[bool] = [False, True]
        self._work = 0
        builders = [_Builder(self, name, rules[name], grammar.lines.get(name, 0)) for name in self.names]
        productive = self._productive(builders)
        if self.number[grammar.start] not in productive:
            raise grammar_error(
                f"no text matches: rule {grammar.start.split(' ')[0]!r} always leads back to a rule before it ends",
                grammar.lines.get(grammar.start.split(" ")[0], 0),
            )
        self.nullable = self._nullable(builders, productive)
        self.entry = [b.build(productive) if i in productive else -1 for i, b in enumerate(builders)]
        self.start = len(self.final)  # a place before the first rule
        self.terms.append([])
        self.calls.append([(self.number[grammar.start], BARE)])
        self.final.append(False)
        self._find_corners()

    # terminals

    def terminal(self, regex: Regex, line: int) -> int:
        """The number of a terminal. Raises TooLarge, and ConstraintError for what no regex can be."""
        number = self._by_regex.get(regex)
        if number is None:
            try:
                chars = from_regex(regex)
            except RegexError as error:
                raise grammar_error(str(error), line) from None
            number = self._by_key.get(chars.key)
            if number is None:
                number = self._by_key[chars.key] = len(self.terminals)
                dfa = shared_byte_dfa(chars, "utf8")
                self.terminals.append(Terminal(dfa))
                if chars.is_empty or not self.terminals[-1].start_moves:
                    self._empty.add(number)
                if chars.matches_empty:
                    self._nullable_terms.add(number)
            self._by_regex[regex] = number
        return number

    # what rules can be

    def _productive(self, builders: list[_Builder]) -> set[int]:
        """Rules that some text matches."""
        found: set[int] = set()
        waiting: dict[int, set[int]] = {}
        todo = list(range(len(builders)))
        while todo:
            rule = todo.pop()
            if rule in found:
                continue
            missing = builders[rule].missing(self._empty, found)
            if missing is None:
                found.add(rule)
                todo.extend(waiting.pop(rule, ()))
            else:
                for other in missing:
                    waiting.setdefault(other, set()).add(rule)
        return found

    def _nullable(self, builders: list[_Builder], productive: set[int]) -> list[bool]:
        """Whether the empty text matches a rule."""
        found: set[int] = set()
        waiting: dict[int, set[int]] = {}
        todo = sorted(productive)
        while todo:
            rule = todo.pop()
            if rule in found:
                continue
            missing = builders[rule].missing(None, found)
            if missing is None:
                found.add(rule)
                todo.extend(waiting.pop(rule, ()))
            else:
                for other in missing:
                    waiting.setdefault(other, set()).add(rule)
        return [rule in found for rule in range(len(builders))]

    def _find_corners(self) -> None:
        """What each rule can begin with, and the order in which its callers come before it."""
        self.corners: list[tuple[int, ...]] = [self._skipping(q) if q >= 0 else () for q in self.entry]
        self.corner_calls: list[tuple[tuple[int, int], ...]] = [
            tuple(call for q in states for call in self.calls[q]) for states in self.corners
        ]
        edges = {str(r): [str(callee) for callee, _ in calls] for r, calls in enumerate(self.corner_calls)}
        ordered = [sorted(map(int, part)) for part in reversed(components(edges))]
        self.members = ordered
        self.component = [0] * len(self.names)
        for i, part in enumerate(ordered):
            for rule in part:
                self.component[rule] = i
        self.loops = [len(p) > 1 or str(p[0]) in edges[str(p[0])] for p in ordered]
        self._begins: dict[int, frozenset[int]] = {}

    def _skipping(self, state: int) -> tuple[int, ...]:
        found = {state: None}
        todo = [state]
        while todo:
            for rule, target in self.calls[todo.pop()]:
                if self.nullable[rule] and target not in found:
                    found[target] = None
                    todo.append(target)
        return tuple(found)

    def begins(self, state: int) -> frozenset[int]:
        """The rules that may begin in `state`, at once or through others."""
        found = self._begins.get(state)
        if found is None:
            seen = {rule for rule, _ in self.calls[state]}
            todo = list(seen)
            while todo:
                for rule, _ in self.corner_calls[todo.pop()]:
                    if rule not in seen:
                        seen.add(rule)
                        todo.append(rule)
            found = self._begins[state] = frozenset(seen)
        return found

    @property
    def num_bytes(self) -> int:
        return sum(t.dfa.num_bytes for t in self.terminals) + 200 * len(self.final)


class _Builder:
    """One rule: first an automaton with empty moves over terminals and rules, then a deterministic, small one."""

    def __init__(self, networks: Networks, name: str, expr: Expr, line: int) -> None:
        self.networks = networks
        self.name, self.line = name, line
        self.empty: list[list[int]] = [[]]
        self.moves: list[list[tuple[Symbol, int]]] = [[]]
        self.end = self.add(expr, 0)

    def state(self) -> int:
        self.networks._work += 1
        if self.networks._work > MAX_STATES:
            raise grammar_error(
                f"rule {self.name!r}: the grammar has more than {MAX_STATES} places once repeats are written out; "
                "lower the repeat bounds",
                self.line,
            )
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1

    def add(self, expr: Expr, begin: int) -> int:
        """Wire `expr` to start at `begin`; returns the state where it ends."""
        if isinstance(expr, Term):
            return self.add_term(expr, begin)
        if isinstance(expr, Ref):
            end = self.state()
            self.moves[begin].append((("rule", self.networks.number[expr.name]), end))
            return end
        if isinstance(expr, Seq):
            for part in expr.parts:
                begin = self.add(part, begin)
            return begin
        if isinstance(expr, Or):
            end = self.state()
            for option in expr.options:
                self.empty[self.add(option, self.behind(begin))].append(end)
            return end
        return self.add_repeat(expr, begin)

    def behind(self, begin: int) -> int:
        after = self.state()
        self.empty[begin].append(after)
        return after

    def add_term(self, expr: Term, begin: int) -> int:
        try:
            number = self.networks.terminal(expr.regex, expr.line)
        except TooLarge as error:
            if expr.pieces is None:
                raise grammar_error(f"a terminal needs too large an automaton ({error}); lower its repeat bounds",
                                   expr.line or self.line) from None  # fmt: skip
            return self.add(expr.pieces, begin)
        end = self.state()
        self.moves[begin].append((("term", number), end))
        if number in self.networks._nullable_terms:
            self.empty[begin].append(end)
        return end

    def add_repeat(self, expr: Rep, begin: int) -> int:
        for _ in range(expr.low):
            begin = self.add(expr.item, begin)
        end = self.state()
        begin = self.behind(begin)
        if expr.high is None:
            self.empty[self.add(expr.item, self.behind(begin))].append(begin)
        else:
            for _ in range(expr.high - expr.low):
                self.empty[begin].append(end)
                begin = self.add(expr.item, self.behind(begin))
        self.empty[begin].append(end)
        return end

    def missing(self, empty_terms: set[int] | None, rules: set[int]) -> set[int] | None:
        """The rules of which one more would have to be usable to reach the end; None if it is reached.

        Usable are `rules`, and all terminals but `empty_terms` (None: no terminal is).
        """
        seen, todo, lacking = {0}, [0], set()
        while todo:
            at = todo.pop()
            targets = list(self.empty[at])
            for (kind, number), target in self.moves[at]:
                if kind == "rule":
                    if number in rules:
                        targets.append(target)
                    else:
                        lacking.add(number)
                elif empty_terms is not None and number not in empty_terms:
                    targets.append(target)
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return None if self.end in seen else lacking

    def build(self, productive: set[int]) -> int:
        """Adds the deterministic automaton to the networks; returns its first state."""
        rows, finals = self._determinised(productive)
        place = _merged(rows, finals)
        networks = self.networks
        numbers: dict[int, int] = {}
        for block in place:
            if block not in numbers:
                numbers[block] = -1
        first: dict[int, int] = {}
        for state, block in enumerate(place):
            first.setdefault(block, state)
        for block, state in first.items():
            if not rows[state] and block != place[0]:
                numbers[block] = BARE
                continue
            numbers[block] = len(networks.final)
            networks.terms.append([])
            networks.calls.append([])
            networks.final.append(finals[state])
        for block, state in first.items():
            if numbers[block] == BARE:
                continue
            for (kind, number), target in rows[state].items():
                moves = networks.terms if kind == "term" else networks.calls
                moves[numbers[block]].append((number, numbers[place[target]]))
        return numbers[place[0]]

    def _determinised(self, productive: set[int]) -> tuple[list[dict[Symbol, int]], list[bool]]:
        """Rows of moves, and whether each is final; states that lead to no end are left out."""
        usable = self._usable(productive)
        start = self._closed([0], usable)
        known = {start: 0}
        rows: list[dict[Symbol, int]] = []
        todo = [start]
        for states in todo:
            grouped: dict[Symbol, list[int]] = {}
            for state in sorted(states):
                for symbol, target in self.moves[state]:
                    if target in usable and self._can(symbol, productive):
                        grouped.setdefault(symbol, []).append(target)
            row: dict[Symbol, int] = {}
            for symbol, targets in grouped.items():
                after = self._closed(targets, usable)
                if after not in known:
                    known[after] = len(known)
                    todo.append(after)
                    self.networks._work += len(after)
                    if self.networks._work > MAX_WORK:
                        raise grammar_error(
                            f"rule {self.name!r} is too ambiguous; write its alternatives apart", self.line
                        )
                row[symbol] = known[after]
            rows.append(row)
        return rows, [self.end in states for states in todo]

    def _can(self, symbol: Symbol, productive: set[int]) -> bool:
        kind, number = symbol
        return number in productive if kind == "rule" else number not in self.networks._empty

    def _usable(self, productive: set[int]) -> set[int]:
        """States from which the end can be reached."""
        before: dict[int, list[int]] = {}
        for state in range(len(self.empty)):
            for target in self.empty[state]:
                before.setdefault(target, []).append(state)
            for symbol, target in self.moves[state]:
                if self._can(symbol, productive):
                    before.setdefault(target, []).append(state)
        found, todo = {self.end}, [self.end]
        while todo:
            for state in before.get(todo.pop(), ()):
                if state not in found:
                    found.add(state)
                    todo.append(state)
        return found

    def _closed(self, states: Iterable[int], usable: set[int]) -> frozenset[int]:
        found = {s for s in states if s in usable}
        todo = list(found)
        while todo:
            for target in self.empty[todo.pop()]:
                if target in usable and target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)


def _merged(rows: list[dict[Symbol, int]], finals: list[bool]) -> list[int]:
    """The block of each state, equal for states with equal futures (Moore 1956).

    It begins with how near and how far the end is, which tells the states of a long repeat apart at once.
    """
    known: dict[object, int] = {}
    place = [known.setdefault(entry, len(known)) for entry in zip(finals, *_distances(rows, finals), strict=True)]
    count = len(known)
    while True:
        seen: dict[object, int] = {}
        place = [
            seen.setdefault((place[i], tuple(sorted((symbol, place[t]) for symbol, t in row.items()))), len(seen))
            for i, row in enumerate(rows)
        ]
        if len(seen) == count:
            return place
        count = len(seen)


def _distances(rows: list[dict[Symbol, int]], finals: list[bool]) -> tuple[list[int], list[int]]:
    """For each state the fewest and the most moves to a final one; -1 for the most where there is no bound."""
    before: list[list[int]] = [[] for _ in rows]
    left = [len(row) for row in rows]
    for state, row in enumerate(rows):
        for target in row.values():
            before[target].append(state)
    shortest = [0 if final else -1 for final in finals]
    todo = [state for state, final in enumerate(finals) if final]
    for state in todo:
        for source in before[state]:
            if shortest[source] < 0:
                shortest[source] = shortest[state] + 1
                todo.append(source)
    heights = [0] * len(rows)
    longest = [-1] * len(rows)
    todo = [state for state, count in enumerate(left) if not count]
    for state in todo:
        longest[state] = heights[state]
        for source in before[state]:
            heights[source] = max(heights[source], heights[state] + 1)
            left[source] -= 1
            if not left[source]:
                todo.append(source)
    return shortest, longest
