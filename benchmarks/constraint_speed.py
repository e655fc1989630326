"""What masks, compilation and forced text cost: the verbs `masks`, `compile`, `regex`, `forced`, `many` of
`constraints.py`."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from constraint_engines import Engine, Own, OwnRun, Refused, Run, Tekken

from dslc.compiler.constraints.compile import build_automaton
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

REPEATS = 5
_BUSY = 20  # times its processor time that a process may take by the clock


@dataclass
class Item:
    """A schema and the token ids of texts that it accepts."""

    name: str
    source: str
    walks: list[list[int]]


def quantiles(times: Iterable[float], scale: float = 1e6) -> dict[str, float]:
    ordered = np.sort(np.array([*times], float)) * scale
    if not len(ordered):
        return dict.fromkeys(("mean", "p50", "p90", "p99", "max"), float("nan"))
    at = {f"p{q}": float(ordered[min(int(len(ordered) * q / 100), len(ordered) - 1)]) for q in (50, 90, 99)}
    return {"mean": float(ordered.mean()), **at, "max": float(ordered[-1])}


def table(rows: list[tuple[str, int, dict[str, float]]], unit: str) -> None:
    print(f"{'':<46}{'count':>8}" + "".join(f"{q + ' ' + unit:>11}" for q in ("mean", "p50", "p90", "p99", "max")))
    for name, count, found in rows:
        print(f"{name:<46}{count:>8}" + "".join(f"{found[q]:>11.1f}" for q in ("mean", "p50", "p90", "p99", "max")))


def walk(run: Run, ids: list[int], row: np.ndarray, times: list[float], note: Callable[[], None] | None = None) -> int:
    """Fill the mask before each token; returns how many tokens went in. `note` is called behind each fill."""
    clock = time.perf_counter
    for at, token in enumerate(ids):
        run.ahead()  # while the forward runs that gives the token
        started = clock()
        run.fill(row)
        times.append(clock() - started)
        if note is not None:
            note()
        if not run.advance(token):
            return at
    return len(ids)


@dataclass
class MaskTimes:
    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)  # positions of another instance
    hits: list[float] = field(default_factory=list)  # those of them whose state was known
    served: int = 0
    cut_short: int = 0
    too_long: int = 0  # schemas that took more than the limit
    compile_s: list[float] = field(default_factory=list)

    def add(self, other: MaskTimes) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


def masks(items: list[Item], engines: list[Engine], tekken: Tekken, limit_s: float) -> None:
    """First use: each schema alone, with nothing known but the vocabulary. Seen before: a second, other instance.

    Ours once as on an accelerator, where a little is made ready during each forward, and once without.
    """
    engines = [*engines[:1], Own(tekken, num_ahead=0), *engines[1:]]
    results = {engine.name: MaskTimes() for engine in engines}
    row = np.zeros(tekken.row_words, np.int32)
    done = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it runs in the background
    try:
        for item in items:
            for engine in engines:  # interleaved, so that noise of the machine falls on all
                if engine.may_take_long:
                    results[engine.name].add(_measured_apart(engine, item, row, limit_s))
                else:
                    _measure(engine, item, row, results[engine.name])
            done += 1
    except KeyboardInterrupt:
        print(f"interrupted: what follows is of the first {done} schemas")
    rows = []
    for name, found in results.items():
        rows.append((f"{name}: first use", len(found.first), quantiles(found.first)))
        rows.append((f"{name}: second instance", len(found.again), quantiles(found.again)))
        if name.startswith("dslc"):
            rows.append((f"{name}: states seen before", len(found.hits), quantiles(found.hits)))
    table(rows, "us")
    for name, found in results.items():
        if found.compile_s:
            at = quantiles(found.compile_s, 1e3)
            print(f"{name}: compiled {len(found.compile_s)}, once each, processor time: " +
                  ", ".join(f"{q} {at[q]:.1f} ms" for q in ("mean", "p50", "p90", "p99", "max")))  # fmt: skip
        share = f"{100 * len(found.hits) / max(len(found.again), 1):.1f} %"
        share = share if name.startswith("dslc") else "no state identity"
        if found.too_long:
            share += f"; {found.too_long} schemas took more than {limit_s:g} s of processor time, or all memory"
        print(f"{name}: served {found.served} of {done} schemas, {found.cut_short} walks cut short; "
              f"positions of a second instance whose state was known: {share}")  # fmt: skip


def _measured_apart(engine: Engine, item: Item, row: np.ndarray, limit_s: float) -> MaskTimes:
    """The same in a process that is killed when it takes too much of the processor, so that a busy machine counts for
    nothing."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), math.ceil(limit_s) + 1))
        found = MaskTimes()
        _measure_compiled_once(engine, item, row, found)
        there.send(found)

    child = fork.Process(target=work)
    child.start()
    there.close()  # so that its end is seen at once
    try:
        if here.poll(_BUSY * limit_s):
            found: MaskTimes = here.recv()
            return found
        return MaskTimes(too_long=1)
    except EOFError:  # it was killed, or died of its memory
        return MaskTimes(too_long=1)
    finally:
        child.kill()
        child.join()


def _measure_compiled_once(engine: Engine, item: Item, row: np.ndarray, into: MaskTimes) -> None:
    gc.disable()
    started = time.process_time()
    try:
        start = engine.compile("json_schema", item.source)
        start()
    except Refused:
        return
    into.compile_s.append(time.process_time() - started)
    into.served += 1
    for number, ids in enumerate(item.walks):
        repeats: list[list[float]] = []
        for _ in range(REPEATS):
            repeats.append([])
            done = walk(start(), ids, row, repeats[-1])
        into.cut_short += done < len(ids)
        low = [min(t) for t in zip(*repeats, strict=True)]
        (into.again if number else into.first).extend(low)


def _measure(engine: Engine, item: Item, row: np.ndarray, into: MaskTimes) -> None:
    passes: list[list[list[float]]] = []  # per repeat, per instance: seconds at each position
    is_new: list[list[bool]] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(REPEATS):
            engine.forget()
            try:
                start = engine.compile("json_schema", item.source)
            except Refused:
                return
            passes.append([])
            is_new = []
            for ids in item.walks:
                passes[-1].append([])
                is_new.append([])
                done = walk(start(), ids, row, passes[-1][-1], _noter(engine, is_new[-1]))
                into.cut_short += done < len(ids)
    finally:
        gc.enable()
    into.served += 1
    for number, repeats in enumerate(zip(*passes, strict=True)):
        low = [min(t) for t in zip(*repeats, strict=True)]
        if number:
            into.again += low
        if isinstance(engine, Own):
            into.first += [t for t, new in zip(low, is_new[number], strict=True) if new]
            into.hits += [t for t, new in zip(low, is_new[number], strict=True) if number and not new]
        elif not number:
            into.first += low


def _noter(engine: Engine, flags: list[bool]) -> Callable[[], None] | None:
    """Writes down whether the mask was computed: only our engine can say."""
    if not isinstance(engine, Own):
        return None
    index = engine.compiled.index  # type: ignore[attr-defined]
    last = [index.masks_computed]

    def note() -> None:
        flags.append(index.masks_computed != last[0])
        last[0] = index.masks_computed

    return note


def compile_times(items: list[Item], engines: list[Engine]) -> None:
    """Each schema alone, nothing known but the vocabulary; up to the first mask's matcher. Minimum of 3."""
    results: dict[str, list[float]] = {engine.name: [] for engine in engines}
    both: list[tuple[float, float]] = []
    for item in items:
        gc.collect()
        taken: dict[str, float] = {}
        for engine in engines:
            times = []
            for _ in range(3):
                engine.forget()
                started = time.perf_counter()
                try:
                    engine.compile("json_schema", item.source)()
                except Refused:
                    break
                times.append(time.perf_counter() - started)
            if times:
                taken[engine.name] = min(times)
                results[engine.name].append(min(times))
        if "llguidance" in taken and "dslc" in taken:
            both.append((taken["dslc"], taken["llguidance"]))
    rows = [(name, len(times), quantiles(times, 1e3)) for name, times in results.items()]
    if both:
        rows.append(("dslc, where llguidance serves", len(both), quantiles([b[0] for b in both], 1e3)))
    table(rows, "ms")


def many(count: int, tekken: Tekken) -> None:
    """Distinct schemas one after the other, each with a few masks: what stays in memory, and whether times grow."""
    rng = random.Random(0)
    own = Own(tekken)
    row = np.zeros(tekken.row_words, np.int32)
    names = ["id", "name", "tags", "size", "state", "owner", "notes", "price", "email", "when"]
    kinds: list[dict[str, Any]] = [
        {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "number"},
        {"type": "string", "format": "date"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    ]  # fmt: skip
    print(f"{'schemas':>10}{'MB held':>10}{'MB cached':>11}{'ms each':>10}{'in cache':>10}")
    started, begun = time.perf_counter(), 0
    for number in range(1, count + 1):
        chosen = rng.sample(names, 5)
        properties = {f"{name}_{number}": dict(rng.choice(kinds)) for name in chosen}
        properties["text"] = {"type": "string", "pattern": f"^[a-z]{{1,{number % 50 + 2}}}-{number}$"}
        schema = {"type": "object", "properties": properties, "required": [*properties][:3]}
        run = own.compile("json_schema", json.dumps(schema))()
        for token in tekken.encode(json.dumps({f"{chosen[0]}_{number}": "x"})[: len(chosen[0])]):
            run.ahead()
            run.fill(row)
            if not run.advance(token):
                break
        if number % (count // 10) == 0:
            counters = own.cache.counters
            taken = (time.perf_counter() - started) * 1e3 / (number - begun)
            held = counters.compiled - counters.evicted
            print(f"{number:>10}{_resident():>10.0f}{counters.num_bytes / 2**20:>11.1f}{taken:>10.2f}{held:>10}")
            started, begun = time.perf_counter(), number


OBJECT = (
    r'\{"name": "[a-z]{1,20}", "age": (0|[1-9][0-9]{0,2}), "email": "[a-z0-9._]{1,20}@[a-z]{1,10}\.(com|org|net)", '
    r'"address": \{"street": "[A-Za-z0-9 ]{1,30}", "city": "[A-Za-z ]{1,20}", "zip": "[0-9]{5}"\}, '
    r'"tags": \[("[a-z]{1,10}"(, "[a-z]{1,10}"){0,4})?\], "active": (true|false), "score": -?[0-9]+\.[0-9]{2}, '
    r'"created": "[0-9]{4}-[0-9]{2}-[0-9]{2}"\}'
)
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_WORDS = [f"{a}{b}" for a in ("red", "green", "blue", "amber", "ivory") for b in ("fox", "owl", "bee", "cat", "yak")]
REGEXES: list[tuple[str, str, list[str], list[str]]] = [
    # name, pattern, texts that match, texts that do not
    ("ipv4", rf"{_BYTE}(\.{_BYTE}){{3}}", ["192.168.0.1", "0.0.0.0", "255.255.255.255"], ["256.1.1.1", "1.2.3"]),
    ("ipv6", r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}", ["2001:db8:0:0:0:ff00:42:8329"], ["1:2:3", "g:1:2:3:4:5:6:7"]),
    ("e-mail", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", ["a.b@example.com"], ["a@b", "@x.com"]),
    ("ISO date", r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", ["2024-11-20"], ["2024-13-01", "24-1-1"]),
    ("ISO date-time", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", ["2024-11-20T10:20:30.5+01:00"],
     ["2024-11-20 10:20:30"]),
    ("phone", r"(\+\d{1,3} )?\(?\d{3}\)?[ -]\d{3}-\d{4}", ["+1 (555) 123-4567", "555 123-4567"], ["5551234567"]),
    ("URL", r"https?://[a-z0-9.-]+(:\d+)?(/[^\s?#]*)?(\?[^\s#]*)?(#\S*)?", ["https://a.b:80/c?d=e#f", "http://x"],
     ["ftp://x", "https://"]),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", ["0.25", "-12e5", "0"], ["01", ".5"]),
    ("decimal", r"(0|[1-9][0-9]*)(\.[0-9]+)?", ["0.2", "12"], ["0.", "00"]),
    ("semver", r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?",
     ["1.2.3", "10.20.30-rc.1+build.5"], ["1.2", "01.2.3"]),
    ("hex colour", r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})", ["#123", "#12aBcD"], ["#12", "#12345"]),
    ("UUID", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
     ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    ("time", r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", ["23:59", "00:00:01"], ["24:00", "1:2"]),
    ("money", r"[$€£]\d{1,3}(,\d{3})*\.\d{2}", ["$1,234.50", "€5.00"], ["$1234.5", "5.00"]),
    ("credit card", r"\d{4}([ -]?)\d{4}[ -]?\d{4}[ -]?\d{4}", ["1234 5678 9012 3456"], ["1234"]),
    ("identifier", r"[A-Za-z_]\w*", ["abc_1", "aÜ2"], ["1a", "Ü"]),
    ("choice of 25", "|".join(_WORDS), ["greenowl", "ivoryyak"], ["greenyeti", "red"]),
    ("JSON string", r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"', ['"a\\n\\u00e9"', '"日本"'],
     ['"a', '"\\x"']),
    ("sentence", r"[A-Z][a-z]*( [a-z]+){0,19}\.", ["The fox runs."], ["the fox.", "The fox"]),
    ("[a-z ]{1,200}", r"[a-z ]{1,200}", ["a b", "x" * 200], ["x" * 201, "A"]),
    ("[a-z ]{1,1000}", r"[a-z ]{1,1000}", ["a b", "x" * 1000], ["x" * 1001]),
    (".{1,500}", r".{1,500}", ["é" * 500, "x"], ["é" * 501, "a\nb", ""]),
    ("[^\"]{1,100}", r'[^\x00-\x1f"]{1,100}', ["日本" * 50], ["日本" * 51, 'a"']),
    ("reasoning, answer", r"Reasoning: [^\n]{1,400}\nAnswer: (yes|no|maybe)", ["Reasoning: as é\nAnswer: no"],
     ["Reasoning: \nAnswer: no"]),
    ("JSON object", OBJECT, ['{"name": "ada", "age": 36, "email": "ada@b.org", "address": {"street": "1 Main St", '
     '"city": "York", "zip": "12345"}, "tags": ["a", "b"], "active": true, "score": -1.25, "created": "2024-01-02"}'],
     ['{"name": "ada"}']),
]  # fmt: skip


def regexes(engines: list[Engine], tekken: Tekken) -> None:
    """Time, memory growth and verdicts for each typical regex; masks along its matching texts."""
    row = np.zeros(tekken.row_words, np.int32)
    for engine in engines:
        right, worst_ms, worst_mb, first, wrong = 0, 0.0, 0.0, [], []
        print(f"\n{engine.name}{'':<12}{'compile ms':>12}{'MB':>8}{'mask p50 us':>13}{'max us':>9}  right")
        for name, pattern, good, bad in REGEXES:
            engine.forget()
            gc.collect()
            memory = _resident()
            started = time.perf_counter()
            try:
                start = engine.compile("regex", pattern)
            except Refused as error:
                print(f"{name:<20} refused: {str(error)[:70]}")
                continue
            taken = (time.perf_counter() - started) * 1e3
            times: list[float] = []
            ok = all(_takes(start(), tekken.encode(text), row, times) for text in good)
            ok = ok and not any(_takes(start(), tekken.encode(text), row, []) for text in bad)
            grown = max(_resident() - memory, 0.0)
            worst_ms, worst_mb, right = max(worst_ms, taken), max(worst_mb, grown), right + ok
            first += times
            found = quantiles(times)
            print(f"{name:<20}{taken:>12.2f}{grown:>8.1f}{found['p50']:>13.1f}{found['max']:>9.1f}  {ok}")
            if not ok:
                wrong.append(name)
        print(f"{engine.name}: {right} of {len(REGEXES)} right, worst compile {worst_ms:.1f} ms, worst memory "
              f"{worst_mb:.1f} MB, wrong: {', '.join(wrong) or 'none'}")  # fmt: skip


def _takes(run: Run, ids: list[int], row: np.ndarray, times: list[float]) -> bool:
    """Whether the masks let the tokens through, and the text may end there."""
    for token in ids:
        started = time.perf_counter()
        run.fill(row)
        times.append(time.perf_counter() - started)
        if not row[token >> 5] >> (token & 31) & 1 or not run.advance(token):
            return False
    return run.accepting()


def _resident() -> float:
    """MB held now."""
    with open("/proc/self/statm") as f:  # noqa: PTH123
        return int(f.read().split()[1]) * resource.getpagesize() / 2**20


def forced(items: list[Item], engines: list[Engine]) -> None:
    """Tokens that need no sampling, against the causal bound.

    The bound: a token is determined before it is sampled if it lies within bytes that the automaton forces after some
    earlier token, and no longer token that reaches beyond those bytes could stand in its place.
    """
    own = next(e for e in engines if isinstance(e, Own))
    totals = {e.name: [0, 0] for e in engines}
    bound = count = 0
    for item in items:
        starts = {}
        for engine in engines:
            try:
                starts[engine.name] = engine.compile("json_schema", item.source)
            except Refused:
                break
        if len(starts) < len(engines):
            continue  # only schemas that all serve are compared
        for ids in item.walks:
            count += len(ids)
            bound += _bound(starts[own.name](), ids)
            for engine in engines:
                used, taken = _forced_tokens(starts[engine.name](), ids)
                totals[engine.name][0] += used
                totals[engine.name][1] += taken
    print(f"{count} tokens; causal bound {bound} ({100 * bound / max(count, 1):.1f} %)")
    for name, (used, _) in totals.items():
        share, of_bound = 100 * used / max(count, 1), 100 * used / max(bound, 1)
        print(f"{name}: {used} forced, {share:.1f} % of tokens, {of_bound:.1f} % of the bound")


def _forced_tokens(run: Run, ids: list[int]) -> tuple[int, int]:
    """(forced tokens that are the text's, positions asked)."""
    at = used = asked = 0
    while at < len(ids):
        asked += 1
        given = run.forced()
        same = 0
        while same < len(given) and at + same < len(ids) and given[same] == ids[at + same]:
            same += 1
        used += same
        for token in ids[at : at + same + (same < len(given) or not given)]:
            if not run.advance(token):
                return used, asked
        at += same + (same < len(given) or not given)
    return used, asked


def _bound(run: Run, ids: list[int]) -> int:
    """How many tokens of a text are determined before they are sampled."""
    assert isinstance(run, OwnRun)
    matcher: Any = run.matcher
    index = matcher._index
    token_bytes = index.trie.vocabulary.token_bytes
    found, left, after = 0, b"", -1
    for token in ids:
        data = token_bytes[token] or b""
        if not left:
            left, after = index.forced_bytes(matcher._state)
        if left.startswith(data):
            found += not index._may_grow(left, after)
            left = left[len(data) :]
        else:
            left = b""
        if not run.advance(token):
            break
    return found


def load_items(cases: list[tuple[str, str, list[str]]], tekken: Tekken, instances: int, max_tokens: int) -> list[Item]:
    """(name, schema, texts of valid values) with those of the texts that are in the promised form, tokenised.

    Says which schemas are refused: those are left out.
    """
    items: list[Item] = []
    refused: list[str] = []
    for name, source, texts in cases:
        try:
            automaton = build_automaton(Constraint("json_schema", source))
        except ConstraintError as error:
            refused.append(f"refused: {name}: {error}")
            continue
        taken = [text for text in dict.fromkeys(texts) if _reads(automaton, text)]
        if taken:
            items.append(Item(name, source, [tekken.encode(text)[:max_tokens] for text in taken[:instances]]))
    print("\n".join([*refused[:10], f"{len(refused)} of {len(cases)} schemas refused"]) if refused else "none refused")
    return items


def _reads(automaton: Any, text: str) -> bool:
    state = automaton.start
    for byte in text.encode("utf-8", "surrogatepass"):
        state = automaton.moves(state).get(byte, -1)
        if state < 0:
            return False
    return bool(automaton.accepting(state))
