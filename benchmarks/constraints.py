"""How much of JSON Schema is supported, refused or wrong, and what masks cost.

    python benchmarks/constraints.py coverage FOLDER...    schemas with instances: one JSON file each with `schema` and
                                                           `tests: [{data, valid}]`, or JSON-Schema-Test-Suite folders

    python benchmarks/constraints.py masks|compile|forced FOLDER...  over a vocabulary of 131,072 tokens, beside the
                                                           peers named with --peers (see `constraint_engines.py`)
    python benchmarks/constraints.py regex                 25 typical regexes
    python benchmarks/constraints.py beside                what compiling does to another stream
    python benchmarks/constraints.py many                  10,000 distinct schemas in a row: memory held

An instance is fed as text in the constraint's own spacing. A valid one that is refused as it stands is tried again in
the promised form: declared keys first and in the schema's order, numbers in their shortest plain spelling. If that is
accepted it counts as `reordered` / `respelled`; if not, as wrong. An invalid one that is accepted is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from dslc.compiler.constraints.compile import build_automaton
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError


@dataclass
class Case:
    """A schema with instances. `group` names where it comes from."""

    group: str
    name: str
    schema: Any
    tests: list[dict[str, Any]]
    draft: str = ""


def cases(folder: Path) -> Iterator[Case]:
    """All schemas below a folder, with instances; the suite's `optional` folders only for formats."""
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text(), parse_float=Decimal)
        if isinstance(data, dict):
            yield Case(path.stem.split("---")[0], path.stem, data["schema"], data["tests"])
        elif "optional" not in path.parts:
            draft = path.parent.name
            for group in data:
                yield Case(draft, f"{path.stem}: {group['description']}", group["schema"], group["tests"], draft)


_DRAFT_URI = {"draft7": "http://json-schema.org/draft-07/schema#"}


def as_text(value: Any) -> str:
    """JSON in the constraint's spacing; decimals as they were written."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {as_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_text, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


def accepts(automaton: Any, text: str) -> bool:
    state = automaton.start
    for byte in text.encode("utf-8", "surrogatepass"):
        state = automaton.moves(state).get(byte, -1)
        if state < 0:
            return False
    return bool(automaton.accepting(state))


def promised(automaton: Any, value: Any) -> bool:
    """Whether the value is accepted in some order of keys, with numbers in their shortest plain spelling."""
    return any(automaton.accepting(state) for state in _ends(automaton, automaton.start, value))


def _read(automaton: Any, state: int, text: str) -> int:
    for byte in text.encode("utf-8", "surrogatepass"):
        state = automaton.moves(state).get(byte, -1) if state >= 0 else -1
    return state


def _ends(automaton: Any, state: int, value: Any) -> set[int]:
    """The states after `value`, written in whatever order of keys the automaton takes."""
    if state < 0:
        return set()
    if isinstance(value, dict):
        return _object_ends(automaton, state, value)
    if isinstance(value, list):
        states = {_read(automaton, state, "[")}
        for i, item in enumerate(value):
            states = {e for s in states for e in _ends(automaton, _read(automaton, s, ", " if i else ""), item)}
        return {e for s in states if (e := _read(automaton, s, "]")) >= 0}
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        text = format(Decimal(value), "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return {e for e in (_read(automaton, state, "0" if text == "-0" else text),) if e >= 0}
    return {e for e in (_read(automaton, state, json.dumps(value, ensure_ascii=False)),) if e >= 0}


def _object_ends(automaton: Any, state: int, value: dict[str, Any]) -> set[int]:
    """Depth-first over key orders, the declared one first: at each place every key that can be read is tried."""
    found: set[int] = set()
    budget = [3000]
    inside = _read(automaton, state, "{")
    if inside < 0:
        return found
    place = {name: i for i, name in enumerate(automaton.declared_names(inside))}
    names = sorted(value, key=lambda name: place.get(name, len(place)))

    def go(at: int, left: list[str], first: bool) -> bool:
        budget[0] -= 1
        if not left:
            end = _read(automaton, at, "}")
            found.update({end} - {-1})
            return end >= 0
        for i, name in enumerate(left):
            key = json.dumps(name, ensure_ascii=False)
            begun = _read(automaton, at, ("" if first else ", ") + key + ": ")
            for end in _ends(automaton, begun, value[name]) if begun >= 0 and budget[0] > 0 else ():
                if go(end, left[:i] + left[i + 1 :], False):
                    return True
        return False

    go(inside, names, True)
    return found


@dataclass
class Tally:
    """Counts for one group of schemas."""

    schemas: int = 0
    refused: int = 0
    exact: int = 0
    reordered: int = 0
    false_rejects: int = 0
    false_accepts: int = 0
    compile_ms: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def coverage(folders: list[Path], formats: str, verbose: bool) -> bool:
    """Print the tables; returns whether nothing was wrong."""
    tallies: dict[str, Tally] = {}
    for folder in folders:
        for case in cases(folder):
            tally = tallies.setdefault(case.group, Tally())
            run_case(case, tally, formats)
    print(f"{'group':<18}{'schemas':>8}{'exact':>7}{'%':>7}{'refused':>9}{'reordered':>11}{'f.reject':>10}{'f.accept':>10}"
          f"{'p50 ms':>8}{'p99':>8}{'max':>8}")  # fmt: skip
    total = Tally()
    for name, t in sorted(tallies.items()):
        _print_row(name, t)
        for attribute in ("schemas", "refused", "exact", "reordered", "false_rejects", "false_accepts"):
            setattr(total, attribute, getattr(total, attribute) + getattr(t, attribute))
        total.compile_ms += t.compile_ms
        total.reasons.update(t.reasons)
        total.wrong += t.wrong
    _print_row("all", total)
    print("\nrefused because:")
    for reason, count in total.reasons.most_common():
        print(f"{count:6}  {reason}")
    for line in total.wrong if verbose else total.wrong[:20]:
        print("WRONG", line)
    return not total.wrong


def _print_row(name: str, t: Tally) -> None:
    times = sorted(t.compile_ms) or [0.0]
    at = [times[min(int(len(times) * q), len(times) - 1)] for q in (0.5, 0.99)]
    share = 100 * t.exact / max(t.schemas, 1)
    print(f"{name:<18}{t.schemas:>8}{t.exact:>7}{share:>7.1f}{t.refused:>9}{t.reordered:>11}{t.false_rejects:>10}"
          f"{t.false_accepts:>10}{at[0]:>8.1f}{at[1]:>8.1f}{times[-1]:>8.1f}")  # fmt: skip


def run_case(case: Case, tally: Tally, formats: str) -> None:
    tally.schemas += 1
    schema = case.schema
    if case.draft in _DRAFT_URI and isinstance(schema, dict) and "$schema" not in schema:
        schema = {"$schema": _DRAFT_URI[case.draft], **schema}
    options = (("format", "annotate"),) if formats == "annotate" else ()
    constraint = Constraint("json_schema", json.dumps(schema, default=_plain, ensure_ascii=False), options)
    started = time.perf_counter()
    try:
        automaton = build_automaton(constraint)
    except ConstraintError as error:
        tally.compile_ms.append((time.perf_counter() - started) * 1e3)
        if "no value meets" in str(error) and not any(t["valid"] for t in case.tests):
            tally.exact += 1
            return
        tally.refused += 1
        tally.reasons[
            f"{(error.pointer or '').rsplit('/', 1)[-1] or '(root)'}: {error.message.split(': ', 2)[-1][:90]}"
        ] += 1
        if "no value meets" in str(error):
            tally.wrong.append(f"{case.name}: said to be unsatisfiable")
        return
    tally.compile_ms.append((time.perf_counter() - started) * 1e3)
    exact, moved = True, False
    for test in case.tests:
        taken = accepts(automaton, as_text(test["data"]))
        if test["valid"] and not taken:
            if promised(automaton, test["data"]):
                moved = True
            else:
                exact = False
                tally.false_rejects += 1
                tally.wrong.append(f"{case.name}: refuses {as_text(test['data'])[:300]}")
        elif taken and not test["valid"]:
            exact = False
            tally.false_accepts += 1
            tally.wrong.append(f"{case.name}: accepts {as_text(test['data'])[:300]}")
    tally.exact += exact
    tally.reordered += moved


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and "." not in str(value) else float(value)
    raise TypeError(type(value).__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cover = verbs.add_parser("coverage", help="supported / refused / wrong over folders of schemas")
    cover.add_argument("--formats", choices=("assert", "annotate"), default="assert")
    cover.add_argument("--verbose", action="store_true", help="print every wrong verdict")
    speed = {
        "masks": "mask times on first use, and at states seen before",
        "compile": "time to the first matcher",
        "regex": "25 typical regexes: time, memory, verdicts",
        "forced": "forced tokens against the causal bound",
    }
    for verb, what in speed.items():
        one = verbs.add_parser(verb, help=what)
        one.add_argument("--peers", default="llguidance", help="comma-separated: llguidance, xgrammar, outlines-core")
        one.add_argument("--instances", type=int, default=2, help="valid instances of each schema")
        one.add_argument("--max-tokens", type=int, default=300, help="of each instance")
        one.add_argument("--every", type=int, default=1, help="take each n-th schema")
        one.add_argument(
            "--limit-s",
            type=float,
            default=40,
            help="seconds of processor time that XGrammar and outlines-core get for each schema",
        )
    several = verbs.add_parser("many", help="distinct schemas in a row: memory held, time of each")
    several.add_argument("--count", type=int, default=10_000)
    verbs.add_parser("beside", help="the time between tokens of another stream while hostile constraints come in")
    for verb in ("coverage", "masks", "compile", "forced"):
        verbs.choices[verb].add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "coverage":
        sys.exit(0 if coverage(arguments.folders, arguments.formats, arguments.verbose) else 1)
    if arguments.verb == "beside":
        from constraint_beside import beside

        beside()
        return
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """The verbs that need a vocabulary, and the packages of the `bench` extra."""
    import constraint_speed as speed
    from constraint_engines import Tekken, peers

    tekken = Tekken()
    if arguments.verb == "many":
        speed.many(arguments.count, tekken)
        return
    engines = peers(tekken, [name for name in arguments.peers.split(",") if name])
    if arguments.verb == "regex":
        speed.regexes(engines, tekken)
        return
    found = [case for folder in arguments.folders for case in cases(folder)][:: arguments.every]
    texts = [(c.name, json.dumps(c.schema, default=_plain, ensure_ascii=False),
              [as_text(t["data"]) for t in c.tests if t["valid"]]) for c in found]  # fmt: skip
    items = speed.load_items(texts, tekken, arguments.instances, arguments.max_tokens)
    print(f"{len(items)} schemas, {sum(len(w) for i in items for w in i.walks)} tokens")
    if arguments.verb == "masks":
        speed.masks(items, engines, tekken, arguments.limit_s)
    elif arguments.verb == "compile":
        speed.compile_times(items, engines)
    else:
        speed.forced(items, engines)


if __name__ == "__main__":
    main()
