"""The automaton of a grammar: every way in which the bytes so far can be read, with equal ways made once.

*Naive:* a set of stacks of open rules. *Wrong because* an ambiguous or left-recursive grammar has endlessly many. *So*
the stacks are shared (Tomita 1985): a **context** stands for all ways in which a rule, begun at one place, can go on
once it has ended: a set of (state, context). Contexts have their content as their name, so that what was read does not
matter once it makes no difference: after `[1, 2` and after `[3` the automaton is in the same state. A call in last
position adds nothing to its context, so right recursion stays where it is; left recursion makes a context that leads to
itself.

A state is `number << 32 | leaf`. Where one terminal is being read, and no byte could both go on in it and come after
it, the number stands for terminal and context, and the leaf is the state of the terminal's automaton; elsewhere the
number stands for a set of items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ....core.errors import ConstraintError
from ..native_walk import Description, Leaf, Moves
from ..numbered import LEAF_BITS, SHIFT, NumberedStates
from .networks import BARE, END, Networks

MAX_POSITIONS = 500  # ways to read a text that are open at one place
MAX_ITEMS = 20_000  # terminals that are open at one place
MAX_COMPARED = 200  # pairs of contexts that are looked at to compare two

Position = tuple[int, int]  # a state of the networks, and its context
Item = tuple[int, int, int, int]  # terminal (-1: none), state behind it, context, state of the terminal's automaton
Frame = tuple[int, int, int] | frozenset[Item]  # a terminal, the state behind it and the context; or a set
_AT = -1


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What can come at some positions: items by byte, and whether the text may end."""

    moves: Mapping[int, frozenset[Item]]
    accepting: bool


class GrammarMachine(NumberedStates[Frame]):
    """Implements `Automaton`. Grows as texts are read; not bounded by itself (`num_bytes` tells)."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks
        self._returns: list[frozenset[Position]] = [frozenset({(END, 0)})]  # by context
        self._by_content: dict[frozenset[Position], int] = {self._returns[0]: 0}
        self._by_parts: dict[tuple[int, tuple[frozenset[Position], ...]], list[int]] = {}
        self._group: dict[
            int, tuple[int, list[int]]
        ] = {}  # contexts that lead to each other: their rules, and all of them
        self._covered: dict[tuple[int, int], bool] = {}
        self._predicted: dict[frozenset[Position], dict[int, int]] = {}
        self._ahead: dict[frozenset[Position], _Ahead] = {}
        self._plain: dict[tuple[int, int, int], bool] = {}
        self._num_items = 0
        self.start = self._at(self._place(networks.start, 0))

    def fresh(self) -> GrammarMachine:
        """A machine for the same grammar that has read nothing yet."""
        return GrammarMachine(self.networks)

    @property
    def num_states(self) -> int:
        """Sets of items and contexts built so far; states within terminals are not counted one by one."""
        return len(self._frames)

    @property
    def num_bytes(self) -> int:
        return (
            300 * len(self._frames)
            + 100 * self._num_moves
            + 120 * (self._num_items + len(self._covered))
            + 200 * len(self._returns)
        )

    # contexts

    def _place(self, state: int, context: int) -> frozenset[Position]:
        """Where one is in `state`: there, or behind the rule if it is at its end."""
        return self._returns[context] if state == BARE else frozenset(((state, context),))

    def _begin(self, callers: frozenset[Position]) -> dict[int, int]:
        """The context of each rule that may begin at `callers`."""
        found = self._predicted.get(callers)
        if found is not None:
            return found
        networks = self.networks
        rules = {rule for state, _ in callers for rule in networks.begins(state)}
        behind: dict[int, set[Position]] = {rule: set() for rule in rules}
        for state, context in callers:
            for rule, target in networks.calls[state]:
                behind[rule] |= self._place(target, context)
        contexts: dict[int, int] = {}
        for number in sorted({networks.component[rule] for rule in rules}):
            members = networks.members[number]
            contents = tuple(self._pruned(frozenset(behind[rule])) for rule in members)
            if networks.loops[number]:
                made = self._by_parts.get((number, contents)) or self._make_loop(number, contents)
            else:
                made = [self._context(contents[0])]
            contexts.update(zip(members, made, strict=True))
            for rule in members:
                for callee, target in networks.corner_calls[rule]:
                    if networks.component[callee] != number:
                        behind[callee] |= self._place(target, contexts[rule])
        self._num_items += len(callers) + len(contexts)
        self._predicted[callers] = contexts
        return contexts

    def _context(self, content: frozenset[Position]) -> int:
        found = self._by_content.get(content)
        if found is None:
            found = self._by_content[content] = len(self._returns)
            self._returns.append(content)
            self._num_items += len(content)
        return found

    def _make_loop(self, number: int, contents: tuple[frozenset[Position], ...]) -> list[int]:
        """The contexts of rules that can begin with one another: they lead to each other."""
        members = self.networks.members[number]
        # A context that these contents lead to may already be what is to be made: it returns to the contents and to
        # itself in the same way. Both are then the least such language. This keeps `e: e "+" e` in one state.
        for _, context in frozenset().union(*contents):
            if context in self._group and self._group[context][0] == number:
                known = self._group[context][1]
                if self._loop_returns(members, contents, known) == [self._returns[c] for c in known]:
                    self._by_parts[number, contents] = known
                    return known
        made = list(range(len(self._returns), len(self._returns) + len(members)))
        self._returns.extend(self._loop_returns(members, contents, made))
        for context in made:
            self._returns[context] = self._pruned(self._returns[context])
        self._num_items += sum(len(self._returns[c]) for c in made)
        self._by_parts[number, contents] = made
        self._group.update(dict.fromkeys(made, (number, made)))
        return made

    def _loop_returns(
        self, members: list[int], contents: tuple[frozenset[Position], ...], contexts: list[int]
    ) -> list[frozenset[Position]]:
        """What rules with these contexts return to, where `contents` stand behind them."""
        networks = self.networks
        context_of = dict(zip(members, contexts, strict=True))
        returns = [set(content) for content in contents]
        passed: list[tuple[int, int]] = []  # what one rule returns to, another does too: it ends the first
        for i, rule in enumerate(members):
            for callee, target in networks.corner_calls[rule]:
                if callee not in context_of:
                    continue
                if target == BARE:
                    passed.append((i, members.index(callee)))
                else:
                    returns[members.index(callee)].add((target, context_of[rule]))
        changed = True
        while changed:
            changed = False
            for source, target in passed:
                if not returns[source] <= returns[target]:
                    returns[target] |= returns[source]
                    changed = True
        return list(map(frozenset, returns))

    # positions that others make superfluous

    def _pruned(self, positions: frozenset[Position]) -> frozenset[Position]:
        """The positions without those from which nothing can come that cannot also come from another."""
        if len(positions) < 2 or len({state for state, _ in positions}) == len(positions):
            return positions
        by_state: dict[int, list[int]] = {}
        for state, context in sorted(positions):
            by_state.setdefault(state, []).append(context)
        kept: set[Position] = set()
        for state, contexts in by_state.items():
            left = list(contexts)
            for context in contexts:
                if any(other != context and self._covers(other, context) for other in left):
                    left.remove(context)
            kept.update((state, context) for context in left)
        _check_items(len(kept), MAX_POSITIONS)
        return frozenset(kept)

    def _covers(self, larger: int, smaller: int) -> bool:
        """Whether what can come after `smaller` is known to be able to come after `larger` too.

        Each position that the one returns to must be covered by one of the other; contexts that lead to themselves are
        compared on the assumption that they are covered (a simulation, which the assumption alone cannot break).
        """
        known = self._covered.get((larger, smaller))
        if known is not None:
            return known
        assumed: set[tuple[int, int]] = set()
        todo = [(larger, smaller)]
        result = True
        while todo and result:
            pair = todo.pop()
            if pair in assumed or pair[0] == pair[1]:
                continue
            assumed.add(pair)
            options: dict[int, list[int]] = {}
            for state, context in self._returns[pair[0]]:
                options.setdefault(state, []).append(context)
            for state, context in self._returns[pair[1]]:
                choices = options.get(state, [])
                if context in choices:
                    continue
                if not choices or len(assumed) > MAX_COMPARED:
                    result = False
                    break
                todo.append((max(choices), context))  # the latest is the likeliest; another is not tried
        if result:
            self._covered.update(dict.fromkeys(assumed, True))
        else:
            self._covered[larger, smaller] = False
        return result

    # what comes next

    def _look(self, positions: frozenset[Position]) -> _Ahead:
        found = self._ahead.get(positions)
        if found is None:
            if len(self._ahead) > 20_000:
                self._ahead.clear()
            found = self._ahead[positions] = self._look_from(positions)
        return found

    def _look_from(self, positions: frozenset[Position]) -> _Ahead:
        networks = self.networks
        seen: set[Position] = set(positions)
        todo = list(positions)
        while todo:
            state, context = todo.pop()
            more: list[Position] = [*self._returns[context]] if networks.final[state] else []
            for rule, target in networks.calls[state]:
                if networks.nullable[rule]:
                    more.extend(self._place(target, context))
            for position in more:
                if position not in seen:
                    seen.add(position)
                    todo.append(position)
            _check_items(len(seen), MAX_POSITIONS)
        seen = set(self._pruned(frozenset(seen)))
        starts = {(term, target, context) for state, context in seen for term, target in networks.terms[state]}
        callers = frozenset(position for position in seen if networks.calls[position[0]])
        if callers:
            for rule, context in self._begin(callers).items():
                for state in networks.corners[rule]:
                    starts.update((term, target, context) for term, target in networks.terms[state])
        moves: dict[int, set[Item]] = {}
        for term, target, context in starts:
            settled: dict[int, list[Item]] = {}
            for byte, leaf in networks.terminals[term].start_moves.items():
                items = settled.get(leaf)
                if items is None:
                    items = settled[leaf] = self._settled(term, target, context, leaf)
                moves.setdefault(byte, set()).update(items)
        shared: dict[frozenset[Item], frozenset[Item]] = {}
        frozen = {byte: frozenset(items) for byte, items in moves.items()}
        frozen = {byte: shared.setdefault(items, items) for byte, items in frozen.items()}
        self._num_items += len(positions) + sum(map(len, shared)) + len(frozen)
        return _Ahead(frozen, any(state == END for state, _ in seen))

    def _settled(self, term: int, state: int, context: int, leaf: int) -> list[Item]:
        """The items of a terminal in the state `leaf`; those behind it if nothing more can come in it."""
        if not self.networks.terminals[term].dfa.moves(leaf):
            return [(_AT, q, c, 0) for q, c in self._place(state, context)]
        if state == BARE and len(self._returns[context]) == 1:
            ((state, context),) = self._returns[context]
        return [(term, state, context, leaf)]

    # states

    def _at(self, positions: Iterable[Position]) -> int:
        """The state before anything is read at some positions."""
        return self._state(frozenset((_AT, state, context, 0) for state, context in positions))

    def _state(self, items: frozenset[Item]) -> int:
        if len(items) == 1:
            ((term, state, context, leaf),) = items
            if term != _AT and self._is_plain(term, state, context):
                return self._number((term, state, context)) << SHIFT | leaf
        return self._number(items) << SHIFT

    def _number(self, frame: Frame) -> int:
        before = len(self._frames)
        found = super()._number(frame)
        if len(self._frames) > before:
            self._num_items += len(frame)
        return found

    def _is_plain(self, term: int, state: int, context: int) -> bool:
        """Whether no byte can both go on in the terminal and come behind it."""
        key = (term, state, context)
        found = self._plain.get(key)
        if found is None:
            after = self.networks.terminals[term].after_end
            found = not after or after.isdisjoint(self._look(self._place(state, context)).moves)
            self._plain[key] = found
        return found

    # the automaton

    def _compute_moves(self, state: int) -> dict[int, int]:
        frame, leaf = self._frames[state >> SHIFT], state & LEAF_BITS
        if isinstance(frame, tuple):
            return self._plain_moves(state, frame, leaf)
        moves: dict[int, set[Item]] = {}
        ends: set[Position] = set()
        for term, target, context, inner in frame:
            if term == _AT:
                ends.add((target, context))
                continue
            dfa = self.networks.terminals[term].dfa
            for byte, after in dfa.moves(inner).items():
                moves.setdefault(byte, set()).update(self._settled(term, target, context, after))
            if dfa.accepting(inner):
                ends |= self._place(target, context)
        ahead = self._look(frozenset(ends)).moves if ends else {}
        out: dict[int, int] = {}
        known: dict[frozenset[Item], int] = {}
        for byte in moves.keys() | ahead.keys():
            items = ahead.get(byte, frozenset()) | moves[byte] if byte in moves else ahead[byte]
            if items not in known:
                _check_items(len(items), MAX_ITEMS)
                known[items] = self._state(frozenset(items))
            out[byte] = known[items]
        return out

    def _plain_moves(self, state: int, frame: tuple[int, int, int], leaf: int) -> dict[int, int]:
        term, target, context = frame
        dfa, base = self.networks.terminals[term].dfa, state - leaf
        behind = self._place(target, context)
        moves: dict[int, int] = {}
        for byte, after in dfa.moves(leaf).items():
            moves[byte] = base | after if dfa.moves(after) else self._at(behind)
        if dfa.accepting(leaf):
            moves.update((byte, self._state(items)) for byte, items in self._look(behind).moves.items())
        return moves

    def accepting(self, state: int) -> bool:
        frame, leaf = self._frames[state >> SHIFT], state & LEAF_BITS
        ends: set[Position] = set()
        for term, target, context, inner in ((*frame, leaf),) if isinstance(frame, tuple) else frame:
            if term == _AT:
                ends.add((target, context))
            elif self.networks.terminals[term].dfa.accepting(inner):
                ends |= self._place(target, context)
        return bool(ends) and self._look(frozenset(ends)).accepting

    # for the compiled walk

    def describe(self, context: int) -> Description:
        frame = self._frames[context]
        if isinstance(frame, tuple):
            return Leaf(self.networks.terminals[frame[0]].dfa, (0, 1), is_string=False)
        return Moves(self.moves(context << SHIFT))

    def leave(self, context: int, outcome: int) -> int:
        frame = self._frames[context]
        assert isinstance(frame, tuple)
        return self._at(self._place(frame[1], frame[2]))


def _check_items(count: int, limit: int) -> None:
    if count > limit:
        raise ConstraintError(
            f"the grammar is too ambiguous: more than {limit} ways to read the text are open at one place; write "
            "rules that can be read in one way, such as `list: item list?` instead of `list: list list | item`",
            field="ebnf",
        )
