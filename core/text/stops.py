r"""Stop strings and stop regexes over a text that arrives in pieces.

A stop is the occurrence that ends first; of those that end at the same place, the one that starts first (so "\n\n"
wins over "\n" only where both end together); a stop string is named before a regex with the same span. It does not
matter how the text is cut into pieces. For a regex this means the shortest match: `\d+` stops at the first digit,
`\d+\n` at the newline.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import RequestError
from .nfa import Atom, CharTest, LiveStates, Unsupported, build_nfa


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Characters [start, end) of the text are the stop; `stop` is the stop string, or the regex's source."""

    start: int
    end: int
    stop: str


class _Strings:
    """All stop strings at once (Aho and Corasick, CACM 1975). A node is a prefix of some of them."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.found: list[str | None] = [None]  # the longest stop that ends here
        self._fail = [0]
        for string in strings:
            node = 0
            for char in string:
                if char not in self.next[node]:
                    self.next[node][char] = len(self.next)
                    self.next.append({})
                    self.depth.append(self.depth[node] + 1)
                    self.found.append(None)
                    self._fail.append(0)
                node = self.next[node][char]
            self.found[node] = string
        queue = deque(self.next[0].values())
        while queue:
            node = queue.popleft()
            for char, child in self.next[node].items():
                self._fail[child] = self.step(self._fail[node], char)
                self.found[child] = self.found[child] or self.found[self._fail[child]]
                queue.append(child)

    def step(self, node: int, char: str) -> int:
        while node and char not in self.next[node]:
            node = self._fail[node]
        return self.next[node].get(char, 0)


def _python_test(atom: Atom) -> CharTest:
    matches = re.compile(atom.source, atom.flags & ~re.VERBOSE).fullmatch
    return lambda char: matches(char) is not None


class _Regex:
    """One stop regex: for every live state the first place from which it can be reached."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.live = LiveStates(build_nfa(source), _python_test)

    def close(
        self, starts: dict[int, int], before: str | None, after: str | None, if_unknown: bool | None = None
    ) -> dict[int, int]:
        """The empty moves of `LiveStates.closure`, first places kept."""
        closed: dict[int, int] = {}
        for state, start in sorted(starts.items(), key=lambda item: item[1]):
            todo = [state]
            while todo:
                state = todo.pop()
                if state in closed:
                    continue
                closed[state] = start
                todo += [
                    target
                    for assertion, target in self.live.nfa.epsilon[state]
                    if assertion is None or self.live.holds(assertion, before, after, if_unknown)
                ]
        return closed

    def advance(self, closed: dict[int, int], char: str) -> dict[int, int]:
        allowed = self.live.allows(char)
        starts: dict[int, int] = {}
        for state, start in closed.items():
            for atom, target in self.live.nfa.consume[state]:
                if allowed >> atom & 1 and start < starts.get(target, start + 1):
                    starts[target] = start
        return starts


class StopSet:
    """Stop strings and regexes, compiled. Immutable and shared; `matcher()` starts one search.

    Raises RequestError for a regex that is invalid, could match the empty text, or uses what a search in pieces cannot
    decide (look-behind, look-ahead over several characters, back-references, the end of the text).
    """

    def __init__(self, stops: Sequence[str] = (), regexes: Sequence[str] = ()) -> None:
        self.strings = _Strings([stop for stop in stops if stop])
        self.regexes = [_compile(source, i) for i, source in enumerate(regexes)]
        self.is_empty = not regexes and not any(stops)

    def matcher(self) -> StopMatcher:
        return StopMatcher(self)


@lru_cache(maxsize=256)
def stop_set(stops: tuple[str, ...], regexes: tuple[str, ...]) -> StopSet:
    """A StopSet, made once per process."""
    return StopSet(stops, regexes)


def _compile(source: str, number: int) -> _Regex:
    field = f"stop_regex[{number}]"
    try:
        if re.compile(source).fullmatch(""):
            raise RequestError(f"{source!r} matches the empty text: every output would stop at once", field=field)
        compiled = _Regex(source)
    except re.error as error:
        raise RequestError(f"{source!r} is not a valid regex: {error}", field=field) from None
    except Unsupported as error:
        raise RequestError(f"{source!r} cannot be searched as text arrives: {error}", field=field) from None
    kinds = {a.kind for moves in compiled.live.nfa.epsilon for a, _ in moves if a is not None}
    if kinds & {"end", "end-or-newline"}:
        raise RequestError(
            f"{source!r} asks for the end of the text, which is not known while it is written; use (?m:$) for the end "
            "of a line",
            field=field,
        )
    return compiled


class StopMatcher:
    """One search. Feed it the text in order; `match` is set once a stop has been found, and then stays."""

    def __init__(self, stops: StopSet) -> None:
        self._stops = stops
        self._node = 0
        self._starts: list[dict[int, int]] = [{} for _ in stops.regexes]
        self._before: str | None = None
        self._waiting: StopMatch | None = None  # found at the current end, but a regex may yet win with what follows
        self._held = ""
        self.text_len = 0
        self.match: StopMatch | None = None

    @property
    def held(self) -> str:
        """What was fed but not given out: the beginning of a possible stop, or the stop that was found."""
        return self._held

    def feed(self, text: str) -> str:
        """The text that no stop can take back any more; what precedes the stop, once there is one."""
        if self.match is not None:
            return ""
        self._held += text
        if self._stops.is_empty:
            self.text_len += len(text)
            return self._give(len(self._held))
        given_from = self.text_len + len(text) - len(self._held)
        for char in text:
            self._step(char)
            if self.match is not None:
                self._held = self._held[: self.match.end - given_from]
                return self._give(self.match.start - given_from)
        first = self.text_len - self._stops.strings.depth[self._node]
        for starts in self._starts:
            first = min([first, *starts.values()])
        if self._waiting is not None:
            first = min(first, self._waiting.start)
        return self._give(first - given_from)

    def finish(self) -> str:
        """The text has ended: what was held, unless a stop needed to see the end to be one."""
        if self.match is None:
            self._decide(None)
        if self.match is not None:
            given_from = self.text_len - len(self._held)
            return self._give(max(self.match.start - given_from, 0)) if self._held else ""
        return self._give(len(self._held))

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _step(self, char: str) -> None:
        self._decide(char)
        if self.match is not None:
            return
        strings = self._stops.strings
        self._node = strings.step(self._node, char)
        for number, regex in enumerate(self._stops.regexes):
            starts = self._starts[number]
            starts.setdefault(regex.live.nfa.start, self.text_len)
            closed = regex.close(starts, self._before, char)
            self._starts[number] = regex.advance(closed, char)
        self.text_len += 1
        self._before = char
        found = strings.found[self._node]
        best = StopMatch(self.text_len - len(found), self.text_len, found) if found else None
        may_change = False
        for number, regex in enumerate(self._stops.regexes):
            accept, starts = regex.live.nfa.accept, self._starts[number]
            sure = regex.close(starts, char, None, if_unknown=False).get(accept)
            best = self._better(best, sure, regex)
            possible = regex.close(starts, char, None, if_unknown=True).get(accept)
            may_change |= possible is not None and (best is None or possible < best.start)
        if may_change:
            self._waiting = best
        else:
            self.match = best

    def _decide(self, following: str | None) -> None:
        """Settle matches that end here and wanted to see the next character (None: there is none)."""
        best, self._waiting = self._waiting, None
        for number, regex in enumerate(self._stops.regexes):
            if self._starts[number]:
                closed = regex.close(self._starts[number], self._before, following)
                best = self._better(best, closed.get(regex.live.nfa.accept), regex)
        self.match = best

    def _better(self, best: StopMatch | None, start: int | None, regex: _Regex) -> StopMatch | None:
        if start is None or start >= self.text_len or (best is not None and best.start <= start):
            return best
        return StopMatch(start, self.text_len, regex.source)
