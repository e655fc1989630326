"""Automata by constraint, whatever the vocabulary: remembered, kept on disk, made in place or in another process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...core.constraint import Constraint
from ...core.errors import ConstraintError
from .bounds import INLINE_WORK, work_of
from .effort import TakesLong, at_most
from .persist import FORMAT, NotSaved, automaton_from_bytes, automaton_to_bytes
from .store import Store, cache_folder
from .token_index import Automaton
from .worker import WorkerUnavailable, compile_apart

KEPT_SECONDS = 0.02  # what takes longer to build is kept on disk: loading takes a few milliseconds
MAX_REMEMBERED_BYTES = 64 * 2**20
QUICK_STEPS = 4_000  # under 10 ms: while a caller waits
INLINE_STEPS = 200_000  # about 0.4 s: starting a process takes as long
_MAX_SLOW = 10_000


@dataclass(frozen=True, slots=True)
class AutomataCounters:
    """`built`: made from a source, here or in another process; `loaded`: read from disk; `remembered`: still there."""

    built: int = 0
    loaded: int = 0
    remembered: int = 0


class Automata:
    """Thread-safe. What is returned has read nothing yet, and is its caller's alone unless it does not grow."""

    def __init__(self, build: Callable[[Constraint], Automaton], max_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        self.build = build
        self.max_bytes = max_bytes
        self._recent: OrderedDict[Constraint, tuple[Automaton, int]] = OrderedDict()
        self._num_bytes = 0
        self._stores: dict[Path, Store] = {}
        self._slow: set[int] = set()  # hashes of constraints that took too many steps
        self._lock = threading.Lock()
        self._built = self._loaded = self._remembered = 0

    def get(self, constraint: Constraint) -> Automaton:
        """The automaton of a constraint. Raises ConstraintError."""
        with self._lock:
            recent = self._recent.get(constraint)
            if recent is not None:
                self._recent.move_to_end(constraint)
                self._remembered += 1
                return recent[0].fresh()
        found = self._load(constraint)
        if found is None:
            found = self._make(constraint)
        self._remember(constraint, found)
        return found.fresh()

    def try_quickly(self, constraint: Constraint) -> bool:
        """Make the automaton here if few steps do. False: `get` would take a while. An error is left to `get`.

        What takes long without the interpreter's lock disturbs no other thread: `get` tries that in place, too.
        """
        with self._lock:
            if constraint in self._recent or hash(constraint) in self._slow:
                return constraint in self._recent
        try:
            with at_most(QUICK_STEPS):
                made = self.build(constraint)
        except TakesLong as error:
            if error.locked:
                self.leave_to_others(constraint)
            return False
        except ConstraintError:
            return True
        with self._lock:
            self._built += 1
        self._remember(constraint, made)
        return True

    def leave_to_others(self, constraint: Constraint) -> None:
        """Have `get` make the automaton in another process."""
        with self._lock:
            if len(self._slow) >= _MAX_SLOW:
                self._slow.clear()
            self._slow.add(hash(constraint))

    def _remember(self, constraint: Constraint, made: Automaton) -> None:
        with self._lock:
            if constraint not in self._recent:
                self._recent[constraint] = made, 2 * len(constraint.source) + made.num_bytes
                self._num_bytes += self._recent[constraint][1]
            while self._num_bytes > self.max_bytes and self._recent:
                self._num_bytes -= self._recent.popitem(last=False)[1][1]

    def _load(self, constraint: Constraint) -> Automaton | None:
        store = self._store()
        data = None if store is None else store.get(_name(constraint))
        if store is None or data is None:
            return None
        try:
            found = automaton_from_bytes(data)
        except NotSaved:  # of another version, under the same format: made anew
            store.drop(_name(constraint))
            return None
        with self._lock:
            self._loaded += 1
        return found

    def _make(self, constraint: Constraint) -> Automaton:
        started = time.perf_counter()
        made = data = None
        if work_of(constraint) <= INLINE_WORK and hash(constraint) not in self._slow:
            try:
                with at_most(INLINE_STEPS):
                    made = self.build(constraint)
            except TakesLong:
                made = None
        if made is None and constraint.kind != "ebnf":
            try:
                data = compile_apart(constraint)
                made = automaton_from_bytes(data)
            except WorkerUnavailable:  # no other process can be started here
                made = None
        if made is None:
            made = self.build(constraint)
        store = self._store()
        if store is not None and time.perf_counter() - started > KEPT_SECONDS:
            try:
                store.put(_name(constraint), data or automaton_to_bytes(made))
            except NotSaved:
                store = None  # a kind of automaton that is not kept
        with self._lock:
            self._built += 1
        return made

    def _store(self) -> Store | None:
        folder = cache_folder()
        if folder is None:
            return None
        with self._lock:
            return self._stores.setdefault(folder, Store(folder / "constraints"))

    def forget(self) -> None:
        """Drop what is remembered; what is on disk stays."""
        with self._lock:
            self._recent.clear()
            self._num_bytes = 0

    @property
    def counters(self) -> AutomataCounters:
        with self._lock:
            return AutomataCounters(self._built, self._loaded, self._remembered)


def _name(constraint: Constraint) -> str:
    return "\0".join((str(FORMAT), constraint.kind, constraint.source, *(f"{k}={v}" for k, v in constraint.options)))
