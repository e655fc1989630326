"""The door of the room: check a constraint, compile it for a vocabulary, keep what was compiled."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .automata import Automata, AutomataCounters
from .bounds import QUICK_WORK, work_of
from .char_algebra import from_texts
from .char_dfa import CharDfa, from_regex
from .ebnf.machine import GrammarMachine
from .ebnf.reader import networks_of
from .effort import short_turns
from .engines import KINDS, OWN, ConstraintEngine, constraint_engine
from .interface import CompiledConstraint
from .matcher import AutomatonConstraint
from .nfa import TooLarge
from .options import chosen_options
from .regex_syntax import RegexError, parse_regex
from .schema.document import Document
from .schema.lower import Lowering, SchemaOptions
from .schema.machine import SchemaMachine
from .schema.style import STYLES
from .schema.universe import Universe
from .sequence import SequenceMachine, parts_of
from .spelling import ByteDfa
from .token_index import Automaton, Encode

MAX_SOURCE_CHARS = 4 * 2**20
SCHEMA_OPTIONS = {"whitespace": tuple(STYLES), "format": ("assert", "annotate"), "key_order": ("schema", "any")}
DEFAULT_CACHE_BYTES = 512 * 2**20
_MEASURED_IN_TURN = 16


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """Exact totals of a cache: `compiled` misses, `hits`, `evicted` entries, and the bytes now held."""

    compiled: int = 0
    hits: int = 0
    evicted: int = 0
    num_bytes: int = 0


class ConstraintCache:
    """Compiled constraints by (constraint, vocabulary, backend), least recently used out first. Thread-safe.

    What two threads ask for at once is compiled once. An error is not kept. The bound is on what the entries take:
    their masks grow in use, so those that were asked for are measured again at the next look-up that compiles, and a
    few of the others in turn.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[object, ...], CompiledConstraint] = OrderedDict()
        self._sizes: OrderedDict[tuple[object, ...], int] = OrderedDict()  # as last measured, longest ago first
        self._asked: set[tuple[object, ...]] = set()  # since they were measured
        self._num_bytes = 0
        self._building: dict[tuple[object, ...], threading.Lock] = {}
        self._lock = threading.Lock()
        self._compiled = self._hits = self._evicted = 0

    def get(
        self, constraint: Constraint, vocabulary: Vocabulary, *, encode: Encode | None = None, backend: str = "auto"
    ) -> CompiledConstraint:
        """The compiled constraint, from the cache if it is there.

        Raises ConstraintError, and ConfigError for an unknown backend.
        """
        engine = constraint_engine(backend)
        if constraint.kind not in engine.kinds:
            raise ConstraintError(f"the engine {engine.name!r} does not serve it", field=constraint.kind)
        key = (constraint, vocabulary.hash, encode is None, engine.name)
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        try:
            with building:
                with self._lock:
                    found = self._entries.get(key)
                    if found is not None:
                        self._entries.move_to_end(key)
                        self._asked.add(key)
                        self._hits += 1
                        return found
                with short_turns():
                    made = engine.compile(constraint, vocabulary, encode)
                with self._lock:
                    self._compiled += 1
                    self._entries[key] = made
                    self._measure(key)
                    self._shrink()
                    self._asked.add(key)  # its masks are yet to come
                return made
        finally:
            with self._lock:
                self._building.pop(key, None)

    def has(self, constraint: Constraint, vocabulary: Vocabulary, *, encode: Encode | None, backend: str) -> bool:
        """Whether `get` would find it. Raises ConfigError for an unknown backend."""
        key = (constraint, vocabulary.hash, encode is None, constraint_engine(backend).name)
        with self._lock:
            return key in self._entries

    def _measure(self, key: tuple[object, ...]) -> None:
        size = self._entries[key].stats.num_bytes
        self._num_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self._sizes.move_to_end(key)

    def _shrink(self) -> None:
        for key in [*(k for k in self._asked if k in self._entries), *islice(self._sizes, _MEASURED_IN_TURN)]:
            self._measure(key)
        self._asked.clear()
        while self._num_bytes > self.max_bytes and len(self._entries) > 1:
            key = self._entries.popitem(last=False)[0]
            self._num_bytes -= self._sizes.pop(key)
            self._evicted += 1

    @property
    def counters(self) -> CacheCounters:
        with self._lock:
            return CacheCounters(
                self._compiled, self._hits, self._evicted, sum(e.stats.num_bytes for e in self._entries.values())
            )

    def clear(self) -> None:
        """Forget all entries; the counters go on."""
        with self._lock:
            for kept in (self._entries, self._sizes, self._asked):
                kept.clear()
            self._num_bytes = 0


_cache = ConstraintCache()


def compile_constraint(
    constraint: Constraint, vocabulary: Vocabulary, *, encode: Encode | None = None, backend: str = "auto"
) -> CompiledConstraint:
    """Compile `constraint` for `vocabulary`, or take it from this process's cache.

    `encode` tokenises a text as a continuation (`Tokenizer.encode`); without it nothing is forced. Raises
    ConstraintError for a constraint that is invalid, unsupported, unsatisfiable or too large.
    """
    return _cache.get(constraint, vocabulary, encode=encode, backend=backend)


def is_quick(
    constraint: Constraint, vocabulary: Vocabulary, *, encode: Encode | None = None, backend: str = "auto"
) -> bool:
    """Whether `compile_constraint` is quick: it is done already, or a bound on the work is small.

    The bound is tried: where it is small, the automaton is made here, in a limited number of steps.
    """
    if _cache.has(constraint, vocabulary, encode=encode, backend=backend):
        return True
    if constraint_engine(backend).compile is not compile_automaton:
        return work_of(constraint, QUICK_WORK) <= QUICK_WORK
    if work_of(constraint, QUICK_WORK) > QUICK_WORK:
        automata.leave_to_others(constraint)
        return False
    with short_turns():
        return automata.try_quickly(constraint)


def compile_automaton(constraint: Constraint, vocabulary: Vocabulary, encode: Encode | None) -> AutomatonConstraint:
    """The compile function of our own engine, the one that "auto" takes."""
    started = time.perf_counter()
    return AutomatonConstraint(constraint, vocabulary, automata.get(constraint), encode, started)


def engine() -> ConstraintEngine:
    """Our own engine, for `engines`."""
    return ConstraintEngine(OWN, compile_automaton, KINDS | {"seq"})


def cache_counters() -> CacheCounters:
    """What this process's cache has compiled, found and dropped."""
    return _cache.counters


def check_constraint(constraint: Constraint) -> None:
    """Raise ConstraintError if `constraint` cannot be compiled, whatever the vocabulary. Compiles the automaton."""
    automata.get(constraint)


def automata_counters() -> AutomataCounters:
    """How many automata this process has built, loaded from disk, and found still there."""
    return automata.counters


def build_automaton(constraint: Constraint) -> Automaton:
    """Build the automaton over bytes of a constraint, here and now. Raises ConstraintError."""
    try:
        return _build(constraint)
    except RecursionError:
        raise ConstraintError("nested too deeply", field=constraint.kind) from None


def _build(constraint: Constraint) -> Automaton:
    if len(constraint.source) > MAX_SOURCE_CHARS:
        raise ConstraintError(
            f"the source has {len(constraint.source)} characters, more than {MAX_SOURCE_CHARS}", field=constraint.kind
        )
    if constraint.kind == "regex":
        chosen_options(constraint, {})
        return ByteDfa(_regex(constraint.source), "utf8")
    if constraint.kind == "json_schema":
        return _schema(constraint)
    if constraint.kind == "ebnf":
        chosen_options(constraint, {})
        return GrammarMachine(networks_of(constraint.source))
    if constraint.kind == "seq":
        chosen_options(constraint, {})
        return SequenceMachine(parts_of(constraint.source, build_automaton))
    raise ConstraintError(f"{constraint.kind} is not supported", field=constraint.kind)


automata = Automata(build_automaton)


def _schema(constraint: Constraint) -> SchemaMachine:
    options = chosen_options(constraint, SCHEMA_OPTIONS)
    document = Document(constraint.source)
    lowering = Lowering(document, SchemaOptions(options["format"] == "assert", options["key_order"] == "any"))
    universe = Universe(lowering, lowering.formulas.node(document.root))
    if not universe.inhabited(universe.root):
        raise ConstraintError("no value meets the schema", field="json_schema", pointer="")
    return SchemaMachine(universe, STYLES[options["whitespace"]])


def _regex(pattern: str) -> CharDfa:
    try:
        texts = _literals(pattern)
        dfa = from_texts(texts) if texts is not None else from_regex(parse_regex(pattern))
    except RegexError as error:
        raise ConstraintError(f"{_shown(pattern)}: {error}", field="regex") from None
    except TooLarge as error:
        raise ConstraintError(
            f"{_shown(pattern)} needs too large an automaton ({error}); lower the repeat bounds", field="regex"
        ) from None
    if dfa.is_empty:
        raise ConstraintError(f"{_shown(pattern)} matches no text", field="regex")
    return dfa


_PLAIN = r"(?:[^\\^$.|?*+()\[\]{}\ud800-\udfff]|\\[^A-Za-z0-9])"
_LITERALS = re.compile(rf"{_PLAIN}+(?:\|{_PLAIN}+)+")
_MANY_CHARS = 1000


def _literals(pattern: str) -> list[str] | None:
    """The texts of a long list of literal ones, `a|b|c`, which need no regex; None for other patterns."""
    if len(pattern) < _MANY_CHARS or not _LITERALS.fullmatch(pattern):
        return None
    return [re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for text in re.findall(rf"{_PLAIN}+", pattern)]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
